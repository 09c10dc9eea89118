"""The layout notation: how the axes of a rule lie in a tensor's dimensions.

The notation is einops' (parentheses compose row-major, `...` is the rest of the dimensions) plus ragged blocks: sizes
laid side by side in one dimension, `(q: H D | k: G D | v: G D)`. A layout says nothing of where a tensor comes from;
`lowering.py` compares two of them.

    layout    = { item }                            each item is one dimension of the tensor
    item      = NAME | NUMBER | "..." | "(" group ")"
    group     = sequence | block "|" block { "|" block }
    block     = LABEL ":" sequence                  the label `_` marks elements that the rule leaves to another rule
    sequence  = item { item }                       row-major: the last item varies fastest
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from converters.errors import Location, Problem, SpecError
from converters.text import printable

MAX_NESTING = 64
MAX_LEAVES = 1000
"""Pieces that blocks may cut a tensor into; each dimension of two blocks makes twice as many."""
MAX_ITEMS = 2000
"""Axes, numbers, parentheses and signs of a layout; the longest that anybody writes has a hundredth."""
MAX_DIGITS = 18
"""Digits of a number in a layout: the largest still fits 64 bits."""

UNUSED = "_"
_SHOWN = 100


class Axis(Struct, frozen=True):
    """A named axis; its size comes from `dims`, from a key's indices or from the tensor."""

    name: str

    def __str__(self) -> str:
        return self.name


class Number(Struct, frozen=True):
    """An axis of a fixed size. The k-th number of a size on one side is the k-th of that size on the other."""

    value: int

    def __str__(self) -> str:
        return str(self.value)


class Rest(Struct, frozen=True):
    """`...`: all the dimensions that are not named, none included."""

    def __str__(self) -> str:
        return "..."


class Block(Struct, frozen=True):
    """One labelled part of a dimension."""

    label: str
    items: tuple[Item, ...]

    def __str__(self) -> str:
        return f"{self.label}: {' '.join(map(str, self.items))}"


class Blocks(Struct, frozen=True):
    """Blocks laid side by side in one dimension; their sizes may differ."""

    blocks: tuple[Block, ...]

    def __str__(self) -> str:
        return f"({' | '.join(map(str, self.blocks))})"


class Group(Struct, frozen=True):
    """Axes composed into one dimension, row-major."""

    items: tuple[Item, ...]

    def __str__(self) -> str:
        return f"({' '.join(map(str, self.items))})"


Item = Axis | Number | Rest | Blocks | Group


class Layout(Struct, frozen=True):
    """The dimensions of a tensor, outermost first."""

    dims: tuple[Item, ...]

    def __str__(self) -> str:
        return " ".join(map(str, self.dims))

    def axis_names(self) -> frozenset[str]:
        """The names of all named axes."""
        return frozenset(item.name for item in walk(self.dims) if isinstance(item, Axis))

    def labels(self) -> frozenset[str]:
        """The labels of all blocks, `_` excepted."""
        found = (block.label for item in walk(self.dims) if isinstance(item, Blocks) for block in item.blocks)
        return frozenset(found) - {UNUSED}

    @property
    def has_rest(self) -> bool:
        """Whether `...` occurs."""
        return any(isinstance(item, Rest) for item in self.dims)


WHOLE = Layout((Rest(),))
"""The layout of a tensor whose dimensions don't matter: every dimension as it is."""


def walk(items: tuple[Item, ...]) -> Iterator[Item]:
    """Every item of a tree, parents before children."""
    for item in items:
        yield item
        if isinstance(item, Group):
            yield from walk(item.items)
        elif isinstance(item, Blocks):
            for block in item.blocks:
                yield from walk(block.items)


class _Token(Struct, frozen=True):
    text: str
    column: int


_SINGLE = "()|:"


def _tokenize(text: str, fail: _Fail) -> list[_Token]:
    tokens: list[_Token] = []
    position = 0
    while position < len(text):
        char = text[position]
        start = position
        if char.isspace():
            position += 1
            continue
        if text.startswith("...", position):
            position += 3
        elif char in _SINGLE:
            position += 1
        elif char.isascii() and (char.isalnum() or char == "_"):
            while (
                position < len(text)
                and text[position].isascii()
                and (text[position].isalnum() or text[position] == "_")
            ):
                position += 1
        else:
            raise fail(
                f"unexpected {char!r}", start, "a layout is made of axis names, numbers, '...', '( )', '|' and ':'"
            )
        tokens.append(_Token(text[start:position], start))
    return tokens


