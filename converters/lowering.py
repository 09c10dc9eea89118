"""From the layouts of a rule and the shapes of its tensors to strided copies: the algebra at the heart of the tool.

A layout cuts a tensor into leaves: one for each choice of blocks, each a product of named axes. The leaves of the
source side and those of the target side are the same sets of elements, found by their labels, so each pair of leaves
is one strided copy for each combination of indices that live in keys.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from converters.axis_merge import merge_unknown
from converters.axis_sizes import UnsolvedError, linear_size, solve_sizes
from converters.leaves import Leaf, Problems, Side
from converters.operands import LayoutMismatchError, Operand, expand_rest
from converters.strided import StridedCopy, strided_copy

MAX_KEYS = 1_000_000
"""Tensors that one rule may make of one; a safetensors header, of 100 MB at most, has no room for more."""


class Piece(Struct, frozen=True, gc=False):
    """One copy between the tensor of a source operand and that of a target operand.

    `source_index` and `target_index` give the coordinates along the operands' `key_axes`.
    """

    source: int
    source_index: tuple[int, ...]
    target: int
    target_index: tuple[int, ...]
    copy: StridedCopy


class Loose(Struct, frozen=True, gc=False):
    """A block that only one side has.

    Attributes:
        operand: the number of its operand on that side.
        labels: those of the block.
        copy: of a target's block, from a single element; of a source's block, to a tensor of its own.
    """

    operand: int
    labels: frozenset[str]
    copy: StridedCopy


class Lowered(Struct, frozen=True):
    """What a rule does to tensors of given shapes.

    Attributes:
        target_shapes: one for each target operand.
        pieces: the copies.
        sizes: the size of every axis, those worked out from the shapes among them.
        loose_sources: the blocks of the sources that the targets don't have.
        loose_targets: the blocks of the targets that the sources don't have.
    """

    target_shapes: tuple[tuple[int, ...], ...]
    pieces: tuple[Piece, ...]
    sizes: Mapping[str, int]
    loose_sources: tuple[Loose, ...] = ()
    loose_targets: tuple[Loose, ...] = ()


def lower(
    sources: Sequence[Operand],
    source_shapes: Sequence[tuple[int, ...]],
    targets: Sequence[Operand],
    sizes: Mapping[str, int],
    loose: frozenset[str] = frozenset(),
) -> Lowered:
    """Lower one instance of a rule.

    Args:
        sources: the source operands.
        source_shapes: the shape of each one's tensors.
        targets: the target operands; their shapes come out.
        sizes: known axis sizes, those of all key axes among them.
        loose: labels of blocks that only one side needs to have.

    Raises:
        LayoutMismatchError: sizes don't add up, or the two sides don't name the same elements.
    """
    try:
        solved, rest = solve_sizes(sources, source_shapes, sizes)
    except UnsolvedError as unsolved:
        sources, targets = _merged(sources, targets, frozenset(sizes))
        try:
            solved, rest = solve_sizes(sources, source_shapes, sizes)
        except UnsolvedError:
            raise unsolved from None
    problems = _unknown_sizes([*sources, *targets], solved)
    if problems:
        raise LayoutMismatchError(problems)
    matched = _match(sources, targets, solved, rest, loose, problems)
    if problems:
        raise LayoutMismatchError(problems)
    pieces = tuple(piece for source, target in matched.pairs for piece in _pieces(source, target, solved))
    shapes = tuple(
        tuple(linear_size(item, solved)[0] for item in expand_rest(operand.layout, rest)) for operand in targets
    )
    loose_sources, loose_targets = (
        tuple(
            _loose(number, leaf, is_target=is_target) for number, leaf in leaves if all(axis[1] for axis in leaf.axes)
        )
        for leaves, is_target in ((matched.loose_sources, False), (matched.loose_targets, True))
    )
    return Lowered(shapes, pieces, solved, loose_sources, loose_targets)


def _loose(operand: int, leaf: Leaf, *, is_target: bool) -> Loose:
    if is_target:
        axes = [(size, 0, stride) for _, size, stride in leaf.axes]
        return Loose(operand, leaf.labels, strided_copy(axes, 0, leaf.start))
    axes, dense = [], 1
    for _, size, stride in sorted(leaf.axes, key=lambda axis: axis[2]):
        axes.append((size, stride, dense))
        dense *= size
    return Loose(operand, leaf.labels, strided_copy(axes, leaf.start, 0))


def check_structure(
    sources: Sequence[Operand], targets: Sequence[Operand], loose: frozenset[str] = frozenset()
) -> Problems:
    """What is wrong with a rule's layouts whatever the sizes: blocks or axes that the other side doesn't have.

    It is what lowering finds when every axis has size one.
    """
    problems: Problems = []
    if len(sources) == len(targets) == 1 and all(operand.is_whole for operand in (*sources, *targets)):
        return problems
    sizes = dict.fromkeys(frozenset[str]().union(*(operand.axes() for operand in (*sources, *targets))), 1)
    _match(sources, targets, sizes, (), loose, problems)
    return problems


def _merged(
    sources: Sequence[Operand], targets: Sequence[Operand], known: frozenset[str]
) -> tuple[list[Operand], list[Operand]]:
    operands = [*sources, *targets]
    # An axis of a key is taken apart from its neighbours by the keys themselves.
    known = known.union(*(operand.key_axes for operand in operands))
    layouts = merge_unknown([operand.layout for operand in operands], known)
    merged = [replace(operand, layout=layout) for operand, layout in zip(operands, layouts, strict=True)]
    return merged[: len(sources)], merged[len(sources) :]


def _unknown_sizes(operands: Sequence[Operand], sizes: Mapping[str, int]) -> Problems:
    problems: Problems = []
    for operand in operands:
        missing = sorted(operand.axes() - sizes.keys())
        if missing:
            problems.append((operand, f"nothing gives the size of {', '.join(missing)} in '{operand.layout}'"))
        elif math.prod(sizes[axis] for axis in operand.key_axes) > MAX_KEYS:
            count = " x ".join(f"{axis}={sizes[axis]}" for axis in operand.key_axes)
            problems.append((operand, f"it would be {count} tensors, and no checkpoint holds more than {MAX_KEYS}"))
    return problems


class _Matched(Struct, frozen=True):
    """The leaves of both sides that hold the same elements, and those that only one side has."""

    pairs: Sequence[tuple[_End, _End]]
    loose_sources: Sequence[tuple[int, Leaf]]
    loose_targets: Sequence[tuple[int, Leaf]]


def _match(
    sources: Sequence[Operand],
    targets: Sequence[Operand],
    sizes: Mapping[str, int],
    rest: tuple[int, ...],
    loose: frozenset[str],
    problems: Problems,
) -> _Matched:
    source_side = Side(sources, targets, sizes, rest, problems)
    target_side = Side(targets, sources, sizes, rest, problems)
    loose_sources = source_side.take_out(loose, target_side)
    loose_targets = target_side.take_out(loose, source_side)
    if loose_sources or loose_targets:
        source_side.match_single(target_side)
    source_side.check_against(target_side, "goes nowhere", problems)
    target_side.check_against(source_side, "comes from nowhere", problems)
    pairs = []
    for labels, (number, leaf) in source_side.leaves.items():
        if labels in target_side.leaves:
            target_number, target_leaf = target_side.leaves[labels]
            source = _End(number, sources[number], leaf)
            target = _End(target_number, targets[target_number], target_leaf)
            for end, other in ((target, source), (source, target)):
                missing = sorted(other.names() - end.names())
                if missing:
                    what = f"axis {', '.join(missing)} of '{other.operand.layout}' is not in '{end.operand.layout}'"
                    problems.append((end.operand, what))
            pairs.append((source, target))
    return _Matched(pairs, loose_sources, loose_targets)


class _End(Struct, frozen=True):
    """One end of a pair of leaves: its operand, by number too, and the leaf in it."""

    number: int
    operand: Operand
    leaf: Leaf

    def strides(self) -> dict[str, int]:
        """The stride of each axis that lives in the tensor."""
        return {name: stride for name, _, stride in self.leaf.axes}

    def names(self) -> frozenset[str]:
        """All axes, those in the key included."""
        return frozenset(self.strides()) | frozenset(self.operand.key_axes)


def _pieces(source: _End, target: _End, sizes: Mapping[str, int]) -> list[Piece]:
    """The copies of a pair of leaves: one for each combination of indices that live in keys."""
    reads, writes = source.strides(), target.strides()
    box = [(size, reads[name], writes[name]) for name, size, _ in source.leaf.axes if name in writes]
    if any(size == 0 for size, _, _ in box):
        return []
    in_keys = list(dict.fromkeys([*source.operand.key_axes, *target.operand.key_axes]))
    pieces = []
    for values in itertools.product(*(range(sizes[name]) for name in in_keys)):
        at = dict(zip(in_keys, values, strict=True))
        # An axis that lives in one side's key is a position in the other side's tensor.
        source_start = source.leaf.start + sum(at[name] * reads[name] for name in in_keys if name in reads)
        target_start = target.leaf.start + sum(at[name] * writes[name] for name in in_keys if name in writes)
        pieces.append(
            Piece(
                source.number,
                tuple(at[name] for name in source.operand.key_axes),
                target.number,
                tuple(at[name] for name in target.operand.key_axes),
                strided_copy(box, source_start, target_start),
            )
        )
    return pieces
