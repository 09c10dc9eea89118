"""Tensors that an operation makes of sources before a layout sees them, and the axes that it takes out on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from converters.axis_sizes import linear_size, solve_sizes
from converters.layout import Axis, Block, Blocks, Group, Item, Layout
from converters.operands import LayoutMismatchError, Operand, expand_rest
from converters.operations import Reduction, TensorOperation
from converters.plan import MadeSource
from converters.tensor_info import TensorInfo


class MadeSources:
    """The made sources of a plan; rules that make the same one of the same tensors share it."""

    def __init__(self, real: int) -> None:
        """`real` is how many sources the checkpoint has: the first number that isn't theirs."""
        self.all: list[MadeSource] = []
        self._real = real
        self._numbers: dict[MadeSource, int] = {}

    def add(self, made: MadeSource) -> int:
        """The number by which moves refer to it."""
        if made not in self._numbers:
            self._numbers[made] = self._real + len(self.all)
            self.all.append(made)
        return self._numbers[made]

    def info(self, number: int) -> TensorInfo:
        """The tensor with this number."""
        return self.all[number - self._real].info


def make_source(
    operation: TensorOperation,
    operand: Operand,
    inputs: Mapping[int, TensorInfo],
    sizes: Mapping[str, int],
) -> MadeSource:
    """What an operation makes of tensors, by their numbers.

    Args:
        operation: the operation.
        operand: the source operand, whose layout still has the axis that the operation takes out.
        inputs: the tensors, in the order of `operation.inputs`.
        sizes: known axis sizes.

    Raises:
        CoverageError: the tensors don't fit the operation.
        LayoutMismatchError: nothing tells where the axis is that the operation takes out.
    """
    made = operation.output(tuple(inputs.values()))
    if operation.over is None:
        return MadeSource(made, operation, tuple(inputs))
    solved, rest = solve_sizes([operand], [made.shape], sizes)
    reduction = _reduction(operand, operation.over, solved, rest)
    dims = expand_rest(without_axis(operand.layout, operation.over), rest)
    shape = tuple(linear_size(item, solved)[0] for item in dims)
    return MadeSource(replace(made, shape=shape), operation, tuple(inputs), reduction)


def without_axis(layout: Layout, axis: str) -> Layout:
    """The layout of what is left once an axis is taken out."""
    return Layout(_without(layout.dims, axis))


def _without(items: Sequence[Item], axis: str) -> tuple[Item, ...]:
    found: list[Item] = []
    for item in items:
        if isinstance(item, Group):
            inner = _without(item.items, axis)
            if inner:
                found.append(Group(inner))
        elif isinstance(item, Blocks):
            found.append(Blocks(tuple(Block(block.label, _without(block.items, axis)) for block in item.blocks)))
        elif item != Axis(axis):
            found.append(item)
    return tuple(found)


def _reduction(operand: Operand, axis: str, sizes: Mapping[str, int], rest: tuple[int, ...]) -> Reduction:
    flat = _flat(expand_rest(operand.layout, rest))
    positions = [position for position, item in enumerate(flat) if item == Axis(axis)]
    if len(positions) != 1:
        what = f"axis {axis}, over which the operation goes, lies within the blocks of '{operand.layout}'"
        raise LayoutMismatchError([(operand, what)])
    lengths = [linear_size(item, sizes)[0] for item in flat]
    (position,) = positions
    return Reduction(math.prod(lengths[:position]), lengths[position], math.prod(lengths[position + 1 :]))


def _flat(items: Sequence[Item]) -> list[Item]:
    """The items of a row-major sequence, those of its groups among them, blocks as a whole."""
    return [each for item in items for each in (_flat(item.items) if isinstance(item, Group) else [item])]
