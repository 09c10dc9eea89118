"""Comparing bytes as a conversion makes them with those of a checkpoint, and counting how they differ."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from converters.operations import Generator
from converters.operations.numeric import ARITHMETIC, decode, encode, raw_dtype
from converters.storage.base import CheckpointReader
from converters.tensor_info import DType, TensorInfo

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

CHUNK: Final = 1 << 20
"""Bytes that are read back and compared at once: small enough for the cache."""

CLOSE_LOOK: Final = 1 << 16
"""Elements that are looked at one by one at once, where a chunk differs."""

MEMORY_PER_THREAD: Final = CHUNK + 160 * CLOSE_LOOK
"""Bytes that comparing takes beside the bytes that it is given."""


_UNORDERED: Final = (1 << 32) - 1
"""The distance between a number and NaN, in ULPs: more than is ever allowed."""


@dataclass(frozen=True, slots=True)
class Pair:
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


@dataclass(slots=True)
class Difference:
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


@dataclass(slots=True)
class Comparison:
    """A sink for the jobs of a plan that compares what they make with what a reader holds.

    Attributes:
        reader: of the stored side.
        pairs: by the name of the made tensor.
        made_is_expected: whether what is made is right, and the stored side is being verified; else the other way.
        found: the tensors that differ, by the name of the made tensor.
        compared: bytes that were compared so far, by the name of the made tensor.
    """

    reader: CheckpointReader
    pairs: Mapping[str, Pair]
    made_is_expected: bool
    found: dict[str, Difference] = field(default_factory=dict)
    compared: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _local: threading.local = field(default_factory=threading.local)

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
            stored = self._buffer((last - first) * stored_width)
            self.reader.read_into(pair.stored.name, (start + first) * stored_width, memoryview(stored))
            # A byte array compares at memory speed, a memory view one item at a time.
            if made_width == stored_width and stored == made:
                continue
            self._look_at_all(pair, start + first, made, stored)
        self.count(name, len(data))

    def count(self, name: str, nbytes: int) -> None:
        """Take bytes of a made tensor as compared, since they are known to be equal."""
        with self._lock:
            self.compared[name] = self.compared.get(name, 0) + nbytes

    def _buffer(self, nbytes: int) -> bytearray:
        """This thread's buffer of just this size, which most often is that of the time before."""
        buffer: bytearray | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) != nbytes:
            buffer = self._local.buffer = bytearray(nbytes)
        return buffer

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
    return raw if dtype is via else encode(decode(raw, dtype), via)


def number(raw: Array, dtype: DType) -> float | int:
    """The value of a single raw element; its bits as a whole number for dtypes without arithmetic."""
    if dtype in ARITHMETIC:
        return float(decode(raw, dtype)[0])
    if dtype.label[0] == "I":
        return int(raw.view(f"i{raw.itemsize}")[0])
    return int(raw[0])


@dataclass(frozen=True, slots=True)
class Distances:
    """How far elements that differ are apart.

    Attributes:
        ulps: of each element; `_UNORDERED` where one side alone is NaN. None for dtypes that have no such distance.
        max_ulps: the largest between numbers.
        max_abs: the largest absolute difference between numbers.
        max_expected: the largest finite absolute value expected.
        nans: elements that are NaN and should not be.
    """

    ulps: Array | None
    max_ulps: int | None = None
    max_abs: float = 0.0
    max_expected: float = 0.0
    nans: int = 0


def measure(expected: Array, found: Array, dtype: DType) -> Distances:
    """Measure raw elements, two by two; that some of them are equal does no harm."""
    import numpy as np

    if dtype not in ARITHMETIC:
        if dtype.bits % 8 or dtype.label[0] not in "IU":
            return Distances(None)
        kind = f"{'i' if dtype.label[0] == 'I' else 'u'}{expected.itemsize}"
        whole, other = (np.asarray(raw.view(kind), dtype=np.float64) for raw in (expected, found))
        return Distances(None, None, float(np.abs(whole - other).max()), float(np.abs(whole).max()))
    wide = np.float32 if dtype.bits <= 16 else np.float64  # noqa: PLR2004 - its differences are exact enough to show
    with np.errstate(all="ignore"):
        wanted: Array = decode(expected, dtype).astype(wide, copy=False)
        got: Array = decode(found, dtype).astype(wide, copy=False)
        apart = np.abs(wanted - got)
        largest, size = float(apart.max()), float(np.abs(wanted).max())
    ulps = _distance(_ordered(expected, dtype), _ordered(found, dtype))
    if np.isfinite(largest) and np.isfinite(size):
        return Distances(ulps, int(ulps.max()), largest, size)
    wanted_nan, got_nan = np.isnan(wanted), np.isnan(got)
    ulps[wanted_nan & got_nan] = 0
    ulps[wanted_nan != got_nan] = _UNORDERED
    numbers = ~(wanted_nan | got_nan)
    finite = np.abs(wanted[np.isfinite(wanted)])
    return Distances(
        ulps,
        int(ulps[numbers].max(initial=0)),
        float(apart[numbers].max(initial=0.0)),
        float(finite.max(initial=0.0)),
        int((got_nan & ~wanted_nan).sum()),
    )


def _ordered(raw: Array, dtype: DType) -> Array:
    """Whole numbers in the order of the floats, so that their difference is the distance in ULPs; -0 and 0 are one.

    Without a branch, which random signs would make slow: a negative float is its magnitude, negated.
    """
    import numpy as np

    bits: Array = raw.view(f"i{raw.itemsize}").astype(np.int32 if dtype.bits <= 16 else np.int64, copy=False)  # noqa: PLR2004
    sign = bits >> (8 * bits.itemsize - 1)
    magnitude = (1 << (dtype.bits - 1)) - 1
    ordered: Array = (bits ^ (sign & magnitude)) - sign
    return ordered


def _distance(first: Array, second: Array) -> Array:
    """Unsigned: the distance of two doubles of different sign doesn't fit a signed number of their width."""
    import numpy as np

    return (np.maximum(first, second) - np.minimum(first, second)).view(f"u{first.itemsize}")
