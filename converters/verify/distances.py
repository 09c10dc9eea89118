"""How far elements that differ are apart: absolutely, and in units in the last place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from converters.operations.numeric import ARITHMETIC, decode
from converters.tensor_info import DType

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

_UNORDERED: Final = (1 << 32) - 1
"""The distance between a number and NaN, in ULPs: more than is ever allowed."""


def number(raw: Array, dtype: DType) -> float | int:
    """The value of a single raw element; its bits as a whole number for dtypes without arithmetic."""
    if dtype in ARITHMETIC:
        return float(decode(raw, dtype)[0])
    if dtype.label[0] == "I":
        return int(raw.view(f"i{raw.itemsize}")[0])
    return int(raw[0])


class Distances(Struct, frozen=True):
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
