"""Casts against torch, which rounds by code of its own: every 16-bit pattern, and float32 around its overflow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from converters.errors import CheckpointError
from converters.operations.cast import Cast
from converters.tensor_info import DType

TORCH = {DType.F16: torch.float16, DType.BF16: torch.bfloat16, DType.F32: torch.float32, DType.F64: torch.float64}
SIXTEEN = [(DType.F16, DType.BF16), (DType.BF16, DType.F16), (DType.F16, DType.F64), (DType.BF16, DType.F32)]
LARGEST = 0x7F7F_8000
"""The bits of the smallest float32 that rounds to bfloat16's infinity."""


def by_torch(raw: np.ndarray, source: DType, target: DType) -> torch.Tensor:
    return torch.from_numpy(raw.copy()).view(TORCH[source]).to(TORCH[target])


def as_tensor(raw: np.ndarray, dtype: DType) -> torch.Tensor:
    return torch.from_numpy(raw.copy()).view(TORCH[dtype])


@pytest.mark.parametrize(("source", "target"), SIXTEEN, ids=lambda dtype: dtype.label)
def test_every_pattern_of_16_bits_becomes_what_torch_makes_of_it(source: DType, target: DType) -> None:
    raw = np.arange(1 << 16, dtype=np.uint16)
    expected = by_torch(raw, source, target)
    fits = (expected.isinf() == as_tensor(raw, source).isinf()).numpy()
    found = as_tensor(Cast(target).apply(raw[fits], source, "w"), target)
    kept = expected[torch.from_numpy(fits)]
    assert torch.equal(found.isnan(), kept.isnan())
    assert torch.equal(found.nan_to_num(7.0).view(torch.uint8), kept.nan_to_num(7.0).view(torch.uint8))
    if not fits.all():
        with pytest.raises(CheckpointError, match=f"^w: {int((~fits).sum())} values don't fit {target.label}"):
            Cast(target).apply(raw, source, "w")


@pytest.mark.parametrize("sign", [0, 0x8000_0000])
@pytest.mark.parametrize(("bits", "fits"), [(LARGEST - 1, True), (LARGEST, False), (0x7F80_0000, True)])
def test_overflow_is_noticed_to_the_bit(sign: int, bits: int, fits: bool) -> None:  # noqa: FBT001 - a row
    raw = np.full(1000, 0x3F80_0000, np.uint32)
    raw[617] = sign | bits
    if fits:
        found = as_tensor(Cast(DType.BF16).apply(raw, DType.F32, "w"), DType.BF16)
        assert torch.equal(found, by_torch(raw, DType.F32, DType.BF16))
    else:
        with pytest.raises(CheckpointError, match=r"^w: 1 values don't fit BF16: the largest is 3\.39"):
            Cast(DType.BF16).apply(raw, DType.F32, "w")


@pytest.mark.parametrize("bits", [0x7F80_0001, 0x7FFF_FFFF, 0xFF80_0001, 0xFFFF_FFFF])
def test_a_nan_stays_one_among_others(bits: int) -> None:
    raw = np.array([0x3F80_8000, bits, 0x0000_0001, 0x8000_0000], np.uint32)
    found = as_tensor(Cast(DType.BF16).apply(raw, DType.F32, "w"), DType.BF16)
    expected = by_torch(raw, DType.F32, DType.BF16)
    assert found.isnan().tolist() == [False, True, False, False]
    assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))


def test_nothing_at_all_is_cast() -> None:
    assert Cast(DType.BF16).apply(np.empty(0, np.uint32), DType.F32, "w").size == 0
    assert Cast(DType.BF16).apply(np.empty((0, 3), np.uint16), DType.F16, "w").shape == (0, 3)


@pytest.mark.parametrize("share", [0, 1, 3, 40], ids=lambda share: f"{share} of 64")
def test_what_is_no_normal_number_may_be_rare_or_frequent(share: int) -> None:
    drawn = np.random.default_rng(share)
    normal = drawn.integers(1, 31, (64, 5, 7)) << 10 | drawn.integers(0, 1 << 10, (64, 5, 7))
    special = drawn.choice([0, 31], (64, 5, 7)) << 10 | drawn.integers(0, 2, (64, 5, 7)) * 0x155
    values = np.where(drawn.permutation(64)[:, None, None] < share, special, normal)
    raw = (values | drawn.integers(0, 2, (64, 5, 7)) << 15).astype(np.uint16)
    for shaped in (raw, raw[::-1, :, ::3], raw.transpose(2, 0, 1)):  # whatever the order in memory
        found = as_tensor(Cast(DType.BF16).apply(shaped, DType.F16, "w"), DType.BF16)
        expected = by_torch(shaped, DType.F16, DType.BF16)
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.nan_to_num(7.0).view(torch.uint8), expected.nan_to_num(7.0).view(torch.uint8))
