"""`mean`: the average over one axis of a tensor, as for key and value heads that become fewer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from msgspec import Struct

from converters.operations import OneWay
from converters.operations.numeric import are_finite, check_arithmetic, fit, float_dtype, working_dtype, working_values
from converters.tensor_info import DType, TensorInfo

if TYPE_CHECKING:
    from converters.operations import Array, Reduction, TensorInput
    from converters.operations.options import Options


class Mean(Struct, frozen=True):
    """The average over the axis `over`, summed in `dtype`: float32 where none is given, float64 for float64."""

    name: ClassVar[str] = "mean"
    exactness: ClassVar[str] = "one-way"
    inputs: ClassVar[tuple[str, ...]] = ()

    over: str
    dtype: DType | None = None

    def inverse(self) -> OneWay:
        return OneWay(f"a mean over {self.over} doesn't tell what the values were that it was taken of")

    def output(self, inputs: Sequence[TensorInfo]) -> TensorInfo:
        check_arithmetic(inputs[0].dtype, self.name)
        return inputs[0]

    def make(self, inputs: Sequence[TensorInput], reduction: Reduction | None, start: int, stop: int) -> Array:
        import numpy as np

        if reduction is None:
            raise AssertionError("the planner finds the axis that is taken out")
        (tensor,) = inputs
        dtype = tensor.info.dtype
        total = np.zeros(stop - start, dtype=float_dtype(working_dtype(self.dtype, dtype)))
        finite = np.ones(stop - start, dtype=bool)
        count, inner = reduction.count, reduction.inner
        position = start
        while position < stop:
            outer, offset = divmod(position, inner)
            # Whole rows of [count, inner] at once where they are short, else a stretch of one index of `inner`.
            rows = min((stop - position) // inner, (stop - start) // (count * inner)) if offset == 0 else 0
            length = rows * inner if rows else min(inner - offset, stop - position)
            here = slice(position - start, position - start + length)
            box_start, box_size = outer * count * inner, rows * count * inner
            box = tensor.elements(box_start, box_start + box_size) if rows else None
            for index in range(count):
                # One after the other in both cases, so that the sum doesn't depend on how it is cut.
                if box is not None:
                    raw = box.reshape(rows, count, inner)[:, index].reshape(-1)
                else:
                    first = (outer * count + index) * inner + offset
                    raw = tensor.elements(first, first + length)
                finite[here] &= are_finite(raw, dtype)
                with np.errstate(all="ignore"):
                    total[here] += working_values(raw, dtype, self.dtype)
            position += length
        with np.errstate(all="ignore"):
            total /= total.dtype.type(count)
        return fit(total, dtype, tensor.info.name, finite)

    def options(self) -> dict[str, object]:
        return {"over": self.over, **({} if self.dtype is None else {"dtype": self.dtype.label})}

    @classmethod
    def from_options(cls, options: Options) -> Mean:
        return cls(options.text("over"), options.working_dtype())
