"""Tensors whose elements lie apart in a file, such as transposed views, read as if they followed each other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from math import prod
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np

    from converters.tensor_info import TensorInfo

READ_AHEAD: Final = 8 << 20
"""Bytes of a tensor that a thread gathers at once, and keeps: what lies apart is expensive to visit twice."""

ReadInto = Callable[[int, memoryview], None]
"""Fills a buffer with the bytes from a position on, counted from the tensor's first element."""


class StridedReads:
    """Gathers ranges of strided tensors; keeps one block and one slab for each thread."""

    def __init__(self) -> None:
        self._local = threading.local()

    def read_into(
        self, read: ReadInto, info: TensorInfo, strides: tuple[int, ...], offset: int, buffer: memoryview
    ) -> None:
        """Fill `buffer` with the tensor's bytes, in row-major order, from `offset` on.

        Args:
            read: reads the file, from the tensor's first element on.
            info: the tensor, of whole bytes an element.
            strides: in elements, none of them negative; zero repeats.
            offset: in bytes.
            buffer: bytes to fill.
        """
        local = self._local
        while buffer.nbytes:
            start = offset - offset % READ_AHEAD
            if getattr(local, "held", None) != (info.name, start):
                local.held = local.block = None  # the old block goes before the new one comes
                local.block = self._gather(read, info, strides, start)
                local.held = info.name, start
            block: memoryview = local.block
            count = min(buffer.nbytes, len(block) - (offset - start))
            buffer[:count] = block[offset - start : offset - start + count]
            buffer, offset = buffer[count:], offset + count

    def _gather(self, read: ReadInto, info: TensorInfo, strides: tuple[int, ...], start: int) -> memoryview:
        """The block of the tensor's bytes that begins at `start`."""
        import numpy as np

        width = info.dtype.bits // 8
        first = start // width
        last = min(first + READ_AHEAD // width, info.size)
        panel: np.ndarray[Any, np.dtype[Any]] = np.empty(last - first, dtype=f"u{width}")
        for begin, target, shape in boxes(info.shape, strides, first, last):
            _fill(panel, read, info, self._slab, (begin, target - first, shape, strides[len(strides) - len(shape) :]))
        return memoryview(panel.view("u1").data)

    def _slab(self, nbytes: int) -> memoryview:
        slab: bytearray | None = getattr(self._local, "slab", None)
        if slab is None or len(slab) < nbytes:
            slab = self._local.slab = bytearray(nbytes)
        return memoryview(slab)[:nbytes]


def boxes(
    shape: tuple[int, ...], strides: tuple[int, ...], first: int, last: int
) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Cut the elements `[first, last)` of a row-major order into boxes.

    Yields:
        For each: its first element by `strides`, its first element in row-major order, and its shape, along the
        innermost axes.
    """
    yield from _boxes(shape, strides, first, last, (0, 0))


def _boxes(
    shape: tuple[int, ...], strides: tuple[int, ...], first: int, last: int, origin: tuple[int, int]
) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    start, target = origin
    if first >= last:
        return
    if not shape:
        yield start, target, ()
        return
    inner = prod(shape[1:])
    head, into_head = divmod(first, inner)
    tail, into_tail = divmod(last, inner)

    def slice_at(index: int) -> tuple[int, int]:
        return start + index * strides[0], target + index * inner

    if head == tail:
        yield from _boxes(shape[1:], strides[1:], into_head, into_tail, slice_at(head))
        return
    if into_head:
        yield from _boxes(shape[1:], strides[1:], into_head, inner, slice_at(head))
        head += 1
    if head < tail:
        yield *slice_at(head), (tail - head, *shape[1:])
    if into_tail:
        yield from _boxes(shape[1:], strides[1:], 0, into_tail, slice_at(tail))


class _Source:
    """What a `Gatherer` reads."""

    def __init__(self, read: ReadInto) -> None:
        self._read = read

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        del name  # there is only one
        self._read(offset, buffer)


def _fill(
    panel: np.ndarray[Any, np.dtype[Any]],
    read: ReadInto,
    info: TensorInfo,
    slab: Callable[[int], memoryview],
    box: tuple[int, int, tuple[int, ...], tuple[int, ...]],
) -> None:
    """Gather one box into a panel; an axis of stride zero is read once and repeated."""
    from converters.gather import Gatherer
    from converters.plan import Move
    from converters.strided import strided_copy

    start, target, shape, strides = box
    once = tuple(1 if stride == 0 else size for size, stride in zip(shape, strides, strict=True))
    target_strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    copy = strided_copy(zip(once, strides, target_strides, strict=True), start, target)
    Gatherer(_Source(read), info, (), panel.itemsize, slab).fill(panel, 0, Move(0, copy))
    if once != shape:
        view = panel[target : target + prod(shape)].reshape(shape)
        view[...] = view[tuple(slice(size) for size in once)]
