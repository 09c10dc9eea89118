"""`fill`: a target tensor that no source tensor gives, made from its shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from converters.operations.numeric import ARITHMETIC, decode, encode, raw_dtype
from converters.operations.sinusoidal import exact_positions, positions
from converters.tensor_info import DType, TensorInfo

if TYPE_CHECKING:
    from converters.operations import Array

_COUNTING_BITS = {
    DType.BOOL: 1,
    DType.U8: 8,
    DType.U16: 16,
    DType.U32: 32,
    DType.U64: 64,
    DType.I8: 7,
    DType.I16: 15,
    DType.I32: 31,
    DType.I64: 63,
    DType.F8_E4M3: 4,
    DType.F8_E4M3FNUZ: 4,
    DType.F8_E5M2: 3,
    DType.F8_E5M2FNUZ: 3,
    DType.F16: 11,
    DType.BF16: 8,
    DType.F32: 24,
    DType.F64: 53,
}
"""The dtypes that can be filled, and the bits of a number up to which each holds every whole number."""

VALUES = ("zeros", "ones", "arange", "sinusoidal")
"""What a whole tensor can be filled with."""

BLOCK_VALUES = ("zeros", "ones")
"""What a block can be filled with: all of its elements are the same, wherever they lie."""


class Fill(Struct, frozen=True):
    """Fill with `zeros`, `ones`, `arange` (0, 1, 2, ... in row-major order) or `sinusoidal` positions."""

    value: str

    def refusal(self, info: TensorInfo) -> str | None:
        """Why a tensor can't hold these values; None where it can."""
        dtype = info.dtype
        if dtype not in _COUNTING_BITS:
            return f"a tensor of {dtype} can't be filled; there are: {', '.join(map(str, _COUNTING_BITS))}"
        if self.value == "sinusoidal" and (dtype not in ARITHMETIC or not info.shape or 0 in info.shape):
            return "sinusoidal positions are floating numbers, in a tensor of [positions, ..., features]"
        if self.value == "arange" and info.size > 1 << _COUNTING_BITS[dtype]:
            return f"{dtype} doesn't hold every whole number up to {info.size - 1}"
        return None

    def generate(self, info: TensorInfo, start: int, stop: int) -> Array:
        """See `Generator.generate`. `sinusoidal` takes `[positions, ..., features]` with ones between."""
        import numpy as np

        values: Array
        match self.value:
            case "zeros":
                values = np.zeros(stop - start)
            case "ones":
                values = np.ones(stop - start)
            case "arange":
                values = np.arange(start, stop)
            case _:
                # Anything narrower than float32 is rounded by way of it, as torch does it.
                make = exact_positions if info.dtype is DType.F64 else positions
                return encode(make(info.shape[-1], start, stop), info.dtype)
        if info.dtype in ARITHMETIC:
            return encode(values.astype(np.float64), info.dtype)
        signed = "i" if info.dtype.label[0] == "I" else "u"
        return values.astype(f"{signed}{info.dtype.bits // 8}").view(raw_dtype(info.dtype))

    def differs(self, raw: Array, info: TensorInfo, start: int) -> int | None:
        import numpy as np

        expected = self.generate(info, start, start + raw.size)
        places = np.flatnonzero(raw != expected)
        if places.size and self.value == "sinusoidal":
            # A model that computes its positions in float32 carries an error that grows with the angle.
            position = (start + places) // info.shape[-1]
            width = {"F64": 2.0**-23, "F32": 2.0**-23, "F16": 2.0**-10}.get(info.dtype.label, 2.0**-7)
            allowed = width + (position + 1) * 2.0**-21
            found, wanted = (decode(bits[places], info.dtype).astype(np.float64) for bits in (raw, expected))
            places = places[~(np.abs(found - wanted) <= allowed)]
        return start + int(places[0]) if places.size else None

    def to_json(self) -> dict[str, object]:
        return {"operation": "fill", "value": self.value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fill:
        return cls(data["value"])
