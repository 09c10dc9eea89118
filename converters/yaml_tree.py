"""The nodes of a YAML document: scalars, lists and mappings that remember where they stood."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from converters.errors import Location
from converters.yaml_scalars import PlainValue


class ScalarNode(Struct, frozen=True):
    """A single value.

    Attributes:
        value: what it means.
        text: how it was written, without quotes and with escapes resolved.
        quoted: whether it stood in quotes or in a block (`|`, `>`), and so is text whatever it looks like.
        location: where it begins.
    """

    value: PlainValue
    text: str
    quoted: bool
    location: Location


class ListNode(Struct, frozen=True):
    """A list, in block or in flow style."""

    items: tuple[Node, ...]
    location: Location


class MappingNode(Struct, frozen=True):
    """A mapping in the order of the file. Every key's `value` is a str, and no key occurs twice."""

    entries: tuple[tuple[ScalarNode, Node], ...]
    location: Location

    def get(self, key: str) -> Node | None:
        """The value of `key`, or None when the mapping doesn't have it."""
        for key_node, value in self.entries:
            if key_node.value == key:
                return value
        return None


Node: TypeAlias = ScalarNode | ListNode | MappingNode


def to_plain(node: Node) -> object:
    """The tree as dicts, lists and values, without positions."""
    if isinstance(node, ScalarNode):
        return node.value
    if isinstance(node, ListNode):
        return [to_plain(item) for item in node.items]
    return {str(key.value): to_plain(value) for key, value in node.entries}
