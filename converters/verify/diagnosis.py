"""What probably happened to a tensor that differs: the mistakes that conversions are known for, each tried in turn."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct, field

from converters.errors import WeightmapError
from converters.operations.numeric import ARITHMETIC, decode, encode, raw_dtype
from converters.tensor_info import DType, TensorInfo
from converters.text import printable
from converters.verify.compare import Difference
from converters.verify.contents import Contents, collect
from converters.verify.names import layer_of, part_of
from converters.verify.rows import describe_rearrangement, fingerprints

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

PREFIX: Final = 4096
"""Bytes that decide whether two tensors are worth comparing whole."""

SAMPLE: Final = 1 << 20
"""Bytes, from the first difference on, that value patterns are looked for in."""

_MANTISSA: Final = {DType.F64: 52, DType.F32: 23, DType.F16: 10, DType.BF16: 7, DType.F8_E4M3: 3, DType.F8_E5M2: 2}
_ROUNDINGS: Final = (DType.BF16, DType.F16, DType.F8_E4M3)


class Diagnosis(Struct, frozen=True):
    """What probably happened, in words; and the tensor whose bytes were found, where it is another's."""

    text: str
    other: str | None = None


class Diagnoser(Struct):
    """Looks into tensors that differ; `expected` is right, `found` is being verified."""

    expected: Contents
    found: Contents
    _prefixes: dict[str, bytes] = field(default_factory=dict)

    def diagnose(self, expected_name: str, found_name: str, difference: Difference) -> Diagnosis | None:
        """What happened to one tensor, as far as it can be told; both sides have its shape and dtype."""
        with suppress(WeightmapError):
            info = self.expected.tensors[expected_name]
            if difference.beyond == difference.nans:
                return Diagnosis(
                    f"{difference.nans} elements became NaN" if difference.nans > 1 else "one element became NaN"
                )
            if self._is_zero(info, found_name):
                return Diagnosis("it is all zeros")
            other = self._same_as_another(info, found_name)
            if other is not None:
                return other
            text = self._values(info, expected_name, found_name, difference) or self._rearranged(
                expected_name, found_name
            )
            return Diagnosis(text) if text else None
        return None

    def _is_zero(self, info: TensorInfo, name: str) -> bool:
        """Whether every element is zero, of either sign."""
        import numpy as np

        nonzero = False
        raw = raw_dtype(info.dtype)
        sign_bits = 1 if info.dtype in ARITHMETIC else 0
        magnitude = raw.type((1 << (8 * raw.itemsize - sign_bits)) - 1)

        def take(data: memoryview) -> bool:
            nonlocal nonzero
            nonzero = bool((np.frombuffer(data, dtype=raw) & magnitude).any())
            return not nonzero

        self.found.stream(name, take)
        return not nonzero

    def _same_as_another(self, info: TensorInfo, found_name: str) -> Diagnosis | None:
        """Find the tensors whose right bytes these are: swapped, shifted by a layer, taken twice."""
        prefix = collect(self.found, found_name, 0, PREFIX)
        alike = [
            name
            for name, other in self.expected.tensors.items()
            if name != info.name and other.shape == info.shape and other.dtype is info.dtype
            and self._prefix(name) == prefix
        ]  # fmt: skip
        if not alike:
            return None
        digest = _digest(self.found, found_name)
        same = [name for name in alike if _digest(self.expected, name) == digest]
        if not same:
            return None
        other = min(same, key=lambda name: (part_of(name) != part_of(info.name), _apart(name, info.name)))
        more = f" (and those of {len(same) - 1} more)" if len(same) > 1 else ""
        return Diagnosis(f"it holds the values of {printable(other)}{more}", other)

    def _prefix(self, name: str) -> bytes:
        if name not in self._prefixes:
            self._prefixes[name] = hashlib.blake2b(b"").digest()
            with suppress(WeightmapError):
                self._prefixes[name] = collect(self.expected, name, 0, PREFIX)
        return self._prefixes[name]

    def _values(self, info: TensorInfo, expected_name: str, found_name: str, difference: Difference) -> str | None:
        import numpy as np

        if info.dtype not in ARITHMETIC or difference.first is None:
            return None
        raw = raw_dtype(info.dtype)
        start = difference.first * raw.itemsize
        expected, found = (
            np.frombuffer(collect(contents, name, start, SAMPLE), dtype=raw)
            for contents, name in ((self.expected, expected_name), (self.found, found_name))
        )
        return describe_values(expected, found, info.dtype)

    def _rearranged(self, expected_name: str, found_name: str) -> str | None:
        expected, found = fingerprints(self.expected, expected_name), fingerprints(self.found, found_name)
        return describe_rearrangement(expected, found) if expected is not None and found is not None else None


def _apart(first: str, second: str) -> int:
    layers = layer_of(first), layer_of(second)
    return abs(layers[0] - layers[1]) if layers[0] is not None and layers[1] is not None else 0


def _digest(contents: Contents, name: str) -> bytes:
    digest = hashlib.sha256()

    def take(data: memoryview) -> bool:
        digest.update(data)
        return True

    contents.stream(name, take)
    return digest.digest()


def describe_values(expected: Array, found: Array, dtype: DType) -> str | None:
    """Say what one arithmetic step makes the one of the other: a rounding, a constant added, a factor, a sign."""
    import numpy as np

    with np.errstate(all="ignore"):
        wanted, got = (decode(raw, dtype).astype(np.float64) for raw in (expected, found))
        if np.array_equal(wanted, got):
            return "only the signs of zeros differ"
        for narrow in _ROUNDINGS:
            if _MANTISSA[narrow] < _MANTISSA.get(dtype, 0):
                rounded = encode(decode(encode(decode(expected, dtype), narrow), narrow), dtype)
                if np.array_equal(rounded, found):
                    return f"it was rounded to {narrow} and back"
        if np.array_equal(-wanted, got):
            return "every value has the other sign"
        differing = wanted != got
        wanted, got = wanted[differing], got[differing]
        if not got.any():
            return f"{got.size} values in a row are zero" if got.size > 1 else "the value is zero"
        if wanted.size < 2 or not np.isfinite(wanted).all() or not np.isfinite(got).all():  # noqa: PLR2004 - one is chance
            return None
        return _constant(wanted, got, 2.0 ** -_MANTISSA.get(dtype, 2))


def _constant(wanted: Array, got: Array, precision: float) -> str | None:
    import numpy as np

    room = 2 * precision * np.maximum(np.abs(wanted), np.abs(got))
    if np.ptp(wanted) > 4 * precision * np.abs(wanted).max():
        added = float(np.median(got - wanted))
        if (np.abs(got - wanted - added) <= room + 2 * precision * abs(added)).all():
            return f"{added:+.6g} was added to {wanted.size} values in a row"
        factor = float(np.median(got / np.where(wanted == 0, np.inf, wanted)))
        if factor and (np.abs(got - factor * wanted) <= 2 * room).all():
            return f"{wanted.size} values in a row were multiplied by {factor:.6g}"
    return None
