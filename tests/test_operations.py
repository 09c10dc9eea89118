"""Value operations: casts against torch, bit for bit, and fills."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from converters.errors import CheckpointError, CoverageError
from converters.operations import OneWay, generator_from_json
from converters.operations.cast import Cast, widens
from converters.operations.fill import VALUES, Fill
from converters.operations.numeric import ARITHMETIC, decode, float_dtype, raw_dtype
from converters.operations.registry import operation_from_json, operation_to_json
from converters.tensor_info import DType, TensorInfo
from converters.torch_dtypes import to_torch

FLOATS = sorted(ARITHMETIC, key=lambda dtype: dtype.label)
PAIRS = list(itertools.product(FLOATS, FLOATS))
_SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def every_pattern(dtype: DType) -> np.ndarray:
    """All patterns of 8 and 16 bits; of wider dtypes, random ones, and numbers near everything that matters."""
    width = dtype.bits // 8
    if width <= 2:
        return np.arange(1 << dtype.bits, dtype=raw_dtype(dtype))
    rng = np.random.default_rng(7)
    random = rng.integers(0, 1 << dtype.bits, 50_000, dtype=raw_dtype(dtype), endpoint=False)
    exponents = np.exp2(rng.uniform(-160, 160, 50_000)) * rng.choice([-1.0, 1.0], 50_000)
    # Halfway between two neighbours of each narrower dtype, where ties go to even.
    ties = [
        (low[:-1].astype(np.float64) + low[1:].astype(np.float64)) / 2
        for low in (np.sort(finite(narrow)) for narrow in FLOATS if narrow.bits <= 16)
    ]
    near = np.concatenate([exponents, *ties])
    with np.errstate(all="ignore"):
        values = near.astype(float_dtype(dtype))
    return np.concatenate([random, values.view(raw_dtype(dtype))])


def finite(dtype: DType) -> np.ndarray:
    values = numbers(np.arange(1 << dtype.bits, dtype=raw_dtype(dtype)), dtype)
    return np.unique(values[np.isfinite(values)])


def as_torch(raw: np.ndarray, dtype: DType) -> torch.Tensor:
    return torch.from_numpy(raw.view(f"i{raw.itemsize}").copy()).view(to_torch(dtype))


def as_raw(tensor: torch.Tensor) -> np.ndarray:
    width = tensor.dtype.itemsize
    return tensor.view(_SIGNED[width]).numpy().view(f"u{width}")


def numbers(raw: np.ndarray, dtype: DType) -> np.ndarray:
    with np.errstate(all="ignore"):  # a signalling NaN is none of our business
        return decode(raw, dtype).astype(np.float64)


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=lambda dtype: dtype.label)
def test_casts_give_the_bits_that_torch_gives(source: DType, target: DType) -> None:
    raw = every_pattern(source)
    expected = as_raw(as_torch(raw, source).to(to_torch(target)))
    # Torch saturates where F8_E4M3 overflows, above 464; that is an error here.
    reach = 464 if target is DType.F8_E4M3 else math.inf
    with np.errstate(all="ignore"):
        fits = np.isfinite(numbers(expected, target)) & (np.abs(numbers(raw, source)) <= reach)
    found = Cast(target).apply(raw[fits], source, "w")
    assert np.array_equal(found, expected[fits])
    # NaN stays NaN, whichever; infinity stays what it is where the target has one.
    values = numbers(raw, source)
    nan = raw[np.isnan(values)]
    assert np.isnan(numbers(Cast(target).apply(nan, source, "w"), target)).all()
    infinite = raw[np.isinf(values)]
    if len(infinite) and target.label in ("F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2FNUZ"):
        with pytest.raises(CheckpointError, match="the largest is inf"):
            Cast(target).apply(infinite, source, "w")
    elif len(infinite):
        assert np.array_equal(numbers(Cast(target).apply(infinite, source, "w"), target), values[np.isinf(values)])


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=lambda dtype: dtype.label)
def test_an_overflow_is_an_error(source: DType, target: DType) -> None:
    raw = every_pattern(source)
    values = numbers(raw, source)
    largest = finite(target).max() if target.bits <= 16 else float(np.finfo(float_dtype(target)).max)
    over = raw[np.isfinite(values) & (np.abs(values) > 1.1 * largest)]
    if not len(over):
        Cast(target).apply(raw[np.isfinite(values) & (np.abs(values) <= largest)], source, "w")
        return
    with pytest.raises(CheckpointError) as caught:
        Cast(target).apply(over[:3], source, "model.w")
    problem = caught.value.problems[0]
    assert problem.what.startswith(f"{len(over[:3])} values don't fit {target}: the largest is ")
    assert problem.where == "model.w"


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=lambda dtype: dtype.label)
def test_a_cast_that_widens_comes_back_the_same(source: DType, target: DType) -> None:
    if not widens(source, target):
        return
    cast = Cast(target, source)
    raw = every_pattern(source)
    there = cast.apply(raw, source, "w")
    back = cast.inverse()
    assert isinstance(back, Cast)
    again = back.apply(there, target, "w")
    values = numbers(raw, source)
    same = raw == again
    assert same[~np.isnan(values)].all()
    assert np.isnan(numbers(again, source))[np.isnan(values)].all()


def test_widening_is_what_the_formats_say() -> None:
    wide = {(source.label, target.label) for source, target in PAIRS if source is not target and widens(source, target)}
    assert {("F16", "F32"), ("BF16", "F32"), ("F32", "F64"), ("F8_E4M3", "F16"), ("F8_E5M2", "BF16")} <= wide
    assert not {("F16", "BF16"), ("BF16", "F16"), ("F32", "F16"), ("F64", "F32"), ("F8_E4M3", "F8_E5M2")} & wide


def test_a_cast_knows_its_inverse() -> None:
    assert Cast(DType.F32, DType.F16).inverse() == Cast(DType.F16, DType.F32)
    assert isinstance(Cast(DType.F32).inverse(), OneWay)
    assert Cast(DType.F32, DType.F16).exactness == "exact"
    assert Cast(DType.F16, DType.F32).exactness == "approximate"
    assert Cast(DType.F16).exactness == "one-way"
    for cast in (Cast(DType.F16), Cast(DType.F16, DType.BF16)):
        assert operation_from_json(operation_to_json(cast)) == cast
    assert Cast(DType.F16).output_dtype(DType.F16) is DType.F16
    with pytest.raises(CoverageError):
        Cast(DType.F16).output_dtype(DType.I64)


# --- fills -------------------------------------------------------------------------------------------------------

FILLED = [
    "BOOL",
    "U8",
    "I8",
    "U16",
    "I16",
    "I32",
    "U32",
    "I64",
    "U64",
    "F16",
    "BF16",
    "F32",
    "F64",
    "F8_E4M3",
    "F8_E5M2",
]


@pytest.mark.parametrize("label", FILLED)
@pytest.mark.parametrize("value", ["zeros", "ones", "arange"])
def test_fills_are_what_torch_makes(value: str, label: str) -> None:
    dtype = DType[label]
    info = TensorInfo("t", (2,) if label == "BOOL" else (2, 4), dtype)
    assert Fill(value).refusal(info) is None
    raw = Fill(value).generate(info, 0, info.size)
    makers = {"zeros": torch.zeros, "ones": torch.ones, "arange": torch.arange}
    expected = makers[value](info.size).to(to_torch(dtype))
    assert np.array_equal(raw, as_raw(expected))


@pytest.mark.parametrize("label", ["F64", "F32", "F16", "BF16"])
def test_sinusoidal_positions(label: str) -> None:
    dtype = DType[label]
    info = TensorInfo("pe", (50, 1, 7), dtype)
    found = as_torch(Fill("sinusoidal").generate(info, 0, info.size), dtype).reshape(info.shape).double()
    for position, feature in itertools.product(range(50), range(7)):
        angle = position / 10_000 ** ((feature - feature % 2) / 7)
        wanted = math.cos(angle) if feature % 2 else math.sin(angle)
        assert abs(found[position, 0, feature].item() - wanted) <= max(torch.finfo(to_torch(dtype)).eps, 1e-14)


@pytest.mark.parametrize("value", VALUES)
def test_a_fill_may_be_made_in_parts_and_recognises_itself(value: str) -> None:
    info = TensorInfo("t", (6, 5), DType.F32)
    fill = Fill(value)
    whole = fill.generate(info, 0, 30)
    assert np.array_equal(np.concatenate([fill.generate(info, 0, 7), fill.generate(info, 7, 30)]), whole)
    assert fill.differs(whole, info, 0) is None
    assert fill.differs(whole[11:], info, 11) is None
    wrong = whole.copy()
    wrong[17] = np.float32(3.75).view(np.uint32)
    assert fill.differs(wrong, info, 0) == 17
    assert fill.differs(wrong[11:], info, 11) == 17
    wrong[17] = np.float32(np.nan).view(np.uint32)
    assert fill.differs(wrong, info, 0) == 17
    assert generator_from_json(fill.to_json()) == fill


def test_positions_that_a_model_computed_in_float32_are_recognised() -> None:
    info = TensorInfo("pe", (5000, 64), DType.F32)
    position = torch.arange(5000).unsqueeze(1)
    rates = torch.exp(torch.arange(0, 64, 2) * (-math.log(10000.0) / 64))
    made = torch.zeros(5000, 64)
    made[:, 0::2], made[:, 1::2] = torch.sin(position * rates), torch.cos(position * rates)
    assert Fill("sinusoidal").differs(as_raw(made.reshape(-1)), info, 0) is None
    half = TensorInfo("pe", (5000, 64), DType.F16)
    assert Fill("sinusoidal").differs(as_raw(made.half().reshape(-1)), half, 0) is None
    made[4000, 3] += 0.01
    assert Fill("sinusoidal").differs(as_raw(made.reshape(-1)), info, 0) == 4000 * 64 + 3
