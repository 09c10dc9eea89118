"""The keys of a checkpoint as a tree small enough to read: what repeats is shown once, with a count.

Subtrees with equal names, shapes and dtypes get the same number, from the leaves up, so that a layer that occurs 32
times is looked at once. Siblings with the same number then share one label: `layers.{0..31}`, `{q,k,v}_proj`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import TypeAlias

from msgspec import Struct

from converters.key_labels import customary_place, gather, is_index, label_of
from converters.tensor_info import DType, TensorInfo
from converters.text import format_nbytes, printable

MAX_KEY_DEPTH = 64
"""Levels that a key is split into; a longer key keeps the rest in its last one."""

MAX_COLUMN_WIDTH = 64
"""A label wider than this sticks out, and leaves the columns of the other lines where they are."""


class KeyNode(Struct, frozen=True, gc=False):
    """A node of the tree, standing for one or many equal subtrees.

    Attributes:
        names: for each level of the label, the names that it stands for; the root has none.
        shape: the tensor's shape; None for a node that isn't a tensor.
        dtype: likewise.
        tensor_count: tensors that it stands for, with all below it.
        nbytes: bytes of their data.
        children: the nodes below it, in order of name.
    """

    names: tuple[tuple[str, ...], ...]
    shape: tuple[int, ...] | None
    dtype: DType | None
    tensor_count: int
    nbytes: int
    children: tuple[KeyNode, ...]

    @property
    def label(self) -> str:
        """Its part of the key, such as `layers.{0..31}`; as opaque as the names in the file."""
        return ".".join(label_of(names) for names in self.names)

    def to_json(self) -> dict[str, object]:
        """The tree as plain data, with every name that a label stands for."""
        return {
            "label": self.label,
            "names": [list(names) for names in self.names],
            "shape": None if self.shape is None else list(self.shape),
            "dtype": None if self.dtype is None else str(self.dtype),
            "tensor_count": self.tensor_count,
            "nbytes": self.nbytes,
            "children": [child.to_json() for child in self.children],
        }


def build_key_tree(tensors: Iterable[TensorInfo]) -> KeyNode:
    """The tree of all tensors, whose names are unique; the root stands for the whole checkpoint."""
    structures = _Structures()
    root = structures.number_of(tensors)
    tensor_count, nbytes = structures.totals(root)
    return KeyNode((), None, None, tensor_count, nbytes, structures.nodes(root, 1))


def render_key_tree(root: KeyNode) -> list[str]:
    """A line for each node below the root: label, shape, dtype, number of tensors and bytes, in aligned columns."""
    rows: list[tuple[str, str, str, str, str]] = []
    waiting = [(child, 0) for child in reversed(root.children)]
    while waiting:
        node, depth = waiting.pop()
        rows.append(
            (
                "  " * depth + printable(node.label),
                "" if node.shape is None else str(list(node.shape)),
                "" if node.dtype is None else str(node.dtype),
                f"{node.tensor_count:,} {'tensor ' if node.tensor_count == 1 else 'tensors'}",
                format_nbytes(node.nbytes),
            )
        )
        waiting += [(child, depth + 1) for child in reversed(node.children)]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(5)]
    widths[0] = max((len(row[0]) for row in rows if len(row[0]) <= MAX_COLUMN_WIDTH), default=0)
    aligned = "  ".join(f"{{:{side}{width}}}" for side, width in zip("<<<>>", widths, strict=True))
    return [aligned.format(*row) for row in rows]


_Members: TypeAlias = tuple[str | int, ...]
"""A name, the number of what it names, the next name, ...: flat, since a checkpoint has a hundred thousand of them."""

_Entry: TypeAlias = tuple[tuple[str, ...], int]


class _Structures:
    """All different subtrees, each by its number; a tensor is the smallest of them."""

    def __init__(self) -> None:
        self._tensors: list[TensorInfo | None] = []
        self._members: list[list[tuple[str, int]]] = []
        self._totals: list[tuple[int, int]] = []
        self._numbers: dict[_Members, int] = {}
        self._entries: dict[int, list[_Entry]] = {}

    def number_of(self, tensors: Iterable[TensorInfo]) -> int:
        """The number of the tree that these tensors make."""
        members_of: dict[str | None, list[str | int]] = {None: []}
        parent: str | None
        paths_by_depth: list[list[str]] = [[] for _ in range(MAX_KEY_DEPTH)]
        kinds: dict[tuple[tuple[int, ...], DType], int] = {}
        for tensor in tensors:
            kind = (tensor.shape, tensor.dtype)
            number = kinds.get(kind)
            if number is None:
                number = kinds[kind] = self._add(tensor, [], (1, tensor.nbytes))
            parent, dot, name = tensor.name.rpartition(".")
            if not dot or len(parent) >= MAX_KEY_DEPTH:
                parent, name = _split(tensor.name)
            members = members_of.get(parent)
            if members is None:
                members = _begin(parent, members_of, paths_by_depth)
            members += (name, number)
        # The deepest first, so that whatever is below a path has its number already.
        for paths in reversed(paths_by_depth):
            for path in paths:
                number = self._number(tuple(members_of.pop(path)))
                parent, dot, name = path.rpartition(".")
                if not dot or len(parent) >= MAX_KEY_DEPTH:
                    parent, name = _split(path)
                members = members_of.get(parent)
                if members is None:
                    members = _begin(parent, members_of, paths_by_depth)
                members += (name, number)
        return self._number(tuple(members_of[None]))

    def totals(self, number: int) -> tuple[int, int]:
        """How many tensors one such tree has, and their bytes."""
        return self._totals[number]

    def nodes(self, number: int, copies: int) -> tuple[KeyNode, ...]:
        """The nodes below so many copies of a tree; recurses no deeper than `MAX_KEY_DEPTH`."""
        found = []
        for names, member in self._labelled(number):
            levels, inner, count = [names], member, copies * len(names)
            while self._tensors[inner] is None and len(below := self._labelled(inner)) == 1:
                names_below, inner = below[0]
                levels.append(names_below)
                count *= len(names_below)
            tensor = self._tensors[inner]
            tensor_count, nbytes = self._totals[inner]
            found.append(
                KeyNode(
                    tuple(levels),
                    None if tensor is None else tensor.shape,
                    None if tensor is None else tensor.dtype,
                    tensor_count * count,
                    nbytes * count,
                    self.nodes(inner, count) if tensor is None else (),
                )
            )
        return tuple(found)

    def _labelled(self, number: int) -> list[_Entry]:
        """What is directly below a tree: names that share a label, and the number of what they name."""
        members = self._members[number]
        if len(members) == 1:
            ((name, member),) = members
            return [((name,), member)]
        entries = self._entries.get(number)
        if entries is None:
            names_by_number: dict[int, list[str]] = {}
            for name, member in members:
                names_by_number.setdefault(member, []).append(name)
            entries = [
                (names, member)
                for member, same in names_by_number.items()
                for names in (gather(same) if len(same) > 1 else ((same[0],),))
            ]
            if len(entries) > 1:
                entries.sort(key=_place)
            self._entries[number] = entries
        return entries

    def _number(self, members: _Members) -> int:
        number = self._numbers.get(members)
        if number is not None:
            return number
        # Another order of the same names is the same tree; most files have one order throughout, and end above.
        pairs: list[tuple[str, int]] = sorted(zip(members[::2], members[1::2], strict=True))  # type: ignore[arg-type]
        in_order: _Members = tuple(chain.from_iterable(pairs)) if len(pairs) > 1 else members
        number = self._numbers.get(in_order)
        if number is None:
            tensor_count = nbytes = 0
            for _, member in pairs:
                tensor_count += self._totals[member][0]
                nbytes += self._totals[member][1]
            number = self._numbers[in_order] = self._add(None, pairs, (tensor_count, nbytes))
        self._numbers[members] = number
        return number

    def _add(self, tensor: TensorInfo | None, members: list[tuple[str, int]], totals: tuple[int, int]) -> int:
        self._tensors.append(tensor)
        self._members.append(members)
        self._totals.append(totals)
        return len(self._totals) - 1


def _split(path: str) -> tuple[str | None, str]:
    """The path above, which is None for the root, and the last name."""
    parent, dot, name = path.rpartition(".")
    if len(parent) >= MAX_KEY_DEPTH and parent.count(".") >= MAX_KEY_DEPTH:
        parts = path.split(".", MAX_KEY_DEPTH)
        parent, name = ".".join(parts[:-1]), parts[-1]
    return (parent if dot else None), name


def _begin(
    path: str | None, members_of: dict[str | None, list[str | int]], paths_by_depth: list[list[str]]
) -> list[str | int]:
    members: list[str | int] = []
    members_of[path] = members
    if path is not None:
        paths_by_depth[path.count(".")].append(path)
    return members


def _place(entry: _Entry) -> tuple[int, int, str]:
    """Indices by value first, then weight before bias, then the others by name."""
    name = entry[0][0]
    return (0, int(name), "") if is_index(name) else (1, customary_place(name), name)
