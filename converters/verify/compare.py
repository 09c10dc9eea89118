"""Comparing bytes as a conversion makes them with those of a checkpoint, and counting how they differ."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from converters.operations import Generator
from converters.operations.cast import TABLE_BITS
from converters.operations.numeric import decode, encode, raw_dtype
from converters.storage.base import CheckpointReader
from converters.tensor_info import DType, TensorInfo
from converters.verify.distances import measure, number
from converters.verify.settled import Equal

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

CHUNK: Final = 256 << 10
"""Bytes that are read and compared at once: those of both sides stay in the L2 cache meanwhile."""

CLOSE_LOOK: Final = 1 << 16
"""Elements that are looked at one by one at once, where a chunk differs."""

MEMORY_PER_THREAD: Final = 2 * CHUNK + 160 * CLOSE_LOOK
"""Bytes that comparing takes beside the bytes that it is given."""


class Pair(Struct, frozen=True):
    """How one made tensor is compared with a stored one of the same shape.

    Attributes:
        made: the tensor as the plan makes it.
        stored: the tensor of the checkpoint that it is compared with; names and dtypes may differ.
        via: both are rounded to this dtype first; None to compare them bit for bit.
        ulps: the distance in units in the last place, of `via` or else of the tensors' dtype, that is allowed;
            None where any is.
        generator: where the tensor is made from nothing: it knows how exact other tools' values are.
    """

    made: TensorInfo
    stored: TensorInfo
    via: DType | None = None
    ulps: int | None = 0
    generator: Generator | None = None

    @property
    def dtype(self) -> DType:
        """The dtype that distances are counted in."""
        return self.via or self.stored.dtype


class Difference(Struct):
    """How a tensor differs so far; positions are of the flattened tensor.

    Attributes:
        differing: elements whose bits differ.
        beyond: those of them that are further away than is allowed.
        first: the first of `beyond`; `last` the last.
        expected_first: the value expected at `first`; `found_first` the value found.
        max_ulps: the largest distance; None for dtypes without one.
        max_abs: the largest absolute difference between numbers; infinite where one of the two is.
        max_expected: the largest absolute value expected, where elements differ.
        nans: elements that are NaN and should not be.
    """

    differing: int = 0
    beyond: int = 0
    first: int | None = None
    last: int | None = None
    expected_first: float | int | None = None
    found_first: float | int | None = None
    max_ulps: int | None = None
    max_abs: float = 0.0
    max_expected: float = 0.0
    nans: int = 0


class Comparison:
    """A sink for the jobs of a plan that compares what they make with what a reader holds.

    Attributes:
        reader: of the stored side.
        pairs: by the name of the made tensor.
        made_is_expected: whether what is made is right, and the stored side is being verified; else the other way.
        found: the tensors that differ, by the name of the made tensor.
        compared: bytes that were compared so far, by the name of the made tensor.
    """

    def __init__(self, reader: CheckpointReader, pairs: Mapping[str, Pair], *, made_is_expected: bool) -> None:
        self.reader = reader
        self.pairs = pairs
        self.made_is_expected = made_is_expected
        self.found: dict[str, Difference] = {}
        self.compared: dict[str, int] = {}
        self._lock = threading.Lock()
        self._local = threading.local()

    def write_from(self, name: str, offset: int, data: memoryview) -> None:
        """Compare bytes of a made tensor, from byte `offset` on, with the stored ones.

        Raises:
            CheckpointError: the stored side can't be read.
        """
        pair = self.pairs[name]
        made_width, stored_width = (max(info.dtype.bits, 8) // 8 for info in (pair.made, pair.stored))
        start, size = offset // made_width, len(data) // made_width
        step = CHUNK // max(made_width, stored_width)
        for first in range(0, size, step):
            last = min(first + step, size)
            made = data[first * made_width : last * made_width]
            stored, view = self._buffer("stored", (last - first) * stored_width)
            self.reader.read_into(pair.stored.name, (start + first) * stored_width, view)
            # A byte array compares at memory speed, a memory view one item at a time.
            if made_width == stored_width and stored == made:
                continue
            self._look_at_all(pair, start + first, made, stored)
        self.count(name, len(data))

    def compare_copied(self, origin: CheckpointReader, same: Equal, passed: Callable[[int], None]) -> None:
        """Compare a stretch of a made tensor that is a plain copy: of what it is copied from, with the stored one.

        Args:
            origin: what the copy would be read from.
            same: what is to be found out; its tensor has the dtype of the stored one.
            passed: called with the number of bytes just compared.

        Raises:
            CheckpointError: one of the sides can't be read.
        """
        pair = self.pairs[same.made]
        width = max(pair.made.dtype.bits, 8) // 8
        for done in range(0, same.nbytes, CHUNK):
            nbytes = min(CHUNK, same.nbytes - done)
            made, made_view = self._buffer("made", nbytes)
            stored, stored_view = self._buffer("stored", nbytes)
            origin.read_into(same.origin, same.origin_start + done, made_view)
            self.reader.read_into(pair.stored.name, same.made_start + done, stored_view)
            if made != stored:
                self._look_at_all(pair, (same.made_start + done) // width, made_view, stored)
            passed(nbytes)
        self.count(same.made, same.nbytes)

    def count(self, name: str, nbytes: int) -> None:
        """Take bytes of a made tensor as compared, since they are known to be equal."""
        with self._lock:
            self.compared[name] = self.compared.get(name, 0) + nbytes

    def _buffer(self, side: str, nbytes: int) -> tuple[bytearray, memoryview]:
        """This thread's buffer for a side, of just this size, which most often is that of the time before."""
        found: tuple[bytearray, memoryview] | None = getattr(self._local, side, None)
        if found is None or len(found[0]) != nbytes:
            buffer = bytearray(nbytes)
            found = buffer, memoryview(buffer)
            setattr(self._local, side, found)
        return found

    def _look_at_all(self, pair: Pair, start: int, made_bytes: memoryview, stored_bytes: bytearray) -> None:
        import numpy as np

        made: Array = np.frombuffer(made_bytes, dtype=raw_dtype(pair.made.dtype))
        stored: Array = np.frombuffer(stored_bytes, dtype=raw_dtype(pair.stored.dtype))
        for inner in range(0, made.size, CLOSE_LOOK):
            self._look(pair, start + inner, made[inner : inner + CLOSE_LOOK], stored[inner : inner + CLOSE_LOOK])

    def _look(self, pair: Pair, start: int, made: Array, stored: Array) -> None:
        import numpy as np

        if pair.via is not None:
            made, stored = (
                _round(raw, info.dtype, pair.via) for raw, info in ((made, pair.made), (stored, pair.stored))
            )
        expected, found = (made, stored) if self.made_is_expected else (stored, made)
        differing = np.flatnonzero(expected != found)
        if differing.size == 0:
            return
        if pair.generator is not None and pair.generator.differs(stored, pair.stored, start) is None:
            return
        if differing.size * 4 > expected.size:  # picking them out would take longer than measuring all
            near = measure(expected, found, pair.dtype)
            ulps = near.ulps[differing] if near.ulps is not None and pair.ulps else None
        else:
            near = measure(expected[differing], found[differing], pair.dtype)
            ulps = near.ulps
        beyond = differing
        if pair.ulps is None:
            beyond = differing[:0]
        elif pair.ulps and ulps is not None:
            beyond = differing[ulps > pair.ulps]
        with self._lock:
            total = self.found.setdefault(pair.made.name, Difference())
            total.differing += int(differing.size)
            total.beyond += int(beyond.size)
            total.nans += near.nans
            total.max_abs = max(total.max_abs, near.max_abs)
            total.max_expected = max(total.max_expected, near.max_expected)
            if near.max_ulps is not None:
                total.max_ulps = max(total.max_ulps or 0, near.max_ulps)
            if beyond.size == 0:
                return
            total.last = max(total.last if total.last is not None else -1, start + int(beyond[-1]))
            index = int(beyond[0])
            if total.first is None or start + index < total.first:
                total.first = start + index
                total.expected_first, total.found_first = (
                    number(raw[index : index + 1], pair.dtype) for raw in (expected, found)
                )


def _round(raw: Array, dtype: DType, via: DType) -> Array:
    if dtype is via:
        return raw
    if dtype.bits > TABLE_BITS:
        return encode(decode(raw, dtype), via)
    rounded: Array = _rounded(dtype, via).take(raw, mode="wrap")
    return rounded


@cache
def _rounded(dtype: DType, via: DType) -> Array:
    """Every value of a dtype, rounded: looking one up takes much less time than computing it."""
    import numpy as np

    return encode(decode(np.arange(1 << dtype.bits, dtype=raw_dtype(dtype)), dtype), via)
