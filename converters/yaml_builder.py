"""The stack that builds a tree of nodes from the parser's events.

PyYAML's own composer recurses (libyaml's crashes the interpreter at 30,000 levels), forgets positions, lets a second
key overwrite the first, and resolves tags. This one keeps a stack, notes every problem, and goes on where it can.
"""

from __future__ import annotations

from collections.abc import Iterable

import yaml
from msgspec import Struct, field

from converters.errors import Location, Problem, SpecError
from converters.yaml_scalars import AmbiguousScalarError, read_plain
from converters.yaml_syntax import QUOTE_PATTERNS, syntax_problem
from converters.yaml_tree import ListNode, MappingNode, Node, ScalarNode

MAX_NESTING = 64
"""Levels of lists and mappings, counted with aliases followed, so that every walk over the tree may recurse."""

MAX_NODES = 200_000
"""Values in all: 50 MB of memory and a second of parsing; the largest spec has a tenth."""

MAX_ALIASED_NODES = 10_000
"""Nodes that aliases may add in all, so that a short file can't stand for a huge one."""

MAX_REPORTED_PROBLEMS = 100
"""A file that isn't a spec at all can have one problem a line; more than this helps nobody."""

_LONGEST_SHOWN = 80


class _OpenCollection(Struct):
    """A list or mapping whose end hasn't come yet."""

    location: Location
    is_mapping: bool
    is_flow: bool
    anchor: str | None
    items: list[Node] = field(default_factory=list)
    entries: list[tuple[ScalarNode, Node]] = field(default_factory=list)
    pending_key: Node | None = None
    first_places: dict[str, Location] = field(default_factory=dict)
    node_count: int = 1
    height: int = 1


class _Anchored(Struct, frozen=True):
    """What an anchor stands for; `node` is None until it is complete."""

    location: Location
    node: Node | None = None
    node_count: int = 0
    height: int = 0


