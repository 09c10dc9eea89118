"""Tensors that are stored in boxes: whether these make up the tensor, and which part of each a range needs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Final

from msgspec import Struct

MAX_SPLIT_AXES: Final = 8
"""Axes along which a tensor may be cut; meshes of devices have three or four."""

_COMPARED: Final = 300


class Chunk(Struct, frozen=True):
    """A box of a tensor: where it begins along each axis, and its sizes."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.sizes)

    def count_before(self, shape: Sequence[int], position: int) -> int:
        """How many of its elements come before a position of the tensor, both in row-major order."""
        count, left, inner = 0, self.size, prod(shape)
        if position >= inner:
            return left
        for offset, size, length in zip(self.offsets, self.sizes, shape, strict=True):
            inner //= length
            left //= size
            index, position = divmod(position, inner)
            if index < offset:
                return count
            if index >= offset + size:
                return count + size * left
            count += (index - offset) * left
        return count

    def runs(self, shape: Sequence[int], first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Cut its elements `[first, last)`, counted in its own row-major order, where they part in the tensor.

        Yields:
            For each run: its first element in the chunk, its position in the tensor, and its length.
        """
        # From this axis on, the box is as wide as the tensor, but for the first of them.
        axis = len(shape)
        run = 1
        while axis:
            axis -= 1
            run *= self.sizes[axis]
            if self.sizes[axis] != shape[axis]:
                break
        steps = [prod(shape[position + 1 :]) for position in range(len(shape))]
        corner = sum(offset * step for offset, step in zip(self.offsets, steps, strict=True))
        while first < last:
            outer, within = divmod(first, run)
            position = corner + within
            for index in range(axis - 1, -1, -1):
                outer, at = divmod(outer, self.sizes[index])
                position += at * steps[index]
            length = min(run - within, last - first)
            yield first, position, length
            first += length


def tiling_fault(shape: tuple[int, ...], chunks: Sequence[Chunk]) -> str | None:
    """Say why chunks, none of them empty, don't cover a tensor once; None if they do."""
    for chunk in chunks:
        inside = len(chunk.sizes) == len(chunk.offsets) == len(shape) and all(
            offset + size <= length for offset, size, length in zip(chunk.offsets, chunk.sizes, shape, strict=True)
        )
        if not inside:
            return f"its chunk {list(chunk.sizes)} at {list(chunk.offsets)} is no part of shape {list(shape)}"
    covered = sum(chunk.size for chunk in chunks)
    if covered != prod(shape) and _overlap(chunks) is None:
        return f"its chunks have {covered:,} of its {prod(shape):,} elements"
    split = [axis for axis, size in enumerate(shape) if any(chunk.sizes[axis] != size for chunk in chunks)]
    if len(split) > MAX_SPLIT_AXES:
        return f"its chunks cut it along {len(split)} axes; at most {MAX_SPLIT_AXES} are supported"
    if not chunks or _tile(shape, chunks, split):
        return None
    if overlap := _overlap(chunks):
        first, second = overlap
        return f"its chunks at {list(first.offsets)} and {list(second.offsets)} overlap"
    return "its chunks overlap"


def _tile(shape: tuple[int, ...], chunks: Sequence[Chunk], split: Sequence[int]) -> bool:
    """Whether chunks cover a tensor once, in time that grows with their number alone.

    A corner counts 1, or -1 if it is the far end along an odd number of axes. Where chunks meet, theirs cancel out, so
    that those of the whole tensor remain; a gap or an overlap leaves others. Axes along which nothing is split say
    nothing.
    """
    corners: dict[tuple[int, ...], int] = {}
    ends = list(product((0, 1), repeat=len(split)))
    whole = Chunk((0,) * len(shape), shape)
    for chunk, weight in (*((chunk, 1) for chunk in chunks), (whole, -1)):
        for far in ends:
            corner = tuple(chunk.offsets[axis] + chunk.sizes[axis] * end for axis, end in zip(split, far, strict=True))
            corners[corner] = corners.get(corner, 0) + (-weight if sum(far) % 2 else weight)
    return not any(corners.values())


def _overlap(chunks: Sequence[Chunk]) -> tuple[Chunk, Chunk] | None:
    """Two chunks that share an element, to name them; None if there are none, or too many to compare."""
    if len(chunks) > _COMPARED:
        return None
    ordered = sorted(chunks, key=lambda chunk: chunk.offsets[:1])
    open_chunks: list[Chunk] = []
    for chunk in ordered:
        # Only what reaches as far along the first axis can meet it.
        open_chunks = [other for other in open_chunks if _end(other) > chunk.offsets[:1]]
        for other in open_chunks:
            if all(
                max(one, two) < min(one + one_size, two + two_size)
                for one, one_size, two, two_size in zip(
                    other.offsets, other.sizes, chunk.offsets, chunk.sizes, strict=True
                )
            ):
                return other, chunk
        open_chunks.append(chunk)
    return None


def _end(chunk: Chunk) -> tuple[int, ...]:
    # A tensor without axes has one element, which all of its chunks share.
    return (chunk.offsets[0] + chunk.sizes[0],) if chunk.offsets else (1,)
