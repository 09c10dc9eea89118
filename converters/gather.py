"""Reading strided boxes out of a source tensor into a panel in memory."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from converters.schedule import LONG_RUN, SLAB, TILE, TILE_GAP, computed_chunk
from converters.storage.open_files import LocalFile
from converters.storage.safetensors_reader import check_range
from converters.storage.shared_blocks import place_of

if TYPE_CHECKING:
    import numpy as np

    from converters.operations import Elementwise
    from converters.plan import Move
    from converters.strided import StridedCopy
    from converters.tensor_info import TensorInfo

    Array = np.ndarray[Any, np.dtype[Any]]

WORTH_READING_OVER = 4
"""A slab may hold so many times the elements that are wanted from it before reading run by run is better."""

CHEAP_GAP = 16 << 10
"""Bytes between two runs that are read over, whatever their share: copying them costs less than another call."""

MANY_RUNS = 16
"""So many runs to read at once make it worth to look for the file that they are in."""

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


def _span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first of a box to its last, both included."""
    return 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))


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
        if view.flags.c_contiguous and self._is_run(shape, strides):
            if self.operations:
                self._compute(view.reshape(-1), start)
            else:
                self.reader.read_into(self.info.name, start * self.width, memoryview(view.data).cast("B"))
            return
        run = shape[-1] if shape and strides[-1] == 1 else 1
        in_place = run * self.width >= LONG_RUN and not self.operations and view.strides[-1] == view.itemsize
        dense = len(shape) if in_place else self._dense_axis(shape, strides, run)
        read = _span(shape[dense:], strides[dense:])
        if not in_place and math.prod(shape[:dense]) * read <= self.slab_elements:
            self._take(view, start, shape, strides, dense)
            return
        # Too much to read at once: cut along the outermost axis of the source.
        step = 1
        if not in_place:
            inner_span = _span(shape[1:], strides[1:])
            if inner_span <= self.slab_elements and self._is_dense(strides[0], math.prod(shape[1:]), run):
                step = 1 + (self.slab_elements - inner_span) // strides[0]
            else:
                step = max(1, self.slab_elements // (math.prod(shape[1:dense]) * read))
        for first in range(0, shape[0], step):
            part = view[first : first + step]
            if len(part) == 1 and len(shape) > 1:
                self._fill(part[0], start + first * strides[0], shape[1:], strides[1:])
            else:
                self._fill(part, start + first * strides[0], (len(part), *shape[1:]), strides)

    def _dense_axis(self, shape: tuple[int, ...], strides: tuple[int, ...], run: int) -> int:
        """The first axis from which on the elements lie so densely that they are read in one go."""
        for axis in range(len(shape)):
            span = _span(shape[axis:], strides[axis:])
            if span <= self.slab_elements and self._is_dense(span, math.prod(shape[axis:]), run):
                return axis
        return len(shape)

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

    def _take(self, view: Array, start: int, shape: tuple[int, ...], strides: tuple[int, ...], dense: int) -> None:
        """Read what lies within the axes from `dense` on at once, one after the other, and pick the box out of it."""
        import numpy as np
        from numpy.lib.stride_tricks import as_strided

        starts = [start]
        for length, stride in zip(shape[:dense], strides, strict=False):
            starts = [first + index * stride for first in starts for index in range(length)]
        read = _span(shape[dense:], strides[dense:])
        nbytes = read * self.width
        slab = self.slab(len(starts) * nbytes)
        self._read_runs(starts, nbytes, slab)
        inner = tuple(math.prod(shape[axis + 1 : dense]) * read for axis in range(dense))
        elements: Array = np.frombuffer(slab, dtype=f"u{self.width}")
        box = as_strided(elements, shape, tuple(stride * self.width for stride in (*inner, *strides[dense:])))
        assign(view, self._values(np.ascontiguousarray(box)) if self.operations else box)

    def _read_runs(self, starts: Sequence[int], nbytes: int, slab: memoryview) -> None:
        """Read so many bytes from each of these elements on."""
        place = place_of(self.reader, self.info.name) if len(starts) >= MANY_RUNS else None
        file, position = place or (None, 0)
        if not isinstance(file, LocalFile):
            for number, first in enumerate(starts):
                self.reader.read_into(self.info.name, first * self.width, slab[number * nbytes : (number + 1) * nbytes])
            return
        check_range(self.info, max(starts) * self.width, nbytes)
        file.read_runs([position + first * self.width for first in starts], nbytes, slab)

    def _compute(self, target: Array, start: int) -> None:
        """Fill a flat target from a run of the source, a chunk at a time."""
        import numpy as np

        for first in range(0, target.size, self.slab_elements):
            part = target[first : first + self.slab_elements]
            slab = self.slab(part.size * self.width)
            self.reader.read_into(self.info.name, (start + first) * self.width, slab)
            part[...] = self._values(np.frombuffer(slab, dtype=f"u{self.width}"))

    def _values(self, box: Array) -> Array:
        """What the operations make of elements of the source."""
        dtype = self.info.dtype
        for operation in self.operations:
            box = operation.apply(box, dtype, self.info.name)
            dtype = operation.output_dtype(dtype)
        return box


def assign(target: Array, source: Array) -> None:
    """`target[...] = source`, by way of tiles in the cache where the two lie in different memory orders."""
    import numpy as np

    lengths = target.shape
    fast_target, fast_source = _fast_axis(target), _fast_axis(source)
    short, long = sorted((lengths[fast_target], lengths[fast_source])) if lengths else (1, 1)
    if fast_target == fast_source or short <= TILE // 16 or short * long < TILE * TILE // 16:
        target[...] = source
        return
    others = [axis for axis in range(target.ndim) if axis not in (fast_target, fast_source)]
    target, source = (array.transpose(*others, fast_source, fast_target) for array in (target, source))
    # Rows whose distance is a multiple of a large power of two share a few places in the cache; a tile's rows do not.
    room: Array = np.empty((TILE, TILE + TILE_GAP // target.itemsize), target.dtype)
    for plane in np.ndindex(*(lengths[axis] for axis in others)):
        for row in range(0, lengths[fast_target], TILE):
            for column in range(0, lengths[fast_source], TILE):
                index = (*plane, slice(column, column + TILE), slice(row, row + TILE))
                box = source[index].T
                tile = room[: box.shape[0], : box.shape[1]]
                np.copyto(tile, box)
                np.copyto(target[index], tile.T)


def _fast_axis(array: Array) -> int:
    """The axis along which the elements lie closest."""
    axes = [axis for axis in range(array.ndim) if array.shape[axis] > 1]
    return min(axes, key=lambda axis: (array.strides[axis], -axis), default=0)
