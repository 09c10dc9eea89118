"""A trie that finds the patterns that a key matches without trying each."""

from __future__ import annotations

from dataclasses import dataclass, field

from converters.keys import Binding, CompiledPart, CompiledPattern, match_segment
from converters.pattern import Choice

MAX_REMEMBERED = 10_000
"""Beginnings of keys that a trie remembers at once. Keys of one layer or expert mostly stand together in a file."""

MAX_REMEMBERED_KEY = 400
"""Characters of a key whose beginnings are remembered, each by itself: a longer one isn't worth the memory."""


def _accepted(part: CompiledPart) -> object:
    """What a part of a segment accepts; parts that accept the same share a branch, whatever they are called."""
    if isinstance(part, str):
        return part
    return part.kind.names if isinstance(part.kind, Choice) else type(part.kind)


@dataclass(slots=True)
class _Node:
    literal: dict[str, _Node] = field(default_factory=dict)
    computed: dict[tuple[object, ...], tuple[tuple[CompiledPart, ...], _Node]] = field(default_factory=dict)
    ends: list[tuple[CompiledPattern, int]] = field(default_factory=list)


_Reached = list[tuple[_Node, tuple[str, ...]]]
"""Where the beginning of a key leads to, and the text of each placeholder on the way."""


class KeyTrie:
    """Patterns by their segments; each is added with a number that `match` gives back.

    Keys of one layer begin alike, so it is remembered where a beginning leads to.
    """

    def __init__(self) -> None:
        self.root = _Node()
        self.dotted: list[tuple[CompiledPattern, int]] = []
        self._dots: set[int] = set()
        self._remembered: dict[str, _Reached] = {}

    def add(self, pattern: CompiledPattern, number: int) -> None:
        """Add a pattern."""
        if pattern.dotted is not None:
            self.dotted.append((pattern, number))
            return
        self._remembered.clear()
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
            for node, captures in self._reached(key):
                for pattern, number in node.ends:
                    binding = pattern.bind(captures)
                    if binding is not None:
                        found.append((number, binding))
        for pattern, number in self.dotted:
            binding = pattern.match(key)
            if binding is not None:
                found.append((number, binding))
        return found

    def _reached(self, key: str) -> _Reached:
        """Where a whole key leads to from the root."""
        reached: _Reached = [(self.root, ())]
        if len(key) > MAX_REMEMBERED_KEY:
            for text in key.split("."):
                reached = _step(reached, text)
            return reached
        above, dot, last = key.rpartition(".")
        return _step(self._after(above) if dot else reached, last)

    def _after(self, path: str) -> _Reached:
        """Where the beginning of a key leads to."""
        reached = self._remembered.get(path)
        if reached is None:
            reached = self._reached(path)
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[path] = reached
        return reached


def _step(reached: _Reached, text: str) -> _Reached:
    """One segment further."""
    following: _Reached = []
    for node, captures in reached:
        for parts, child in reversed(node.computed.values()):
            captured = match_segment(parts, text)
            if captured is not None:
                following.append((child, captures + captured))
        literal = node.literal.get(text)
        if literal is not None:
            following.append((literal, captures))
    return following
