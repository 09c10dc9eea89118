"""A layout cuts a tensor into leaves: one for each choice of blocks, each a product of named axes with strides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from converters.layout import UNUSED, Axis, Blocks, Group, Item, Number, Rest
from converters.operands import Operand, expand_rest


class Leaf(Struct, frozen=True):
    """A product of named axes in one tensor.

    Attributes:
        labels: the blocks that it lies in, and its operand's label.
        axes: name, size and stride of each axis, strides in elements.
        start: its first element.
        unused: whether the rule leaves it to another rule.
    """

    labels: frozenset[str]
    axes: tuple[tuple[str, int, int], ...]
    start: int
    unused: bool = False

    def join(self, inner: Leaf) -> Leaf:
        """The leaf inside this one."""
        return Leaf(
            self.labels | inner.labels, self.axes + inner.axes, self.start + inner.start, self.unused or inner.unused
        )


_EMPTY = Leaf(frozenset(), (), 0)


def _leaves_of(items: Sequence[Item], unit: int, sizes: Mapping[str, int]) -> tuple[list[Leaf], int]:
    """The leaves of a row-major sequence whose last element has stride `unit`; also the stride before the first."""
    combined = [_EMPTY]
    stride = unit
    for item in reversed(items):
        found, stride = _item_leaves(item, stride, sizes)
        combined = [outer.join(inner) for outer in found for inner in combined]
    return combined, stride


def _item_leaves(item: Item, stride: int, sizes: Mapping[str, int]) -> tuple[list[Leaf], int]:
    match item:
        case Axis(name):
            return [Leaf(frozenset(), ((name, sizes[name], stride),), 0)], stride * sizes[name]
        case Number(value):
            return [Leaf(frozenset(), ((f"{value}", value, stride),), 0)], stride * value
        case Group(items):
            return _leaves_of(items, stride, sizes)
        case Blocks(blocks):
            found: list[Leaf] = []
            offset = 0
            for block in blocks:
                leaves, after = _leaves_of(block.items, stride, sizes)
                here = Leaf(frozenset({block.label}) - {UNUSED}, (), offset, block.label == UNUSED)
                found.extend(here.join(leaf) for leaf in leaves)
                offset += after
            return found, offset
        case Rest():
            raise AssertionError("'...' was replaced by its axes")


def _leaves(operand: Operand, sizes: Mapping[str, int], rest: tuple[int, ...]) -> list[Leaf]:
    dims = expand_rest(operand.layout, rest)
    leaves, _ = _leaves_of(dims, 1, sizes)
    named = []
    for leaf in leaves:
        counts: dict[str, int] = {}
        axes = []
        for name, size, stride in leaf.axes:
            if name == "1":
                continue
            if name.isdigit():
                # The k-th `2` of one side is the k-th `2` of the other.
                counts[name] = counts.get(name, 0) + 1
                axes.append((f"{name} (number {counts[name]})", size, stride))
            else:
                axes.append((name, size, stride))
        own = frozenset({operand.label}) if operand.label else frozenset()
        named.append(Leaf(leaf.labels | own, tuple(axes), leaf.start, leaf.unused))
    return named


Problems = list[tuple[Operand, str]]
"""What is wrong, and with which operand."""


class Side:
    """All leaves of one side of a rule, by the labels that tell them apart on both sides."""

    def __init__(
        self,
        operands: Sequence[Operand],
        others: Sequence[Operand],
        sizes: Mapping[str, int],
        rest: tuple[int, ...],
        problems: Problems,
    ) -> None:
        """Collect the leaves of `operands`.

        Args:
            operands: the operands of this side.
            others: those of the other side; a label that it doesn't know can tell nothing apart.
            sizes: the size of every axis.
            rest: the dimensions that `...` stands for.
            problems: takes leaves that can't be told apart, and axes that occur twice.
        """
        self.operands = operands
        self.leaves: dict[frozenset[str], tuple[int, Leaf]] = {}
        known = frozenset[str]().union(*(operand.layout.labels() | {operand.label or ""} for operand in others))
        for index, operand in enumerate(operands):
            for leaf in _leaves(operand, sizes, rest):
                if not leaf.unused:
                    self._add(index, leaf, known, problems)

    def _add(self, index: int, leaf: Leaf, known: frozenset[str], problems: Problems) -> None:
        operand = self.operands[index]
        names = [axis[0] for axis in leaf.axes] + list(operand.key_axes)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            problems.append((operand, f"axis {', '.join(twice)} occurs twice in '{operand.layout}'"))
        labels = leaf.labels if operand.label in known else leaf.labels - {operand.label or ""}
        if labels in self.leaves:
            other = self.operands[self.leaves[labels][0]]
            what = f"block {_label_text(labels)} of '{operand}' can't be told from '{other}'"
            problems.append((operand, f"{what}: give each a label that the other side knows"))
        self.leaves[labels] = (index, leaf)

    def take_out(self, labels: frozenset[str], other: Side) -> list[tuple[int, Leaf]]:
        """Take out the leaves of blocks with these labels, which the other side doesn't have; each with its operand."""
        found = [key for key in self.leaves if key & labels and key not in other.leaves]
        return [self.leaves.pop(key) for key in found]

    def match_single(self, other: Side) -> None:
        """Where each side has one leaf, no label needs to tell them apart."""
        if len(self.leaves) == len(other.leaves) == 1:
            self.leaves = {next(iter(other.leaves)): next(iter(self.leaves.values()))}

    def check_against(self, other: Side, verb: str, problems: Problems) -> None:
        """Note every leaf that the other side doesn't have; `verb` says what becomes of it."""
        there = ", ".join(_label_text(leaf.labels) for _, leaf in other.leaves.values())
        for labels, (index, leaf) in self.leaves.items():
            if labels not in other.leaves:
                operand = self.operands[index]
                what = f"block {_label_text(leaf.labels)} of '{operand.layout}' {verb}"
                problems.append((operand, f"{what}; the other side has {there}"))


def _label_text(labels: frozenset[str]) -> str:
    return "'" + "'.'".join(sorted(labels)) + "'" if labels else "(unlabelled)"
