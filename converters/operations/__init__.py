"""Value operations: the few things a rule can do beyond moving elements, one file each.

An operation is plain data with an inverse, or with the reason why it has none. There are three kinds. An `Elementwise`
operation changes each value on its way, and shapes stay. A `TensorOperation` makes one tensor of one or more whole
tensors, before any layout sees them. A `Generator` makes values that have no source. `registry.py` finds operations by
the name that a spec writes, those of other packages among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

from msgspec import Struct

from converters.tensor_info import DType, TensorInfo

if TYPE_CHECKING:
    import numpy as np

    from converters.operations.options import Options

    Array = np.ndarray[Any, np.dtype[Any]]


class OneWay(Struct, frozen=True):
    """In place of an inverse: why there is none."""

    reason: str


class Operation(Protocol):
    """What all operations that a spec can name have in common; frozen, so that two of them can be compared."""

    name: ClassVar[str]
    """What a spec calls it, after `op:`."""

    @classmethod
    def from_options(cls, options: Options) -> Self:
        """Make it from what a spec says of it.

        Raises:
            SpecError: an option is missing or makes no sense.
        """
        ...

    def options(self) -> dict[str, object]:
        """What a spec would say of it, as plain data; `from_options` makes an equal operation of it."""
        ...

    @property
    def exactness(self) -> str:
        """`exact` where the inverse restores every bit, else `approximate`, or `one-way` without an inverse."""
        ...

    def inverse(self) -> Operation | OneWay:
        """The operation for the way back, or why there is none."""
        ...


@runtime_checkable
class Elementwise(Operation, Protocol):
    """Changes each value on its way; shapes stay."""

    def output_dtype(self, dtype: DType) -> DType:
        """The dtype that comes out.

        Raises:
            CoverageError: the operation can't take this dtype.
        """
        ...

    def apply(self, raw: Array, dtype: DType, name: str) -> Array:
        """Values in, values out, both as unsigned integers of the width of their dtype; `raw` stays as it is.

        Raises:
            CheckpointError: a value has no counterpart (an overflow); `name` says where.
        """
        ...


class TensorInput(Protocol):
    """A tensor that a `TensorOperation` reads."""

    @property
    def info(self) -> TensorInfo:
        """Its name, shape and dtype."""
        ...

    def elements(self, start: int, stop: int) -> Array:
        """The elements `[start, stop)` of the flattened tensor, as unsigned integers of its dtype's width."""
        ...


class Reduction(Struct, frozen=True):
    """An axis that an operation takes out of a tensor, which is row-major `[outer, count, inner]` around it."""

    outer: int
    count: int
    inner: int


@runtime_checkable
class TensorOperation(Operation, Protocol):
    """Makes one tensor of one or more, before any layout sees it; it has no way back."""

    inputs: ClassVar[tuple[str, ...]]
    """What a spec calls the tensors that it takes; empty where it takes a single one."""

    @property
    def over(self) -> str | None:
        """The axis of the layout that it takes out; None where it keeps all axes."""
        ...

    def output(self, inputs: Sequence[TensorInfo]) -> TensorInfo:
        """The tensor that comes out, named after the first input; with the axis `over` still in its shape.

        Raises:
            CoverageError: the inputs' shapes or dtypes don't fit.
        """
        ...

    def make(self, inputs: Sequence[TensorInput], reduction: Reduction | None, start: int, stop: int) -> Array:
        """The elements `[start, stop)` of what comes out, flattened, as unsigned integers of the dtype's width.

        It must not hold more than `converters.schedule.MAKING_MEMORY` bytes at once for
        `converters.schedule.MADE_CHUNK` elements.

        Raises:
            CheckpointError: a value has no counterpart.
        """
        ...


class Generator(Protocol):
    """Makes the values of a tensor from its shape alone."""

    def refusal(self, info: TensorInfo) -> str | None:
        """Why a tensor can't hold these values; None where it can."""
        ...

    def generate(self, info: TensorInfo, start: int, stop: int) -> Array:
        """The elements `[start, stop)` of the flattened tensor, as unsigned integers of the dtype's width."""
        ...

    def differs(self, raw: Array, info: TensorInfo, start: int) -> int | None:
        """The first flat position, from `start` on, whose value in `raw` isn't the generated one; None without."""
        ...

    def to_json(self) -> dict[str, object]:
        """Plain data, from which it can be made again."""
        ...


def generator_from_json(data: Mapping[str, Any]) -> Generator:
    """The generator that `Generator.to_json` wrote."""
    from converters.operations.fill import Fill

    return Fill.from_json(data)
