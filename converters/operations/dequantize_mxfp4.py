"""`dequantize_mxfp4`: two 4-bit numbers in each byte, and a power of two for each block of them.

Formats: OCP Microscaling Formats (MX) 1.0, FP4 E2M1 for the numbers and E8M0 for the scales; the first number of a
byte is in its lower half.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from msgspec import Struct

from converters.errors import CheckpointError, CoverageError, SpecError
from converters.operations import OneWay
from converters.operations.numeric import fit
from converters.tensor_info import DType, TensorInfo
from converters.text import printable

if TYPE_CHECKING:
    from converters.operations import Array, Reduction, TensorInput
    from converters.operations.options import Options

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_EXPONENT_BIAS = 127
_NAN_SCALE = 255


class DequantizeMxfp4(Struct, frozen=True):
    """Bytes [..., groups, b] and scales [..., groups] to numbers [..., groups * 2b], in `dtype`."""

    name: ClassVar[str] = "dequantize_mxfp4"
    exactness: ClassVar[str] = "one-way"
    inputs: ClassVar[tuple[str, ...]] = ("blocks", "scales")
    over: ClassVar[str | None] = None

    dtype: DType = DType.BF16

    def inverse(self) -> OneWay:
        return OneWay("the rounding to 4 bits isn't kept: quantizing again would make other blocks")

    def output(self, inputs: Sequence[TensorInfo]) -> TensorInfo:
        blocks, scales = inputs
        if blocks.dtype is not DType.U8 or len(blocks.shape) < 2:  # noqa: PLR2004 - groups, and bytes in a group
            raise CoverageError(f"{printable(str(blocks))}: the blocks must be bytes [..., groups, bytes], in U8")
        if scales.dtype not in (DType.U8, DType.F8_E8M0) or scales.shape != blocks.shape[:-1]:
            raise CoverageError(
                f"{printable(str(scales))} doesn't fit {printable(str(blocks))}: the scales must be bytes "
                f"{list(blocks.shape[:-1])}, in U8 or F8_E8M0"
            )
        *outer, groups, nbytes = blocks.shape
        return TensorInfo(blocks.name, (*outer, groups * nbytes * 2), self.dtype)

    def make(self, inputs: Sequence[TensorInput], reduction: Reduction | None, start: int, stop: int) -> Array:
        import numpy as np

        del reduction  # all axes stay
        blocks, scales = inputs
        in_block = blocks.info.shape[-1] * 2
        first, last = start // 2, (stop + 1) // 2
        raw = blocks.elements(first, last)
        nibbles = np.empty(raw.size * 2, dtype=np.uint8)
        nibbles[0::2], nibbles[1::2] = raw & 0xF, raw >> 4
        nibbles = nibbles[start - first * 2 : stop - first * 2]
        table = np.array([*_E2M1, *(-value for value in _E2M1)], dtype=np.float32)
        groups = np.arange(start, stop) // in_block
        exponents = scales.elements(int(groups[0]), int(groups[-1]) + 1)
        if (exponents == _NAN_SCALE).any():
            raise CheckpointError("a scale is 255, which stands for no number", scales.info.name)
        powers = exponents.astype(np.int32) - _EXPONENT_BIAS
        with np.errstate(all="ignore"):
            values = np.ldexp(table[nibbles], powers[groups - groups[0]])
        return fit(values, self.dtype, blocks.info.name, np.ones(values.shape, dtype=bool))

    def options(self) -> dict[str, object]:
        return {"dtype": self.dtype.label}

    @classmethod
    def from_options(cls, options: Options) -> DequantizeMxfp4:
        dtype = options.dtype("dtype") or DType.BF16
        if dtype not in (DType.BF16, DType.F16, DType.F32, DType.F64):
            raise SpecError(f"dequantize_mxfp4: 'dtype' is {dtype}, and must be BF16, F16, F32 or F64")
        return cls(dtype)
