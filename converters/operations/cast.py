"""`cast`: the same values in another floating dtype."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, ClassVar

from msgspec import Struct

from converters.errors import CoverageError, SpecError, WeightmapError
from converters.operations import OneWay
from converters.operations.numeric import ARITHMETIC, are_lost, decode, encode, fit
from converters.tensor_info import DType, parse_dtype

if TYPE_CHECKING:
    from converters.operations import Array
    from converters.operations.options import Options

TABLE_BITS = 16
"""Values of at most so many bits are cast by a table of all of them: 512 KB at most, made once for a pair of dtypes."""

MANY = 16
"""One of so many values that have to be looked up: then it is faster to look up all of them."""

# Mantissa and exponent bits; a wider dtype in both holds every value of the narrower one.
_BITS = {
    DType.F64: (52, 11),
    DType.F32: (23, 8),
    DType.F16: (10, 5),
    DType.BF16: (7, 8),
    DType.F8_E4M3: (3, 4),
    DType.F8_E5M2: (2, 5),
}


def widens(source: DType, target: DType) -> bool:
    """Whether every value of `source` is a value of `target`."""
    if source not in _BITS or target not in _BITS:
        return source is target
    return all(wide >= narrow for wide, narrow in zip(_BITS[target], _BITS[source], strict=True))


def parse_cast_dtype(text: str | None) -> DType | None:
    """The dtype that a blanket cast is asked for by; None for none.

    Raises:
        WeightmapError: there is no such dtype, or values can't be cast to it.
    """
    if text is None:
        return None
    try:
        dtype = parse_dtype(text)
    except ValueError as error:
        raise WeightmapError(str(error)) from None
    check_castable(dtype)
    return dtype


def check_castable(dtype: DType) -> None:
    """Refuse a dtype that values can't be cast to: integers, masks, and blocks that need scales.

    Raises:
        WeightmapError: it is one of those.
    """
    if dtype not in ARITHMETIC:
        names = ", ".join(sorted(known.label for known in ARITHMETIC))
        raise WeightmapError(f"values can't be cast to {dtype}; there are: {names}")


def _only_loses_mantissa(source: DType, target: DType) -> bool:
    """Whether values of 16 bits are cast to others of 16 bits that have fewer of mantissa, and more of exponent."""
    if source not in _BITS or target not in _BITS or not source.bits == target.bits == TABLE_BITS:
        return False
    return _BITS[target] < _BITS[source]


def _shifted(raw: Array, source: DType, target: DType) -> Array:
    """The cast where `_only_loses_mantissa` holds: by shifts and sums, in three quarters of the time of a table.

    Zero, what is smaller than a normal number, infinity and NaN are looked up.
    """
    import numpy as np

    (mantissa, exponent), (kept, wider) = _BITS[source], _BITS[target]
    drop = mantissa - kept
    rounded: Array = np.empty(raw.shape, np.uint16)
    # An exponent of all zeros or all ones, plus one, is at most one in as many bits.
    np.add(raw, np.uint16(1 << mantissa), out=rounded)
    rounded &= np.uint16(((1 << exponent) - 2) << mantissa)
    special = np.equal(rounded, 0)
    count = np.count_nonzero(special)
    if count * MANY > raw.size:
        del rounded, special
        return _table(source, target)[0].take(raw, mode="wrap")
    # To nearest, and ties to even: half a unit less one is added, and one more where the last bit that stays is odd. A
    # carry goes on into the exponent, where it belongs.
    np.right_shift(raw, np.uint16(drop), out=rounded)
    rounded &= np.uint16(1)
    rounded += raw
    rounded += np.uint16((1 << (drop - 1)) - 1)
    signed = rounded.view(np.int16)
    signed >>= np.int16(drop)  # copies of the sign come in from above
    rounded &= np.uint16((1 << 15) | ((1 << (exponent + kept)) - 1))
    rounded += np.uint16(((1 << (wider - 1)) - (1 << (exponent - 1))) << kept)
    if count:
        places = special.nonzero()
        rounded[places] = _table(source, target)[0].take(raw[places])
    return rounded


@cache
def _table(source: DType, target: DType) -> tuple[Array, Array | None]:
    """What each bit pattern of `source` becomes, and which have no counterpart; None where all have one.

    Looking a value up takes a tenth of the time that numpy and ml_dtypes take to compute it from 16 bits.
    """
    import numpy as np

    patterns = np.arange(1 << source.bits, dtype=f"u{source.bits // 8}")
    values = decode(patterns, source)
    table = encode(values, target)
    lost = are_lost(values, table, target)
    return table, lost if lost.any() else None


class Cast(Struct, frozen=True):
    """Cast to `target`; `source`, where the spec names it, is what the way back casts to."""

    name: ClassVar[str] = "cast"

    target: DType
    source: DType | None = None

    @property
    def exactness(self) -> str:
        if self.source is None:
            return "one-way"
        return "exact" if widens(self.source, self.target) else "approximate"

    def inverse(self) -> Cast | OneWay:
        if self.source is None:
            return OneWay(
                f"'cast: {self.target}' doesn't say what the source's dtype was; "
                f"write 'cast: {{from: F16, to: {self.target}}}' with the dtype to go back to"
            )
        return Cast(self.source, self.target)

    def output_dtype(self, dtype: DType) -> DType:
        if self.source is not None and dtype is not self.source:
            raise CoverageError(f"the cast is from {self.source}, but the tensor is {dtype}")
        if dtype is not self.target and (dtype not in ARITHMETIC or self.target not in ARITHMETIC):
            raise CoverageError(f"there is no cast from {dtype} to {self.target}: only floating dtypes are cast")
        return self.target

    def apply(self, raw: Array, dtype: DType, name: str) -> Array:
        if dtype is self.target:
            return raw
        if _only_loses_mantissa(dtype, self.target):
            return _shifted(raw, dtype, self.target)
        if dtype.bits <= TABLE_BITS:
            table, lost = _table(dtype, self.target)
            if lost is None or not lost[raw].any():
                return table.take(raw, mode="wrap")
        values = decode(raw, dtype)
        return encode(values, self.target) if widens(dtype, self.target) else fit(values, self.target, name)

    def options(self) -> dict[str, object]:
        return {"to": self.target.label, **({"from": self.source.label} if self.source else {})}

    @classmethod
    def from_options(cls, options: Options) -> Cast:
        target, source = options.dtype("to"), options.dtype("from")
        if target is None:
            raise SpecError("cast: 'to' is missing: the dtype to cast to", None, "write {from: F16, to: F32}")
        return cls(target, source)
