"""`affine`: each value times a number, plus a number, as for norms that are stored minus one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from msgspec import Struct
from msgspec.structs import replace

from converters.errors import CheckpointError, SpecError
from converters.operations.numeric import are_finite, check_arithmetic, fit, working_values
from converters.tensor_info import DType

if TYPE_CHECKING:
    from converters.operations import Array
    from converters.operations.options import Options


class Affine(Struct, frozen=True):
    """`x * scale + add`, or with `inverted` what undoes it, `(x - add) / scale`.

    It is computed in `dtype`: float32 where none is given, float64 for values in float64; and rounded once, to the
    tensor's dtype.
    """

    name: ClassVar[str] = "affine"

    scale: float = 1.0
    add: float = 0.0
    inverted: bool = False
    dtype: DType | None = None

    @property
    def exactness(self) -> str:
        return "exact" if self._moves_only_exponents else "approximate"

    @property
    def _moves_only_exponents(self) -> bool:
        """Whether it is a change of sign and of exponents, which rounds nothing as long as the exponents fit."""
        return self.add == 0 and abs(math.frexp(self.scale)[0]) == 0.5  # noqa: PLR2004 - the mantissa of powers of two

    def inverse(self) -> Affine:
        if self.inverted:
            return replace(self, inverted=False)
        if self.scale == 1:
            return replace(self, add=0.0 - self.add)
        if self._moves_only_exponents:
            return replace(self, scale=1 / self.scale)
        return replace(self, inverted=True)

    def output_dtype(self, dtype: DType) -> DType:
        check_arithmetic(dtype, self.name)
        return dtype

    def apply(self, raw: Array, dtype: DType, name: str) -> Array:
        import numpy as np

        values = working_values(raw, dtype, self.dtype)
        found = fit(self._compute(values), dtype, name, are_finite(raw, dtype))
        if self._moves_only_exponents:
            before, after = (working_values(each, dtype, DType.F64) for each in (raw, found))
            with np.errstate(all="ignore"):
                lost = (after / self.scale != before) & ~np.isnan(before)
            if lost.any():
                raise CheckpointError(
                    f"{int(lost.sum())} values times {self.scale:g} lose bits: they are too small for {dtype}, or "
                    f"computed in too narrow a dtype: the first is {float(before[lost][0]):.6g}",
                    name,
                    "cast to a dtype with a wider range before, such as BF16 or F32",
                )
        return found

    def _compute(self, values: Array) -> Array:
        import numpy as np

        scale, add = values.dtype.type(self.scale), values.dtype.type(self.add)
        with np.errstate(all="ignore"):
            if self.inverted:
                undone: Array = (values - add) / scale
                return undone
            scaled: Array = values * scale if self.scale != 1 else values
            return scaled + add if self.add else scaled  # adding zero would turn -0 into 0

    def options(self) -> dict[str, object]:
        found: dict[str, object] = {}
        if self.scale != 1:
            found["scale"] = self.scale
        if self.add:
            found["add"] = self.add
        if self.inverted:
            found["inverse"] = True
        if self.dtype is not None:
            found["dtype"] = self.dtype.label
        return found

    @classmethod
    def from_options(cls, options: Options) -> Affine:
        scale, add = options.number("scale", 1.0), options.number("add", 0.0)
        inverted, dtype = options.flag("inverse"), options.working_dtype()
        options.finish()
        if scale == 0:
            raise SpecError("affine: 'scale' is 0, which leaves nothing of the values")
        if scale == 1 and add == 0:
            raise SpecError("affine changes nothing", None, "give 'scale', 'add' or both, as in {op: affine, add: 1}")
        made = cls(scale, 0.0 + add, dtype=dtype)
        return made.inverse() if inverted else made
