"""A trie that finds the patterns that a key matches without trying each."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce

from msgspec import Struct

from converters.keys import Binding, CompiledPart, CompiledPattern, match_segment
from converters.pattern import Choice

MAX_REMEMBERED = 10_000
"""Steps that a trie remembers at once. Names of layers, experts and parameters are few, whatever their combinations."""

MAX_REMEMBERED_TEXT = 400
"""Characters of a segment that is remembered: a longer one isn't worth the memory."""


def _accepted(part: CompiledPart) -> object:
    """What a part of a segment accepts; parts that accept the same share a branch, whatever they are called."""
    if isinstance(part, str):
        return part
    return part.kind.names if isinstance(part.kind, Choice) else type(part.kind)


class _Node(Struct, eq=False):
    literal: dict[str, _Node] = {}
    computed: dict[tuple[object, ...], tuple[tuple[CompiledPart, ...], _Node]] = {}
    ends: list[tuple[CompiledPattern, int]] = []


class _State(dict[str, "_State"]):
    """The nodes that the beginning of a key leads to, what ends there, and where each segment leads to from there.

    A segment that is asked for is looked up as in any dictionary; of a new one it is worked out and remembered.
    """

    __slots__ = ("ends", "nodes", "states")

    def __init__(self, nodes: Sequence[_Node], states: _States) -> None:
        super().__init__()
        self.nodes = nodes
        self.states = states
        self.ends = [end for node in nodes for end in node.ends]

    def __missing__(self, text: str) -> _State:
        nodes: list[_Node] = []
        for node in self.nodes:
            for parts, child in reversed(node.computed.values()):
                if match_segment(parts, text) is not None:
                    nodes.append(child)
            literal = node.literal.get(text)
            if literal is not None:
                nodes.append(literal)
        following = self.states.of(nodes)
        if len(text) <= MAX_REMEMBERED_TEXT:
            self.states.make_room()
            self[text] = following
        return following


class _States:
    """The states of a trie: where keys begin, and one for each set of nodes that they lead to."""

    def __init__(self, root: _Node) -> None:
        self.start = _State([root], self)
        self._by_nodes: dict[tuple[int, ...], _State] = {}
        self._remembered = 0

    def of(self, nodes: Sequence[_Node]) -> _State:
        """The state of these nodes."""
        case = tuple(map(id, nodes))
        if case not in self._by_nodes:
            self._by_nodes[case] = _State(nodes, self)
        return self._by_nodes[case]

    def make_room(self) -> None:
        """Count one more step that is remembered; where there are too many, all of them are forgotten first."""
        if self._remembered >= MAX_REMEMBERED:
            for state in (self.start, *self._by_nodes.values()):
                state.clear()
            self._by_nodes.clear()
            self._remembered = 0
        self._remembered += 1


class KeyTrie:
    """Patterns by their segments; each is added with a number that `match` gives back.

    It remembers where each segment leads to from where, so that a key takes no more than a look-up for each of its own.
    """

    def __init__(self) -> None:
        self.root = _Node()
        self.dotted: list[tuple[CompiledPattern, int]] = []
        self._dots: set[int] = set()
        self._start = _States(self.root).start

    def add(self, pattern: CompiledPattern, number: int) -> None:
        """Add a pattern."""
        if pattern.dotted is not None:
            self.dotted.append((pattern, number))
            return
        self._start = _States(self.root).start
        self._dots.add(len(pattern.segments) - 1)
        node = self.root
        for segment in pattern.segments:
            if len(segment) == 1 and isinstance(segment[0], str):
                node = node.literal.setdefault(segment[0], _Node())
                continue
            _, node = node.computed.setdefault(tuple(map(_accepted, segment)), (segment, _Node()))
        node.ends.append((pattern, number))

    def match(self, key: str) -> list[tuple[int, Binding]]:
        """The numbers of all patterns that the key matches, and what their placeholders stand for."""
        found: list[tuple[int, Binding]] = []
        if key.count(".") in self._dots:
            texts = key.split(".")
            for pattern, number in reduce(operator.getitem, texts, self._start).ends:
                binding = pattern.bind_segments(texts)
                if binding is not None:
                    found.append((number, binding))
        for pattern, number in self.dotted:
            binding = pattern.match(key)
            if binding is not None:
                found.append((number, binding))
        return found
