"""Strided copies: what every layout rule becomes, and the proof that a set of them covers a tensor.

All counts are in elements, so that one copy serves every dtype and both sides of a cast; the engine multiplies by
the width of an element.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from operator import mul
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

T = TypeVar("T")


class StridedCopy(Struct, frozen=True, gc=False):
    """Move a box of elements from a source to a target.

    Element `x` of `shape` goes from `source_start + x . source_strides` to `target_start + x . target_strides`.
    Axes are sorted by target stride, outermost first, and merged where they are contiguous on both sides.
    """

    shape: tuple[int, ...]
    source_start: int
    source_strides: tuple[int, ...]
    target_start: int
    target_strides: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements moved."""
        return math.prod(self.shape)

    @property
    def is_range(self) -> bool:
        """Whether it moves one contiguous range to one contiguous range, in the same order."""
        return not self.shape or (len(self.shape) == 1 and self.source_strides == (1,) == self.target_strides)

    @property
    def target_span(self) -> int:
        """Elements from the first that it writes to the last, both included."""
        return _span(self.shape, self.target_strides)

    @property
    def source_span(self) -> int:
        """Elements from the first that it reads to the last, both included."""
        return _span(self.shape, self.source_strides)

    @property
    def run(self) -> int:
        """Length of the contiguous runs that it moves unchanged."""
        if self.shape and self.source_strides[-1] == 1 and self.target_strides[-1] == 1:
            return self.shape[-1]
        return 1

    @property
    def source_run(self) -> int:
        """Length of the contiguous runs that it reads, in whatever order they are written."""
        axes = sorted(zip(self.source_strides, self.shape, strict=True))
        run = 1
        for stride, size in axes:
            if stride != run and size != 1:
                break
            run *= size
        return run

    def runs(self) -> Iterator[tuple[int, int]]:
        """Where each of its runs begins in the target, and where in the source."""
        axes = len(self.shape) - (self.run > 1)
        if not axes:
            return iter(((self.target_start, self.source_start),))
        return (
            (
                self.target_start + sum(map(mul, index, self.target_strides)),
                self.source_start + sum(map(mul, index, self.source_strides)),
            )
            for index in product(*map(range, self.shape[:axes]))
        )

    def narrow(self, axis: int, start: int, stop: int) -> StridedCopy:
        """The part of the copy whose coordinate along `axis` is in `[start, stop)`; axes are kept, not merged."""
        shape = (*self.shape[:axis], stop - start, *self.shape[axis + 1 :])
        return replace(
            self,
            shape=shape,
            source_start=self.source_start + start * self.source_strides[axis],
            target_start=self.target_start + start * self.target_strides[axis],
        )

    def swap(self) -> StridedCopy:
        """The copy back: reads what this one writes, and writes what it reads."""
        axes = zip(self.shape, self.target_strides, self.source_strides, strict=True)
        return strided_copy(axes, self.target_start, self.source_start)


def _span(shape: Iterable[int], strides: Iterable[int]) -> int:
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def strided_copy(axes: Iterable[tuple[int, int, int]], source_start: int, target_start: int) -> StridedCopy:
    """A normalized copy from axes `(size, source_stride, target_stride)` in any order.

    Axes of size one vanish; axes are sorted by target stride and merged where both sides are contiguous.
    No axis may have size zero: an empty box is no copy at all.
    """
    kept = sorted((axis for axis in axes if axis[0] != 1), key=lambda axis: (-axis[2], -axis[1]))
    merged: list[tuple[int, int, int]] = []
    for size, source, target in kept:
        if merged:
            outer_size, outer_source, outer_target = merged[-1]
            if outer_source == source * size and outer_target == target * size:
                merged[-1] = (outer_size * size, source, target)
                continue
        merged.append((size, source, target))
    return StridedCopy(
        tuple(axis[0] for axis in merged),
        source_start,
        tuple(axis[1] for axis in merged),
        target_start,
        tuple(axis[2] for axis in merged),
    )


class Box(Struct, frozen=True, gc=False):
    """One side of a copy: the elements `start + x . strides`; axes sorted by stride, outermost first."""

    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """Elements from the first to the last, both included."""
        return _span(self.shape, self.strides)


