"""Scales travel with their blocks: the layouts of a grid that lies over tensors, worked out from theirs.

A grid has one number, a scale, for each block of a tensor's elements. Whatever moves the elements moves the grid as
well, as long as no block is taken apart: along each axis a block covers a part of it, and on the other side that part
must lie in one piece again. Then the grid has the same axes, each shorter by that part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from converters.axis_sizes import linear_size
from converters.layout import Axis, Block, Blocks, Group, Item, Layout, Number, Rest, walk
from converters.operands import LayoutMismatchError, Operand


class Grid(Struct, frozen=True):
    """The operands of a grid, and the size of each of its axes.

    Attributes:
        sources: with layouts in which an axis of length one is written as `1`.
        targets: likewise.
        sizes: how many blocks there are along each axis.
        shapes: the shape of the grid over each source.
    """

    sources: tuple[Operand, ...]
    targets: tuple[Operand, ...]
    sizes: Mapping[str, int]
    shapes: tuple[tuple[int, ...], ...]


def grid_of(
    sources: Sequence[Operand],
    targets: Sequence[Operand],
    sizes: Mapping[str, int],
    block: Sequence[int | None],
    along: Sequence[Operand],
) -> Grid:
    """The grid over the sources, and what it becomes over the targets.

    Args:
        sources: the source operands of the elements.
        targets: the target operands of the elements.
        sizes: the size of every axis.
        block: the size of a block along each dimension of an operand of `along`; None for all of the dimension.
        along: `sources` or `targets`.

    Raises:
        LayoutMismatchError: the move would take a block apart.
    """
    folding = _Folding(sizes)
    for operand in along:
        folding.fold(operand, block)
    for operand in (*sources, *targets):
        folding.check(operand)
    counts = {
        name: -(-size // folding.covered.get(name, 1)) for name, size in sizes.items() if not name.startswith("...")
    }
    shrunk = [
        [replace(operand, layout=Layout(folding.shrink(operand.layout.dims, counts))) for operand in side]
        for side in (sources, targets)
    ]
    shapes = tuple(tuple(linear_size(item, counts)[0] for item in operand.layout.dims) for operand in shrunk[0])
    return Grid(tuple(shrunk[0]), tuple(shrunk[1]), counts, shapes)


def without_last(grid: Grid, dimensions: int) -> Grid:
    """The same grid stored without its last dimensions, which must be ones.

    Raises:
        LayoutMismatchError: one of them isn't.
    """
    for operand in (*grid.sources, *grid.targets) if dimensions else ():
        if any(not _is_one(item) for item in operand.layout.dims[-dimensions:]):
            what = f"the scales are stored without the last dimension, but '{operand.layout}' has blocks along it"
            raise LayoutMismatchError([(operand, what)])
    sources, targets = (
        tuple(replace(operand, layout=Layout(_cut(operand.layout.dims, dimensions))) for operand in side)
        for side in (grid.sources, grid.targets)
    )
    return Grid(sources, targets, grid.sizes, tuple(shape[: len(shape) - dimensions] for shape in grid.shapes))


def _cut(dims: tuple[Item, ...], dimensions: int) -> tuple[Item, ...]:
    return dims[: len(dims) - dimensions]


def _is_one(item: Item) -> bool:
    return all(isinstance(each, Group) or each == Number(1) for each in walk((item,)))


class _Folding:
    """How much of each axis lies within a block; a number counts as an axis called by its value."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.covered: dict[str, int] = {}

    def fold(self, operand: Operand, block: Sequence[int | None]) -> None:
        """Work out what a block of an operand covers."""
        unknown = sorted(operand.layout.axis_names() - self.sizes.keys())
        if unknown:
            raise LayoutMismatchError([(operand, f"the grid needs the size of {', '.join(unknown)}")])
        dims = operand.layout.dims
        if any(isinstance(item, Rest) for item in walk(dims)) or len(block) != len(dims):
            what = f"'{operand.layout}' must name as many dimensions as the grid has block sizes: {len(block)}"
            raise LayoutMismatchError([(operand, what)])
        for item, size in zip(dims, block, strict=True):
            length = linear_size(item, self.sizes)[0]
            wanted = length if size is None else size
            if isinstance(item, Axis) and length % max(1, wanted):
                self._cover(operand, item.name, wanted)  # the last block is cut off
            elif (left := self._fold_item(operand, item, wanted)) > 1:
                what = f"'{item}' has {length} elements, which blocks of {size} don't divide: {left} are left over"
                raise LayoutMismatchError([(operand, what)])
        for axis in operand.key_axes:
            self._cover(operand, axis, 1)

    def _fold_item(self, operand: Operand, item: Item, block: int) -> int:
        """Take what an item covers of a block; returns what is left for those outside of it."""
        match item:
            case Axis() | Number():
                name, size = _name(item), linear_size(item, self.sizes)[0]
                part = math.gcd(size, block)
                if part not in (size, block):
                    what = f"blocks of {block} elements cut '{item}', of size {size}, apart"
                    raise LayoutMismatchError([(operand, what)])
                self._cover(operand, name, part)
                return block // part
            case Group(items):
                for inner in reversed(items):
                    block = self._fold_item(operand, inner, block)
                return block
            case Blocks(blocks):
                if any(self._fold_item(operand, Group(each.items), block) > 1 for each in blocks):
                    what = f"blocks of {block} elements reach over more than one part of '{item}'"
                    raise LayoutMismatchError([(operand, what)])
                return 1
            case Rest():
                raise AssertionError("a grid names all dimensions")

    def _cover(self, operand: Operand, name: str, part: int) -> None:
        if self.covered.setdefault(name, part) != part:
            what = f"a block covers {part} of '{name}' here, and {self.covered[name]} elsewhere in the rule"
            raise LayoutMismatchError([(operand, what)])

    def check(self, operand: Operand) -> None:
        """Refuse an operand in which the elements of a block don't lie in one piece along each dimension."""
        dims = operand.layout.dims
        for item in dims:
            if isinstance(item, Axis):
                continue  # whatever part of it a block covers, it is in one piece
            for leaf in _leaves(item):
                self._check_leaf(operand, item, leaf)
        for axis in operand.key_axes:
            if self.covered.get(axis, 1) > 1:
                what = f"{{{axis}}} would be in the key, while a block of the grid covers {self.covered[axis]} of it"
                raise LayoutMismatchError([(operand, what)])

    def _check_leaf(self, operand: Operand, item: Item, leaf: Sequence[Axis | Number]) -> None:
        whole = True
        for inner in reversed(leaf):
            size, part = linear_size(inner, self.sizes)[0], self.covered.get(_name(inner), 1)
            if size % part or (part > 1 and not whole):
                what = f"'{item}' would take the blocks of the grid apart: {part} of '{inner}' belong together"
                raise LayoutMismatchError([(operand, what)])
            whole = whole and part == size
        sizes = {math.prod(self.covered.get(_name(inner), 1) for inner in each) for each in _leaves(item)}
        if len(sizes) > 1:
            what = f"'{item}' would have blocks of {' and '.join(map(str, sorted(sizes)))} elements side by side"
            raise LayoutMismatchError([(operand, what)])

    def shrink(self, items: Sequence[Item], counts: Mapping[str, int]) -> tuple[Item, ...]:
        """The layout of the grid: what has length one there has no counterpart on the other side."""
        return tuple(self._shrink_item(item, counts) for item in items)

    def _shrink_item(self, item: Item, counts: Mapping[str, int]) -> Item:
        match item:
            case Axis(name):
                return item if counts[name] != 1 else Number(1)
            case Number(value):
                return Number(value // self.covered.get(_name(item), 1))
            case Group(items):
                return Group(self.shrink(items, counts))
            case Blocks(blocks):
                return Blocks(tuple(Block(each.label, self.shrink(each.items, counts)) for each in blocks))
            case Rest():
                raise AssertionError("a grid names all dimensions")


def _name(item: Axis | Number) -> str:
    return item.name if isinstance(item, Axis) else str(item.value)


def _leaves(item: Item) -> Iterator[list[Axis | Number]]:
    """The axes of a dimension, outermost first, once for each choice of blocks."""
    match item:
        case Axis() | Number():
            yield [item]
        case Group(items):
            found: list[list[Axis | Number]] = [[]]
            for inner in items:
                found = [[*before, *after] for before in found for after in _leaves(inner)]
            yield from found
        case Blocks(blocks):
            for block in blocks:
                yield from _leaves(Group(block.items))
        case Rest():
            raise AssertionError("a grid names all dimensions")
