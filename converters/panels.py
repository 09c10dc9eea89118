"""Cutting what fills a target into contiguous panels, each of which is gathered in memory and written once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from converters.plan import BlockFill, Move
from converters.strided import StridedCopy, indices_within, stretches

Part = Move | BlockFill
"""What fills a part of a target."""


def extent(part: Part) -> tuple[int, int]:
    """Where a part begins in its target, and how far it reaches."""
    return part.copy.target_start, part.copy.target_span


def panels(stretch: Sequence[Part], limit: int) -> Iterator[tuple[int, int, tuple[Part, ...]]]:
    """Cut a stretch into contiguous panels of at most `limit` elements, along the axes that its copies share."""
    start = min(move.copy.target_start for move in stretch)
    stop = max(move.copy.target_start + move.copy.target_span for move in stretch)
    if stop - start <= limit:
        yield start, stop, tuple(stretch)
        return
    outer = {(move.copy.shape[0], move.copy.target_strides[0]) if move.copy.shape else (1, 0) for move in stretch}
    count, stride = max(outer, key=lambda axis: axis[1])
    if len(outer) > 1:
        yield from _window_panels(stretch, start, stop, stride, limit)
        return
    step = max(1, limit // stride)
    for first in range(0, count, step):
        last = min(first + step, count)
        narrowed = [replace(move, copy=move.copy.narrow(0, first, last)) for move in stretch]
        if stride <= limit:
            yield start + first * stride, start + last * stride, tuple(narrowed)
            continue
        inner = [replace(move, copy=_drop_outer(move.copy)) for move in narrowed]
        for group in stretches(inner, key=extent):
            yield from panels(group, limit)


def _window_panels(
    stretch: Sequence[Part], start: int, stop: int, length: int, limit: int
) -> Iterator[tuple[int, int, tuple[Part, ...]]]:
    """The panels of a stretch whose copies don't share an outermost axis, window by window as it was proved."""
    for window in range(start, stop, length):
        inside: list[Part] = []
        for move in stretch:
            copy = move.copy
            indices = indices_within(
                copy.shape, copy.target_strides, copy.target_start, window, min(window + length, stop)
            )
            if indices is None:
                raise AssertionError("coverage was proved, so no copy straddles a window")
            first, last = indices
            if first < last:
                inside.append(replace(move, copy=_narrow_outer(copy, first, last)))
        for group in stretches(inside, key=extent):
            yield from panels(group, limit)


def _narrow_outer(copy: StridedCopy, first: int, last: int) -> StridedCopy:
    if not copy.shape:
        return copy
    narrowed = copy.narrow(0, first, last)
    return _drop_outer(narrowed) if last - first == 1 else narrowed


def _drop_outer(copy: StridedCopy) -> StridedCopy:
    return StridedCopy(
        copy.shape[1:], copy.source_start, copy.source_strides[1:], copy.target_start, copy.target_strides[1:]
    )