class _Fail:
    """Makes an error that points into the layout's text."""

    def __init__(self, text: str, location: Location | None) -> None:
        self.text = text
        self.location = location

    def __call__(self, what: str, column: int, hint: str | None = None) -> SpecError:
        start = max(0, column - _SHOWN)
        shown = printable(self.text[start : column + _SHOWN])
        pointer = f"{shown}\n    {' ' * len(printable(self.text[start:column]))}^"
        return SpecError(
            Problem(
                f"layout: {what}, at column {column + 1} of the layout",
                self.location,
                f"{pointer}\n    {hint}" if hint else pointer,
            )
        )


class _Parser:
    def __init__(self, text: str, fail: _Fail) -> None:
        self.fail = fail
        self.end = len(text)
        self.tokens = _tokenize(text, fail)
        self.position = 0

    def peek(self) -> str:
        return self.tokens[self.position].text if self.position < len(self.tokens) else ""

    def column(self) -> int:
        return self.tokens[self.position].column if self.position < len(self.tokens) else self.end

    def sequence(self, depth: int) -> tuple[Item, ...]:
        if depth > MAX_NESTING:
            raise self.fail(f"nested deeper than {MAX_NESTING}", self.column())
        items: list[Item] = []
        while (token := self.peek()) and token not in "|):":
            column = self.column()
            self.position += 1
            if token == "...":
                if depth:
                    raise self.fail("'...' stands for whole dimensions and can't be inside parentheses", column)
                items.append(Rest())
            elif token == "(":
                items.append(self.group(depth + 1, column))
            elif token.isdigit():
                if len(token) > MAX_DIGITS or int(token) < 1:
                    raise self.fail(f"a size of {token} is out of range", column, "write a number from 1 on")
                items.append(Number(int(token)))
            elif token[0].isdigit():
                raise self.fail(f"{token!r} is neither a name nor a number", column)
            else:
                items.append(Axis(token))
        return tuple(items)

    def group(self, depth: int, opened: int) -> Group | Blocks:
        blocks: list[Block] = []
        labelled = False
        while True:
            start = self.column()
            label = None
            following = self.tokens[self.position + 1].text if self.position + 1 < len(self.tokens) else ""
            if following == ":" and (self.peek()[0].isalpha() or self.peek()[0] == "_"):
                label, labelled = self.peek(), True
                self.position += 2
            items = self.sequence(depth)
            if not items:
                raise self.fail("empty parentheses or block", start, "write the axes; a size of one is the number 1")
            closing = self.peek()
            if closing == "|" or labelled:
                labelled = True
                if label is None:
                    raise self.fail(
                        "a block without a label", start, "label each block, as in (q: H D | k: G D | v: G D)"
                    )
                if label != UNUSED and any(block.label == label for block in blocks):
                    raise self.fail(f"two blocks labelled {label!r}", start)
                blocks.append(Block(label, items))
            if closing == ")":
                self.position += 1
                return Blocks(tuple(blocks)) if labelled else Group(items)
            if closing != "|":
                if not closing:
                    raise self.fail("a parenthesis that isn't closed", opened)
                raise self.fail(f"unexpected {closing!r}", self.column(), "a label is a name followed by one ':'")
            self.position += 1


def _count_leaves(items: tuple[Item, ...]) -> int:
    """How many pieces blocks make: one for each choice of a block in each dimension."""
    count = 1
    for item in items:
        if isinstance(item, Group):
            count *= _count_leaves(item.items)
        elif isinstance(item, Blocks):
            count *= sum(_count_leaves(block.items) for block in item.blocks)
    return count


def parse_layout(text: str, location: Location | None = None) -> Layout:
    """Parse a layout such as `(q: H D | k: G D | v: G D) ...`.

    Raises:
        SpecError: the text is no layout; the message points at the column.
    """
    fail = _Fail(text, location)
    parser = _Parser(text, fail)
    if len(parser.tokens) > MAX_ITEMS:
        raise fail(f"it has {len(parser.tokens):,} parts; at most {MAX_ITEMS:,} are read", 0)
    dims = parser.sequence(0)
    if parser.position < len(parser.tokens):
        raise fail(f"unexpected {parser.peek()!r}", parser.column())
    if sum(isinstance(item, Rest) for item in dims) > 1:
        raise fail("'...' twice", text.rfind("..."), "only one '...' can be told apart from the named dimensions")
    if (leaves := _count_leaves(dims)) > MAX_LEAVES:
        raise fail(f"its blocks cut a tensor into {leaves:,} pieces; at most {MAX_LEAVES:,} are supported", 0)
    return Layout(dims)