def _box(start: int, shape: Sequence[int], strides: Sequence[int]) -> Box:
    merged: list[tuple[int, int]] = []
    for size, stride in sorted(zip(shape, strides, strict=True), key=lambda axis: -axis[1]):
        if size == 1:
            continue
        if merged and merged[-1][1] == stride * size:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    return Box(start, tuple(axis[0] for axis in merged), tuple(axis[1] for axis in merged))


def target_box(copy: StridedCopy) -> Box:
    """The elements that the copy writes."""
    return _box(copy.target_start, copy.shape, copy.target_strides)


def source_box(copy: StridedCopy) -> Box:
    """The elements that the copy reads."""
    return _box(copy.source_start, copy.shape, copy.source_strides)


def tiles_exactly(boxes: Iterable[Box], size: int) -> bool:
    """Whether the boxes cover the elements 0..size-1, each exactly once.

    A proof, not a count: the elements are cut into stretches that no box straddles. A stretch of one box must be dense.
    Boxes of a stretch that share their outermost axis are proved on its first slice, which stands for all of them;
    others are cut into windows as long as the largest stride, and each distinct window is proved.
    """
    return _tile(list(boxes), 0, size)


def _tile(boxes: list[Box], start: int, stop: int) -> bool:
    reached = start
    for stretch in stretches(boxes, key=lambda box: (box.start, box.span)):
        first = stretch[0]
        if first.start != reached:
            return False
        if len(stretch) == 1:
            if math.prod(first.shape) != first.span:
                return False
            reached += first.span
            continue
        outer = {(box.shape[0], box.strides[0]) if box.shape else (1, 0) for box in stretch}
        count, stride = max(outer, key=lambda axis: axis[1])
        if stride == 0:
            return False  # two boxes of one element each, on the same element
        if len(outer) == 1:
            inner = [Box(box.start, box.shape[1:], box.strides[1:]) for box in stretch]
            if not _tile(inner, reached, reached + stride):
                return False
            reached += count * stride
            continue
        end = max(box.start + box.span for box in stretch)
        if not _tile_windows(stretch, reached, end, stride):
            return False
        reached = end
    return reached == stop


def _tile_windows(boxes: list[Box], start: int, stop: int, length: int) -> bool:
    proved: set[tuple[int, tuple[Box, ...]]] = set()
    for window in range(start, stop, length):
        end = min(window + length, stop)
        inside: list[Box] = []
        for box in boxes:
            cut = _cut(box, window, end)
            if cut is None:
                return False
            inside.extend(_box(part.start - window, part.shape, part.strides) for part in cut)
        case = (end - window, tuple(sorted(inside, key=lambda box: (box.start, box.shape, box.strides))))
        if case not in proved and not _tile(list(case[1]), 0, case[0]):
            return False
        proved.add(case)
    return True


def _cut(box: Box, start: int, stop: int) -> list[Box] | None:
    """The part of a box inside a window: nothing, or one box; None where a slice straddles the window's edge."""
    indices = indices_within(box.shape, box.strides, box.start, start, stop)
    if indices is None:
        return None
    first, last = indices
    if first == last:
        return []
    if not box.shape:
        return [box]
    return [Box(box.start + first * box.strides[0], (last - first, *box.shape[1:]), box.strides)]


def indices_within(
    shape: Sequence[int], strides: Sequence[int], origin: int, start: int, stop: int
) -> tuple[int, int] | None:
    """Which indices `[first, last)` of the outermost axis lie in the window `[start, stop)`.

    Returns:
        An empty range where none do; None where one lies in it only in part.
    """
    count, stride = (shape[0], strides[0]) if shape else (1, 1)
    inner = _span(shape[1:], strides[1:])
    # The first slice that ends after the window's start, and the first that starts at or after its end.
    first = min(max(0, -((origin + inner - 1 - start) // stride)), count)
    last = min(max(0, -((origin - stop) // stride)), count)
    if first >= last:
        return first, first
    if origin + first * stride < start or origin + (last - 1) * stride + inner > stop:
        return None
    return first, last


def stretches(items: Iterable[T], key: Callable[[T], tuple[int, int]]) -> list[list[T]]:
    """Group items whose extents `(start, span)` overlap, in order of their starts."""
    groups: list[list[T]] = []
    end = 0
    for item in sorted(items, key=lambda item: key(item)[0]):
        start, span = key(item)
        if groups and start < end:
            groups[-1].append(item)
        else:
            groups.append([item])
        end = max(end, start + span)
    return groups
