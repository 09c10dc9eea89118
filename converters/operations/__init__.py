"""Value operations: the few things a rule can do beyond moving elements, one file each.

An operation is plain data with an inverse, or with the reason why it has none. Two kinds exist so far: an
`Elementwise` operation changes each value on its way, a `Generator` makes the values of a target that has no source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from converters.tensor_info import DType, TensorInfo

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class OneWay:
    """In place of an inverse: why there is none."""

    reason: str


class Elementwise(Protocol):
    """Changes each value on its way; shapes stay."""

    @property
    def exactness(self) -> str:
        """`exact` where the inverse restores every bit, else `approximate`, or `one-way` without an inverse."""
        ...

    def inverse(self) -> Elementwise | OneWay:
        """The operation for the way back, or why there is none."""
        ...

    def output_dtype(self, dtype: DType) -> DType:
        """The dtype that comes out.

        Raises:
            CoverageError: the operation can't take this dtype.
        """
        ...

    def apply(self, raw: Array, dtype: DType, name: str) -> Array:
        """Values in, values out, both as unsigned integers of the width of their dtype.

        Raises:
            CheckpointError: a value has no counterpart (an overflow); `name` says where.
        """
        ...

    def to_json(self) -> dict[str, object]:
        """Plain data, from which it can be made again."""
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


def elementwise_from_json(data: Mapping[str, Any]) -> Elementwise:
    """The operation that `Elementwise.to_json` wrote."""
    from converters.operations.cast import Cast

    return Cast.from_json(data)


def generator_from_json(data: Mapping[str, Any]) -> Generator:
    """The generator that `Generator.to_json` wrote."""
    from converters.operations.fill import Fill

    return Fill.from_json(data)