class TreeBuilder:
    """Builds the tree of one document; every problem is noted, and building goes on where it can.

    Args:
        path: the file's name in messages.
        text: the document.
    """

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._text = text
        self._problems: list[Problem] = []
        self._open: list[_OpenCollection] = []
        self._anchors: dict[str, _Anchored] = {}
        self._aliased_nodes = 0
        self._documents = 0
        self._node_count = 0
        self._root: Node | None = None

    def build(self) -> Node:
        """The tree.

        Raises:
            SpecError: holds every problem that was noted, in the order of the file.
        """
        try:
            for event in _events(self._text):
                if not self._take(event):
                    break
        except yaml.YAMLError as error:
            self._note_syntax(syntax_problem(error, self._path, self._text))
        except (ValueError, OverflowError):
            # The parser that is written in Python passes on what chr() makes of "\UFFFFFFFF".
            self._problems.append(Problem("an escape stands for no character", self._path))
        if not self._problems and (self._root is None or _is_empty(self._root)):
            self._note("the document is empty", Location(self._path, 1, 1), "expected a mapping, such as 'name: value'")
        if self._problems or self._root is None:
            raise SpecError(self._problems_in_order())
        return self._root

    def _problems_in_order(self) -> list[Problem]:
        problems = sorted(self._problems, key=_position)
        if len(problems) > MAX_REPORTED_PROBLEMS:
            left_out = len(problems) - MAX_REPORTED_PROBLEMS
            problems[MAX_REPORTED_PROBLEMS:] = [Problem(f"{left_out} more problems like these", self._path)]
        return problems

    def _note(self, what: str, where: Location, hint: str | None = None) -> None:
        self._problems.append(Problem(what, where, hint))

    def _note_syntax(self, problem: Problem) -> None:
        # A placeholder without quotes is one mistake, though the parser stumbles over it a second time.
        last = self._problems[-1].where if self._problems else None
        same_line = (
            isinstance(last, Location) and isinstance(problem.where, Location) and last.line == problem.where.line
        )
        if not same_line:
            self._problems.append(problem)

    def _take(self, event: yaml.Event) -> bool:
        """Handles one event; returns whether the rest is worth reading."""
        mark = event.start_mark
        location = Location(self._path, mark.line + 1, mark.column + 1) if mark else Location(self._path, 1, 1)
        if isinstance(event, yaml.NodeEvent):
            self._node_count += 1
            if self._node_count > MAX_NODES:
                self._note(f"more than {MAX_NODES} values", location, "name keys by patterns, or split the file")
                return False
        if isinstance(event, yaml.ScalarEvent):
            self._check_tag(event.tag, location)
            node = self._scalar(event, location)
            self._register_anchor(event.anchor, location)
            self._finish_anchor(event.anchor, node, 1, 0)
            self._attach(node, 1, 0)
        elif isinstance(event, yaml.CollectionStartEvent):
            return self._begin_collection(event, location)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._end_collection()
        elif isinstance(event, yaml.AliasEvent):
            self._attach(*self._resolve_alias(str(event.anchor), location))
        elif isinstance(event, yaml.DocumentStartEvent):
            return self._begin_document(event, location)
        return True

    def _begin_document(self, event: yaml.DocumentStartEvent, location: Location) -> bool:
        self._documents += 1
        if self._documents > 1:
            self._note("a second document starts here", location, "a file holds one document; remove the ---")
            return False
        if event.tags:
            self._note("%TAG is not allowed", location, "remove it; a spec has no tags")
        return True

    def _begin_collection(self, event: yaml.CollectionStartEvent, location: Location) -> bool:
        if len(self._open) == MAX_NESTING:
            self._note(f"more than {MAX_NESTING} levels of nesting", location)
            return False
        self._check_tag(event.tag, location)
        self._register_anchor(event.anchor, location)
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        self._open.append(_OpenCollection(location, is_mapping, bool(event.flow_style), event.anchor))
        return True

    def _end_collection(self) -> None:
        ended = self._open.pop()
        node: Node = (
            MappingNode(tuple(ended.entries), ended.location)
            if ended.is_mapping
            else ListNode(tuple(ended.items), ended.location)
        )
        self._finish_anchor(ended.anchor, node, ended.node_count, ended.height)
        self._attach(node, ended.node_count, ended.height)

    def _check_tag(self, tag: str | None, location: Location) -> None:
        if tag is not None:
            shown = tag.replace("tag:yaml.org,2002:", "!!", 1)
            self._note(
                f"the tag {_shown(shown)} is not allowed",
                location,
                "a spec has no tags; quote text, and remove the tag",
            )

    def _scalar(self, event: yaml.ScalarEvent, location: Location) -> ScalarNode:
        text = str(event.value)
        if event.style:
            if any("\ud800" <= character <= "\udfff" for character in text):
                self._note("half of a surrogate pair is not a character", location, "write it as \\U and eight digits")
            return ScalarNode(text, text, quoted=True, location=location)
        try:
            return ScalarNode(read_plain(text), text, quoted=False, location=location)
        except AmbiguousScalarError as error:
            # A key that is `<<` gets a better message where it is attached.
            if not (text == "<<" and self._expects_key()):
                self._note(error.what, location, error.hint)
            return ScalarNode(text, text, quoted=False, location=location)

    def _expects_key(self) -> bool:
        return bool(self._open) and self._open[-1].is_mapping and self._open[-1].pending_key is None

    def _register_anchor(self, anchor: str | None, location: Location) -> None:
        if anchor is None:
            return
        first = self._anchors.get(anchor)
        if first is not None:
            self._note(f"the anchor &{anchor} is already set at {_place(first.location)}", location)
        self._anchors[anchor] = _Anchored(location)

    def _finish_anchor(self, anchor: str | None, node: Node, node_count: int, height: int) -> None:
        if anchor is not None:
            self._anchors[anchor] = _Anchored(node.location, node, node_count, height)

    def _resolve_alias(self, anchor: str, location: Location) -> tuple[Node, int, int]:
        """The node, the number of nodes and the height that an alias adds; a stand-in where it can't be followed."""
        stand_in = (ScalarNode("*" + anchor, "*" + anchor, quoted=True, location=location), 1, 0)
        target = self._anchors.get(anchor)
        if target is None:
            self._note(
                f"no anchor &{anchor} is set before this alias", location, "text that starts with * must be quoted"
            )
            return stand_in
        if target.node is None:
            self._note(f"the alias *{anchor} is inside its own anchor, at {_place(target.location)}", location)
            return stand_in
        if len(self._open) + target.height > MAX_NESTING:
            self._note(f"more than {MAX_NESTING} levels of nesting once the alias *{anchor} is followed", location)
            return stand_in
        within_limit = self._aliased_nodes <= MAX_ALIASED_NODES
        self._aliased_nodes += target.node_count
        if self._aliased_nodes > MAX_ALIASED_NODES:
            if within_limit:
                self._note(f"aliases stand for more than {MAX_ALIASED_NODES} values in all", location)
            return stand_in
        return target.node, target.node_count, target.height

    def _attach(self, node: Node, node_count: int, height: int) -> None:
        """Puts a complete node where it belongs: the root, the next item, the next key, or the key's value."""
        if not self._open:
            self._root = node
            return
        parent = self._open[-1]
        parent.node_count += node_count
        parent.height = max(parent.height, height + 1)
        if not parent.is_mapping:
            parent.items.append(node)
        elif parent.pending_key is None:
            self._check_key(parent, node)
            parent.pending_key = node
        else:
            key, parent.pending_key = parent.pending_key, None
            if parent.is_flow and _is_empty(node):
                self._note_missing_value(key)
            if isinstance(key, ScalarNode):
                parent.entries.append((key, node))

    def _check_key(self, parent: _OpenCollection, key: Node) -> None:
        if not isinstance(key, ScalarNode):
            is_placeholder = isinstance(key, MappingNode) and any(_is_empty(value) for _, value in key.entries)
            if not is_placeholder:  # which is noted already
                kind = "mapping" if isinstance(key, MappingNode) else "list"
                self._note(f"a key must be text, and this is a {kind}", key.location, QUOTE_PATTERNS)
        elif not isinstance(key.value, str):
            shown = key.text or "nothing"
            kind = {bool: "true or false", type(None): "null"}.get(type(key.value), "a number")
            self._note(f"a key must be text, and {shown} is {kind}", key.location, f'write "{key.text}"')
        elif key.text == "<<" and not key.quoted:
            self._note(
                "merge keys (<<) are not allowed", key.location, "write the entries out, or use an alias as a value"
            )
        elif (first := parent.first_places.get(key.value)) is not None:
            self._note(f"the key {_shown(key.value)} is already given at {_place(first)}", key.location)
        else:
            parent.first_places[key.value] = key.location

    def _note_missing_value(self, key: Node) -> None:
        shown = key.text if isinstance(key, ScalarNode) else "..."
        self._note(
            f"the key {_shown(shown)} has no value",
            key.location,
            f'if {{{shown}}} is a placeholder, put the whole text in quotes, such as "{{{shown}}}.weight"',
        )


def _events(text: str) -> Iterable[yaml.Event]:
    # libyaml's parser takes a tenth of the time; a PyYAML that was built without it has only the other.
    return yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _is_empty(node: Node) -> bool:
    return isinstance(node, ScalarNode) and not node.quoted and not node.text


def _position(problem: Problem) -> tuple[int, int]:
    return (problem.where.line, problem.where.column) if isinstance(problem.where, Location) else (0, 0)


def _place(location: Location) -> str:
    return f"line {location.line}, column {location.column}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "...")
