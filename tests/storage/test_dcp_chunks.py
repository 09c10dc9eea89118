"""The geometry of chunks, against numpy's indexing."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from converters.storage.dcp_chunks import Chunk, tiling_fault

Shape = tuple[int, ...]


@st.composite
def boxes(draw: st.DrawFn) -> tuple[Shape, Chunk]:
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=4)))
    offsets = tuple(draw(st.integers(0, size - 1)) for size in shape)
    sizes = tuple(draw(st.integers(1, size - offset)) for size, offset in zip(shape, offsets, strict=True))
    return shape, Chunk(offsets, sizes)


def positions(shape: Shape, chunk: Chunk) -> list[int]:
    """Where each element of the chunk is in the tensor."""
    index: Any = tuple(slice(offset, offset + size) for offset, size in zip(chunk.offsets, chunk.sizes, strict=True))
    return [int(one) for one in np.arange(prod(shape)).reshape(shape)[index].reshape(-1)]


@given(boxes(), st.data())
def test_count_before(box: tuple[Shape, Chunk], data: st.DataObject) -> None:
    shape, chunk = box
    position = data.draw(st.integers(0, prod(shape)))
    assert chunk.count_before(shape, position) == sum(each < position for each in positions(shape, chunk))


@given(boxes(), st.data())
def test_runs(box: tuple[Shape, Chunk], data: st.DataObject) -> None:
    shape, chunk = box
    first = data.draw(st.integers(0, chunk.size))
    last = data.draw(st.integers(first, chunk.size))
    found = [
        (at + step, position + step)
        for at, position, length in chunk.runs(shape, first, last)
        for step in range(length)
    ]
    assert found == list(enumerate(positions(shape, chunk)))[first:last]


def test_runs_are_as_long_as_they_can_be() -> None:
    assert list(Chunk((1, 0), (2, 5)).runs((4, 5), 0, 10)) == [(0, 5, 10)]
    assert list(Chunk((0, 1), (2, 3)).runs((2, 5), 0, 6)) == [(0, 1, 3), (3, 6, 3)]
    assert list(Chunk((0, 1, 0), (2, 1, 3)).runs((2, 2, 3), 0, 6)) == [(0, 3, 3), (3, 9, 3)]


@st.composite
def tilings(draw: st.DrawFn) -> tuple[Shape, list[Chunk]]:
    """A shape, cut into a grid of chunks, in any order."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    chunks = [Chunk((), ())]
    for size in shape:
        cuts = [0, *sorted(draw(st.sets(st.integers(1, size - 1), max_size=2)) if size > 1 else ()), size]
        ranges = list(pairwise(cuts))
        chunks = [
            Chunk((*chunk.offsets, start), (*chunk.sizes, stop - start)) for chunk in chunks for start, stop in ranges
        ]
    return shape, draw(st.permutations(chunks))


@given(tilings(), st.data())
def test_tilings_are_told_from_others(tiling: tuple[Shape, list[Chunk]], data: st.DataObject) -> None:
    shape, chunks = tiling
    assert tiling_fault(shape, chunks) is None
    victim = data.draw(st.integers(0, len(chunks) - 1))
    assert "elements" in (tiling_fault(shape, chunks[:victim] + chunks[victim + 1 :]) or "")
    assert "overlap" in (tiling_fault(shape, [*chunks, chunks[victim]]) or "")
    axis = data.draw(st.integers(0, len(shape) - 1))
    moved = list(chunks[victim].offsets)
    moved[axis] += data.draw(st.sampled_from([-1, 1])) if moved[axis] else 1
    wrong = [*chunks[:victim], Chunk(tuple(moved), chunks[victim].sizes), *chunks[victim + 1 :]]
    assert tiling_fault(shape, wrong) is not None


def test_what_is_no_part_of_the_tensor() -> None:
    assert tiling_fault((), [Chunk((), ())]) is None
    assert "overlap" in (tiling_fault((), [Chunk((), ()), Chunk((), ())]) or "")
    assert "0 of its 1 elements" in (tiling_fault((), []) or "")
    assert tiling_fault((0, 3), []) is None
    assert "no part of shape [2]" in (tiling_fault((2,), [Chunk((0, 0), (2, 1))]) or "")
    assert "no part of shape [2]" in (tiling_fault((2,), [Chunk((), (2,))]) or "")
    assert "no part of shape [2]" in (tiling_fault((2,), [Chunk((1,), (2,))]) or "")
