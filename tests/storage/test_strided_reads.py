from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.storage import strided_reads
from converters.storage.strided_reads import StridedReads, boxes
from converters.tensor_info import DType, TensorInfo


@st.composite
def strided(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=4)))
    strides = tuple(draw(st.integers(0, 7)) for _ in shape)
    return shape, strides


@given(strided(), st.data())
def test_the_boxes_of_a_range_are_its_elements_in_order(
    layout: tuple[tuple[int, ...], tuple[int, ...]], data: st.DataObject
) -> None:
    shape, strides = layout
    first = data.draw(st.integers(0, prod(shape)))
    last = data.draw(st.integers(first, prod(shape)))
    expected = [sum(i * s for i, s in zip(index, strides, strict=True)) for index in np.ndindex(*shape)][first:last]
    found: list[int] = []
    for start, target, box in boxes(shape, strides, first, last):
        assert target == first + len(found)
        inner = strides[len(strides) - len(box) :]
        found += [start + sum(i * s for i, s in zip(index, inner, strict=True)) for index in np.ndindex(*box)]
    assert found == expected


@pytest.mark.parametrize("ahead", [16, 64, 8 << 20])
@settings(max_examples=60, deadline=None)
@given(layout=strided(), data=st.data(), width=st.sampled_from([DType.U8, DType.BF16, DType.F32, DType.I64]))
def test_any_read_gives_what_numpy_sees(
    ahead: int, layout: tuple[tuple[int, ...], tuple[int, ...]], data: st.DataObject, width: DType
) -> None:
    shape, strides = layout
    itemsize = width.bits // 8
    span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    stored = np.random.default_rng(0).integers(0, 256, span * itemsize, dtype=np.uint8).tobytes()
    view = np.lib.stride_tricks.as_strided(
        np.frombuffer(stored, dtype=f"u{itemsize}"), shape, tuple(stride * itemsize for stride in strides)
    )
    expected = np.ascontiguousarray(view).tobytes()
    info = TensorInfo("t", shape, width)

    def read(position: int, buffer: memoryview) -> None:
        assert 0 <= position <= position + len(buffer) <= len(stored), "read past the tensor's last element"
        buffer[:] = stored[position : position + len(buffer)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strided_reads, "READ_AHEAD", ahead)
        reads = StridedReads()
        for _ in range(4):
            start = data.draw(st.integers(0, len(expected)))
            stop = data.draw(st.integers(start, len(expected)))
            buffer = bytearray(stop - start)
            reads.read_into(read, info, strides, start, memoryview(buffer))
            assert bytes(buffer) == expected[start:stop]


def test_memory_is_bounded_by_what_is_read_ahead() -> None:
    """A transposed tensor is read in order in a few passes, each of which keeps no more than a block."""
    rows, columns = 3000, 1000
    stored = np.arange(rows * columns, dtype=np.uint32)
    largest = 0

    def read(position: int, buffer: memoryview) -> None:
        nonlocal largest
        largest = max(largest, len(buffer))
        buffer[:] = memoryview(stored).cast("B")[position : position + len(buffer)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strided_reads, "READ_AHEAD", 1 << 20)
        reads = StridedReads()
        info = TensorInfo("t", (columns, rows), DType.F32)
        out = bytearray(info.nbytes)
        for offset in range(0, info.nbytes, 50_000):
            part = memoryview(out)[offset : offset + 50_000]
            reads.read_into(read, info, (1, columns), offset, part)
            assert len(reads._local.block) <= 1 << 20
        assert largest <= 2 << 20
        assert len(reads._local.slab) <= 2 << 20
    assert np.frombuffer(out, np.uint32).reshape(columns, rows).T.tobytes() == stored.tobytes()
