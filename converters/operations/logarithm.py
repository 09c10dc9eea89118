"""`negexp` and `neglog`: the decay rates of state-space models, stored as they are or as their logarithm."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from msgspec import Struct

from converters.errors import CheckpointError
from converters.operations.numeric import are_finite, check_arithmetic, decode, fit, working_values
from converters.tensor_info import DType

if TYPE_CHECKING:
    from converters.operations import Array
    from converters.operations.options import Options


class NegativeExponential(Struct, frozen=True):
    """`-exp(x)`, computed in `dtype`: float32 where none is given, float64 for values in float64."""

    name: ClassVar[str] = "negexp"
    exactness: ClassVar[str] = "approximate"

    dtype: DType | None = None

    def inverse(self) -> NegativeLogarithm:
        return NegativeLogarithm(self.dtype)

    def output_dtype(self, dtype: DType) -> DType:
        check_arithmetic(dtype, self.name)
        return dtype

    def apply(self, raw: Array, dtype: DType, name: str) -> Array:
        import numpy as np

        values = working_values(raw, dtype, self.dtype)
        with np.errstate(all="ignore"):
            found = fit(-np.exp(values), dtype, name, are_finite(raw, dtype))
            vanished = (decode(found, dtype) == 0) & ~np.isinf(values)
        if vanished.any():
            raise CheckpointError(
                f"{int(vanished.sum())} values are so small that their exponential is 0 in {dtype}: "
                f"the smallest is {float(values[vanished].min()):.6g}",
                name,
                "they would be lost; cast to a dtype with a wider range before, such as F32",
            )
        return found

    def options(self) -> dict[str, object]:
        return {} if self.dtype is None else {"dtype": self.dtype.label}

    @classmethod
    def from_options(cls, options: Options) -> NegativeExponential:
        return cls(options.working_dtype())


class NegativeLogarithm(Struct, frozen=True):
    """`log(-x)`, computed in `dtype`: float32 where none is given, float64 for values in float64."""

    name: ClassVar[str] = "neglog"
    exactness: ClassVar[str] = "approximate"

    dtype: DType | None = None

    def inverse(self) -> NegativeExponential:
        return NegativeExponential(self.dtype)

    def output_dtype(self, dtype: DType) -> DType:
        check_arithmetic(dtype, self.name)
        return dtype

    def apply(self, raw: Array, dtype: DType, name: str) -> Array:
        import numpy as np

        values = working_values(raw, dtype, self.dtype)
        with np.errstate(all="ignore"):
            wrong = ~(values < 0) & ~np.isnan(values)
            if wrong.any():
                raise CheckpointError(
                    f"{int(wrong.sum())} values aren't negative, and log(-x) needs that: "
                    f"the largest is {float(values[wrong].max()):.6g}",
                    name,
                )
            return fit(np.log(-values), dtype, name, are_finite(raw, dtype))

    def options(self) -> dict[str, object]:
        return {} if self.dtype is None else {"dtype": self.dtype.label}

    @classmethod
    def from_options(cls, options: Options) -> NegativeLogarithm:
        return cls(options.working_dtype())
