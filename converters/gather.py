"""Reading strided boxes out of a source tensor into a panel in memory."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from converters.schedule import LONG_RUN, SLAB, computed_chunk

if TYPE_CHECKING:
    import numpy as np

    from converters.operations import Elementwise
    from converters.plan import Move
    from converters.strided import StridedCopy
    from converters.tensor_info import TensorInfo

    Array = np.ndarray[Any, np.dtype[Any]]

WORTH_READING_OVER = 4
"""A slab may hold so many times the elements that are wanted from it before reading run by run is better."""

CHEAP_GAP = 64 << 10
"""Bytes between two runs that are read over, whatever their share: copying them costs less than another call."""

TILE = 128
"""Side of the square tiles, in elements, in which two memory orders are reconciled: two tiles fit in the L1 cache."""

_local = threading.local()


def _slab(nbytes: int) -> memoryview:
    """This thread's read buffer, kept from job to job so that its pages are touched once."""
    buffer: bytearray | None = getattr(_local, "slab", None)
    if buffer is None or len(buffer) < nbytes:
        buffer = bytearray(nbytes)
        _local.slab = buffer
    return memoryview(buffer)[:nbytes]


class SourceReader(Protocol):
    """Where a gatherer reads: a `CheckpointReader`, or what it is made of."""

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of a source from `offset` on."""
        ...


def _box_of(panel: Array, panel_start: int, copy: StridedCopy, order: Sequence[int]) -> Array:
    """The elements of a panel that a copy writes, with its axes in this order."""
    from numpy.lib.stride_tricks import as_strided

    if copy.target_start < panel_start or copy.target_start + copy.target_span > panel_start + panel.size:
        raise AssertionError(f"{copy} reaches out of its panel")  # a strided view would write into foreign memory
    shape = tuple(copy.shape[axis] for axis in order)
    strides = tuple(copy.target_strides[axis] * panel.itemsize for axis in order)
    return as_strided(panel[copy.target_start - panel_start :], shape, strides)


def fill_box(panel: Array, panel_start: int, copy: StridedCopy, value: Array) -> None:
    """Write a single value wherever `copy` writes."""
    _box_of(panel, panel_start, copy, range(len(copy.shape)))[...] = value[0]


class Gatherer:
    """Fills a panel from one source tensor, through the operations that its values go through."""

    def __init__(
        self,
        reader: SourceReader,
        info: TensorInfo,
        operations: tuple[Elementwise, ...],
        width: int,
        slab: Callable[[int], memoryview] = _slab,
    ) -> None:
        """`width` is the bytes of a source element as it is moved; `info` describes the source.

        `slab` gives the buffer for what is taken apart; a reader that gathers in turn needs one of its own.
        """
        self.reader = reader
        self.slab = slab
        self.info = info
        self.operations = operations
        self.width = width
        self.slab_elements = computed_chunk(operations) if operations else SLAB // width

    def fill(self, panel: Array, panel_start: int, move: Move) -> None:
        """Copy what `move` brings into `panel`, whose first element is element `panel_start` of the target."""
        copy = move.copy
        order = sorted(range(len(copy.shape)), key=lambda axis: (-copy.source_strides[axis], axis))
        view = _box_of(panel, panel_start, copy, order)
        strides = tuple(copy.source_strides[axis] for axis in order)
        self._fill(view, copy.source_start, view.shape, strides)

    def _fill(self, view: Array, start: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        if self._is_run(shape, strides):
            if not self.operations and view.flags.c_contiguous:
                self.reader.read_into(self.info.name, start * self.width, memoryview(view.data).cast("B"))
                return
            if view.size <= self.slab_elements:
                self._take(view, start, view.size, shape, strides)
                return
        span = 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        run = shape[-1] if strides[-1] == 1 else 1
        run_nbytes = self.width * run
        in_place = run_nbytes >= LONG_RUN and not self.operations and view.strides[-1] == view.itemsize
        if not in_place and span <= self.slab_elements and self._is_dense(span, view.size, run):
            self._take(view, start, span, shape, strides)
            return
        # Too long to read at once, or too sparse: cut along the outermost axis of the source.
        inner_size = math.prod(shape[1:])
        inner_span = span - (shape[0] - 1) * strides[0]
        step = 1
        if not in_place and inner_span <= self.slab_elements and self._is_dense(strides[0], inner_size, run):
            step = 1 + (self.slab_elements - inner_span) // strides[0]
        for first in range(0, shape[0], step):
            part = view[first : first + step]
            if len(part) == 1 and len(shape) > 1:
                self._fill(part[0], start + first * strides[0], shape[1:], strides[1:])
            else:
                self._fill(part, start + first * strides[0], (len(part), *shape[1:]), strides)

    def _is_dense(self, span: int, size: int, run: int) -> bool:
        """Whether `size` elements in runs of `run` are read faster with all of the `span` in which they lie."""
        gap_nbytes = (span - size) * self.width * run // max(size, 1)
        return span <= size * WORTH_READING_OVER or gap_nbytes <= CHEAP_GAP

    @staticmethod
    def _is_run(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
        expected = 1
        for length, stride in zip(reversed(shape), reversed(strides), strict=True):
            if length != 1 and stride != expected:
                return False
            expected *= length
        return True

    def _take(self, view: Array, start: int, span: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        """Read `span` elements at once and pick the box out of them."""
        import numpy as np
        from numpy.lib.stride_tricks import as_strided

        slab = self.slab(span * self.width)
        self.reader.read_into(self.info.name, start * self.width, slab)
        elements: Array = np.frombuffer(slab, dtype=f"u{self.width}")
        box = as_strided(elements, shape, tuple(stride * self.width for stride in strides))
        if self.operations:
            dtype = self.info.dtype
            box = np.ascontiguousarray(box)
            for operation in self.operations:
                box = operation.apply(box, dtype, self.info.name)
                dtype = operation.output_dtype(dtype)
        assign(view, box)


def assign(target: Array, source: Array) -> None:
    """`target[...] = source`, in tiles where the two lie in different memory orders, to stay in the cache."""
    if target.ndim < 2:  # noqa: PLR2004 - one axis has one order
        target[...] = source
        return
    lengths = target.shape
    fast_target = min(
        range(target.ndim), key=lambda axis: (target.strides[axis], -axis) if lengths[axis] > 1 else (1 << 62, 0)
    )
    fast_source = min(
        range(source.ndim), key=lambda axis: (source.strides[axis], -axis) if lengths[axis] > 1 else (1 << 62, 0)
    )
    if fast_target == fast_source or min(lengths[fast_target], lengths[fast_source]) <= TILE // 4:
        target[...] = source
        return
    index: list[slice] = [slice(None)] * target.ndim
    for row in range(0, lengths[fast_target], TILE):
        index[fast_target] = slice(row, row + TILE)
        for column in range(0, lengths[fast_source], TILE):
            index[fast_source] = slice(column, column + TILE)
            target[tuple(index)] = source[tuple(index)]
