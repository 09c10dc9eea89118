"""`dequantize`: narrow numbers times the scale of the block that they lie in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from msgspec import Struct

from converters.errors import CoverageError, SpecError
from converters.operations import OneWay
from converters.operations.numeric import ARITHMETIC, fit, raw_dtype, working_values
from converters.tensor_info import DType, TensorInfo
from converters.text import printable

if TYPE_CHECKING:
    from converters.operations import Array, Reduction, TensorInput
    from converters.operations.options import Options

_WEIGHTS = (DType.I8, DType.F8_E4M3, DType.F8_E5M2, DType.F8_E4M3FNUZ, DType.F8_E5M2FNUZ)
WHOLE_DIMENSION = "all"
"""How a spec says that a block is as long as the dimension."""


class Dequantize(Struct, frozen=True):
    """`weight * scale` of each block, computed in float32 and rounded to `dtype`.

    `block` is the size of a block along each of the weight's last dimensions, None for all of the dimension; along the
    dimensions before them a block has size one. The last block of a dimension may be cut off.
    """

    name: ClassVar[str] = "dequantize"
    exactness: ClassVar[str] = "one-way"
    inputs: ClassVar[tuple[str, ...]] = ("weight", "scale")
    over: ClassVar[str | None] = None

    block: tuple[int | None, ...]
    dtype: DType = DType.BF16

    def inverse(self) -> OneWay:
        return OneWay("the rounding to narrow numbers isn't kept: quantizing again would make other blocks")

    def output(self, inputs: Sequence[TensorInfo]) -> TensorInfo:
        weight, scale = inputs
        if weight.dtype not in _WEIGHTS:
            names = ", ".join(map(str, _WEIGHTS))
            raise CoverageError(f"{printable(str(weight))}: dequantize takes weights of {names}")
        if scale.dtype not in ARITHMETIC:
            raise CoverageError(f"{printable(str(scale))}: the scales must be floating numbers")
        if len(self.block) > len(weight.shape):
            raise CoverageError(f"{printable(str(weight))} has fewer dimensions than 'block'")
        grid = tuple(math.ceil(size / block) for size, block in zip(weight.shape, self._blocks(weight), strict=True))
        if scale.shape != grid and math.prod(scale.shape) * math.prod(grid) != 1:
            raise CoverageError(
                f"{printable(str(scale))} doesn't fit {printable(str(weight))}: blocks of "
                f"{list(self._blocks(weight))} make {list(grid)} scales"
            )
        return TensorInfo(weight.name, weight.shape, self.dtype)

    def _blocks(self, weight: TensorInfo) -> tuple[int, ...]:
        outer = len(weight.shape) - len(self.block)
        last = zip(self.block, weight.shape[outer:], strict=True)
        return (*([1] * outer), *(max(1, size) if block is None else block for block, size in last))

    def make(self, inputs: Sequence[TensorInput], reduction: Reduction | None, start: int, stop: int) -> Array:
        import numpy as np

        del reduction  # all axes stay
        weight, scale = inputs
        shape, blocks = weight.info.shape, self._blocks(weight.info)
        found = np.empty(stop - start, dtype=raw_dtype(self.dtype))
        row_length = shape[-1] if shape else 1
        position = start
        while position < stop:
            # Along one row at a time the scales that are needed lie side by side.
            row, column = divmod(position, row_length)
            length = min(row_length - column, stop - position)
            first = column // blocks[-1] if blocks else 0
            count = (column + length - 1) // blocks[-1] + 1 - first if blocks else 1
            base = self._scale_row(shape, blocks, row) + first
            scales = working_values(scale.elements(base, base + count), scale.info.dtype, DType.F32)
            lengths = np.full(count, blocks[-1] if blocks else 1)
            lengths[0] = min((first + 1) * (blocks[-1] if blocks else 1), column + length) - column
            if count > 1:
                lengths[-1] = column + length - (first + count - 1) * blocks[-1]
            with np.errstate(all="ignore"):
                numbers = self._numbers(weight, position, position + length)
                values = numbers * np.repeat(scales, lengths)
            part = fit(values, self.dtype, weight.info.name, np.isfinite(numbers))
            found[position - start : position - start + length] = part
            position += length
        return found

    @staticmethod
    def _numbers(weight: TensorInput, start: int, stop: int) -> Array:
        import numpy as np

        raw = weight.elements(start, stop)
        if weight.info.dtype is not DType.I8:
            return working_values(raw, weight.info.dtype, DType.F32)
        found: Array = raw.view(np.int8).astype(np.float32)
        return found

    @staticmethod
    def _scale_row(shape: tuple[int, ...], blocks: tuple[int, ...], row: int) -> int:
        """Where the scales of a row begin in the flattened scales."""
        sizes = [math.ceil(size / block) for size, block in zip(shape, blocks, strict=True)]
        stride = sizes[-1] if sizes else 1
        found = 0
        for size, block, count in zip(reversed(shape[:-1]), reversed(blocks[:-1]), reversed(sizes[:-1]), strict=True):
            row, index = divmod(row, size)
            found += index // block * stride
            stride *= count
        return found

    def options(self) -> dict[str, object]:
        return {
            "block": [WHOLE_DIMENSION if size is None else size for size in self.block],
            "dtype": self.dtype.label,
        }

    @classmethod
    def from_options(cls, options: Options) -> Dequantize:
        block = options.sizes("block", WHOLE_DIMENSION)
        dtype = options.dtype("dtype") or DType.BF16
        if dtype not in (DType.BF16, DType.F16, DType.F32, DType.F64):
            raise SpecError(f"dequantize: 'dtype' is {dtype}, and must be BF16, F16, F32 or F64")
        return cls(block, dtype)
