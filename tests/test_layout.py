"""The layout notation: what parses to what, that text and tree say the same, and where errors point."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.errors import Location, SpecError
from converters.layout import (
    MAX_NESTING,
    WHOLE,
    Axis,
    Block,
    Blocks,
    Group,
    Item,
    Layout,
    Number,
    Rest,
    parse_layout,
    walk,
)

NAMES = st.sampled_from(["H", "D", "head_dim", "x1", "_private", "rest"])


def sequences(inner: st.SearchStrategy[Item]) -> st.SearchStrategy[tuple[Item, ...]]:
    return st.lists(inner, min_size=1, max_size=3).map(tuple)


@st.composite
def blocks(draw: st.DrawFn, inner: st.SearchStrategy[Item]) -> Blocks:
    labels = draw(st.lists(st.sampled_from(["q", "k", "v", "w2"]), unique=True, min_size=1, max_size=3))
    labels += ["_"] * draw(st.integers(0, 2))
    return Blocks(tuple(Block(label, draw(sequences(inner))) for label in draw(st.permutations(labels))))


ITEMS: st.SearchStrategy[Item] = st.recursive(
    NAMES.map(Axis) | st.integers(1, 10**18 - 1).map(Number),
    lambda inner: sequences(inner).map(Group) | blocks(inner),
    max_leaves=8,
)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    dims = list(draw(st.lists(ITEMS, max_size=4)))
    if draw(st.booleans()):
        dims.insert(draw(st.integers(0, len(dims))), Rest())
    return Layout(tuple(dims))


@given(layouts())
def test_text_and_tree_say_the_same(layout: Layout) -> None:
    assert parse_layout(str(layout)) == layout
    assert parse_layout(str(layout).replace(" ", "\n ").replace("(", " ( ")) == layout


@pytest.mark.parametrize(
    ("text", "dims"),
    [
        ("", ()),
        ("...", (Rest(),)),
        ("(H D) ...", (Group((Axis("H"), Axis("D"))), Rest())),
        ("o i 1 1", (Axis("o"), Axis("i"), Number(1), Number(1))),
        ("(q: H D|_: 7)", (Blocks((Block("q", (Axis("H"), Axis("D"))), Block("_", (Number(7),)))),)),
        ("(q: H)", (Blocks((Block("q", (Axis("H"),)),)),)),
        (
            "(H (a: 2 D | b: D)) i",
            (
                Group((Axis("H"), Blocks((Block("a", (Number(2), Axis("D"))), Block("b", (Axis("D"),)))))),
                Axis("i"),
            ),
        ),
    ],
)
def test_parses_the_notation(text: str, dims: tuple[Item, ...]) -> None:
    assert parse_layout(text).dims == dims


@pytest.mark.parametrize(
    ("text", "what", "column"),
    [
        ("(q: H D | k: G", "a parenthesis that isn't closed", 1),
        ("a (b c", "a parenthesis that isn't closed", 3),
        ("a) b", "unexpected ')'", 2),
        ("a | b", "unexpected '|'", 3),
        ("a: b", "unexpected ':'", 2),
        ("(a b | c: d)", "a block without a label", 2),
        ("(a: b | c d)", "a block without a label", 9),
        ("(a: b | a: c)", "two blocks labelled 'a'", 9),
        ("()", "empty parentheses or block", 2),
        ("(a: | b: c)", "empty parentheses or block", 2),
        ("(a: b |)", "empty parentheses or block", 8),
        ("(... a)", "'...' stands for whole dimensions and can't be inside parentheses", 2),
        ("... a ...", "'...' twice", 7),
        ("a 0", "a size of 0 is out of range", 3),
        ("1234567890123456789", "a size of 1234567890123456789 is out of range", 1),
        ("2D", "'2D' is neither a name nor a number", 1),
        ("Hé D", "unexpected 'é'", 2),
        ("a.b", "unexpected '.'", 2),
        ("½", "unexpected '½'", 1),
        ("(a: b: c)", "unexpected ':'", 6),
        ("(1: b)", "unexpected ':'", 3),
        ("(" * (MAX_NESTING + 1) + "a" + ")" * (MAX_NESTING + 1), f"nested deeper than {MAX_NESTING}", 66),
    ],
)
def test_errors_point_at_their_column(text: str, what: str, column: int) -> None:
    with pytest.raises(SpecError) as caught:
        parse_layout(text, Location("s.yaml", 3, 9))
    problem = caught.value.problems[0]
    assert problem.what == f"layout: {what}, at column {column} of the layout"
    assert str(problem.where) == "s.yaml:3:9"
    assert problem.hint is not None
    assert problem.hint.split("\n")[:2] == [text, "    " + " " * (column - 1) + "^"]


def test_nesting_up_to_the_limit_parses() -> None:
    text = "(" * MAX_NESTING + "a" + ")" * MAX_NESTING
    assert str(parse_layout(text)) == text


def test_names_and_labels() -> None:
    layout = parse_layout("(H (q: r D | _: x | v: (z: 2))) ... i")
    assert layout.axis_names() == {"H", "r", "D", "x", "i"}
    assert layout.labels() == {"q", "v", "z"}
    assert layout.has_rest
    assert not parse_layout("a b").has_rest
    assert [str(item) for item in walk(parse_layout("(a (b: 3))").dims)] == ["(a (b: 3))", "a", "(b: 3)", "3"]
    assert parse_layout("...") == WHOLE


def test_a_layout_is_of_bounded_size() -> None:
    """Lowering compares all pieces that blocks make; forty dimensions of two blocks would be a million million."""
    blocks = [f"(a{number}: x{number} | b{number}: y{number})" for number in range(40)]
    assert len(parse_layout(" ".join(blocks[:9])).dims) == 9
    with pytest.raises(SpecError, match="its blocks cut a tensor into 1,099,511,627,776 pieces; at most 1,000"):
        parse_layout(" ".join(blocks))
    with pytest.raises(SpecError, match="it has 2,001 parts; at most 2,000 are read"):
        parse_layout("a " * 2001)


def test_a_long_layout_is_shown_around_the_place() -> None:
    with pytest.raises(SpecError) as caught:
        parse_layout("a " * 900 + "\x1b" + " b" * 900)
    assert len(str(caught.value)) < 1000
    assert "\x1b" not in str(caught.value)
