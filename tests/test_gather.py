"""Gathering strided boxes into a panel, whichever way they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from converters import gather
from converters.gather import Gatherer, assign
from converters.plan import Move
from converters.storage.checkpoint import open_checkpoint
from converters.strided import StridedCopy, strided_copy
from converters.tensor_info import DType, TensorInfo
from tests.memory_checkpoint import MemoryReader
from tests.test_strided import Axes, permutations


def reader_of(size: int) -> MemoryReader:
    info = TensorInfo("w", (size,), DType.I16)
    return MemoryReader({"w": info}, {"w": np.arange(size, dtype=np.int16).tobytes()})


@settings(max_examples=300)
@given(
    permutations(),
    st.integers(1, 5),
    st.sampled_from([1, 4, 32, 4096]),
    st.sampled_from([2, 8, 64]),
    st.sampled_from([1, 2, 4]),
)
def test_panels_hold_the_box(case: tuple[Axes, int, int], inner: int, slab: int, run: int, over: int) -> None:
    axes, source, target = case
    # Gaps in the source: every element becomes the first of `inner`.
    copy = strided_copy([(size, read * inner, write) for size, read, write in axes], source, target)
    size = copy.source_start + copy.source_span
    panel = np.full(copy.size, 0xFFFF, np.uint16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather, "SLAB", slab)
        patch.setattr(gather, "LONG_RUN", run)
        patch.setattr(gather, "WORTH_READING_OVER", over)
        patch.setattr(gather, "CHEAP_GAP", 0)
        patch.setattr(gather, "TILE", 4)
        reader = reader_of(size)
        Gatherer(reader, reader.tensors["w"], (), 2).fill(panel, copy.target_start, Move(0, copy))
    expected = np.full(copy.size, -1, np.int16)
    for at in np.ndindex(*copy.shape):
        read = copy.source_start + sum(i * stride for i, stride in zip(at, copy.source_strides, strict=True))
        write = sum(i * stride for i, stride in zip(at, copy.target_strides, strict=True))
        expected[write] = read
    assert np.array_equal(panel.view(np.int16), expected)


@pytest.mark.parametrize("start", [0, 3])
def test_a_box_may_not_reach_out_of_its_panel(start: int) -> None:
    copy = StridedCopy((4, 2), 0, (2, 1), 2, (1, 4))
    reader = reader_of(8)
    with pytest.raises(AssertionError, match="reaches out of its panel"):
        Gatherer(reader, reader.tensors["w"], (), 2).fill(np.zeros(7, np.uint16), start, Move(0, copy))


@given(st.permutations(range(3)), st.permutations(range(3)), st.tuples(*[st.integers(1, 20)] * 3))
def test_tiles_change_nothing(one: list[int], other: list[int], shape: tuple[int, int, int]) -> None:
    values = np.arange(np.prod(shape)).reshape([shape[axis] for axis in one]).transpose(np.argsort(one))
    target = np.zeros([shape[axis] for axis in other], int).transpose(np.argsort(other))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather, "TILE", 4)
        assign(target, values)
    assert np.array_equal(target, values)


def test_runs_far_apart_are_read_one_by_one_and_taken_apart_together() -> None:
    rows, columns = 300, 40_000
    reader = reader_of(rows * columns)
    copy = strided_copy([(rows, columns, 1), (70, 1, rows)], 11, 0)
    panel = np.zeros(copy.size, np.uint16)
    Gatherer(reader, reader.tensors["w"], (), 2).fill(panel, 0, Move(0, copy))
    source = np.arange(rows * columns, dtype=np.int16).reshape(rows, columns)
    assert np.array_equal(panel.view(np.int16).reshape(70, rows), source[:, 11:81].T)


def test_many_runs_of_a_file_are_read_by_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = 300, 40_000
    source = np.random.default_rng(0).integers(0, 1 << 16, (rows, columns)).astype(np.uint16)
    save_file({"before": np.zeros(7, np.uint8), "w": source}, tmp_path / "model.safetensors")
    copy = strided_copy([(rows, columns, 1), (70, 1, rows)], 11, 0)
    panel = np.zeros(copy.size, np.uint16)
    with open_checkpoint(tmp_path) as reader:
        monkeypatch.setattr(type(reader), "read_into", None)  # it takes none of the long way
        Gatherer(reader, reader.tensors["w"], (), 2).fill(panel, 0, Move(0, copy))
    assert np.array_equal(panel.reshape(70, rows), source[:, 11:81].T)


@pytest.mark.parametrize("shape", [(300, 700), (513, 3, 257), (2, 300, 40), (70, 1, 70)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint64])
def test_tiles_of_their_real_size(shape: tuple[int, ...], dtype: type) -> None:
    values = np.random.default_rng(0).integers(0, 255, shape).astype(dtype)
    target = np.zeros(shape[::-1], dtype).T
    assign(target, values)
    assert np.array_equal(target, values)
