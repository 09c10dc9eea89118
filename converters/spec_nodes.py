"""Reading YAML nodes as what a spec wants them to be; whatever doesn't fit becomes a problem, and reading goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

from converters.errors import Location, Problem, SpecError
from converters.yaml_nodes import ListNode, MappingNode, Node, ScalarNode

T = TypeVar("T")
P = ParamSpec("P")


class Reader:
    """Collects problems while a spec is read, so that all of them come at once."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def problem(self, what: str, where: Node | Location, hint: str | None = None) -> None:
        """Note a problem at a node."""
        self.problems.append(Problem(what, where if isinstance(where, Location) else where.location, hint))

    def attempt(self, parse: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """The result of `parse`, or None when it raised a `SpecError`, whose problems are noted."""
        try:
            return parse(*args, **kwargs)
        except SpecError as error:
            self.problems.extend(error.problems)
            return None

    def mapping(self, node: Node, what: str) -> MappingNode | None:
        """The node as a mapping."""
        if isinstance(node, MappingNode):
            return node
        self.problem(f"{what} must be a mapping of keys to values", node)
        return None

    def entries(self, node: Node | None, what: str) -> tuple[tuple[ScalarNode, Node], ...]:
        """The entries of a mapping that may be absent."""
        if node is None:
            return ()
        mapping = self.mapping(node, f"'{what}'")
        return mapping.entries if mapping is not None else ()

    def items(self, node: Node | None, what: str) -> tuple[Node, ...]:
        """The items of a list that may be absent."""
        if node is None:
            return ()
        if isinstance(node, ListNode):
            return node.items
        self.problem(f"'{what}' must be a list, each item on a line that starts with '-'", node)
        return ()

    def text(self, node: Node | None, what: str) -> str | None:
        """The node as text; None where it is absent or something else."""
        if node is None:
            return None
        if isinstance(node, ScalarNode) and isinstance(node.value, str):
            return node.value
        self.problem(f"'{what}' must be text", node, "put it in quotes" if isinstance(node, ScalarNode) else None)
        return None

    def texts(self, node: Node | None, what: str) -> tuple[str, ...]:
        """The node as a list of texts that may be absent."""
        found = (self.text(item, what) for item in self.items(node, what))
        return tuple(text for text in found if text is not None)

    def flag(self, node: Node | None, what: str) -> bool:
        """The node as true or false; false where it is absent."""
        if node is None:
            return False
        if isinstance(node, ScalarNode) and isinstance(node.value, bool):
            return node.value
        self.problem(f"'{what}' must be true or false", node)
        return False

    def known_keys(self, mapping: MappingNode, known: Iterable[str], what: str) -> None:
        """Refuse keys that mean nothing: a misspelt one would be ignored in silence."""
        names = list(known)
        for key, _ in mapping.entries:
            if key.value not in names:
                import difflib  # only a mistake needs it

                close = difflib.get_close_matches(str(key.value), names, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(names)}"
                self.problem(f"{what} has no key {key.text!r}", key, hint)
