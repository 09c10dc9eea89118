"""Key patterns as text: what parses to what, and what is refused where."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.dims import parse_expression
from converters.errors import Location, SpecError
from converters.pattern import Choice, Hole, Index, Name, Path, parse_kind, parse_pattern


def test_parses_segments_and_holes() -> None:
    pattern = parse_pattern("h.{i}.in_proj_{p:weight|bias}.{L-1-i}x{e:0..E}")
    assert pattern.segments == (
        ("h",),
        (Hole(parse_expression("i")),),
        ("in_proj_", Hole(parse_expression("p"), Choice(("weight", "bias")))),
        (
            Hole(parse_expression("L-1-i")),
            "x",
            Hole(parse_expression("e"), Index(parse_expression("0"), parse_expression("E"))),
        ),
    )
    assert pattern.names() == {"i", "p", "L", "e"}
    assert [hole.plain for hole in pattern.holes()] == [True, True, False, True]


@given(
    st.lists(
        st.lists(
            st.sampled_from(
                ["w", "a+b", "x_", "$^*[](?)\\", "ключ", "{i}", "{p:a|b}", "{r:path}", "{n:name}", "{i+1}"]
            ),
            min_size=1,
            max_size=3,
        ).filter(lambda parts: not any(a[0] == b[0] == "{" for a, b in itertools.pairwise(parts))),
        min_size=1,
        max_size=4,
    )
)
def test_text_and_tree_say_the_same(segments: list[list[str]]) -> None:
    text = ".".join("".join(parts) for parts in segments)
    pattern = parse_pattern(text)
    assert parse_pattern(str(pattern)) == pattern
    assert str(pattern).replace(" ", "") == text


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("int", Index()),
        ("name", Name()),
        ("path", Path()),
        ("a|b", Choice(("a", "b"))),
        (" a | b ", Choice(("a", "b"))),
        ("a&b", Choice(("a", "b"), every=True)),
        (" a & b&c", Choice(("a", "b", "c"), every=True)),
        ("0..L", Index(parse_expression("0"), parse_expression("L"))),
        ("..4", Index(parse_expression("0"), parse_expression("4"))),
        ("K..L-1", Index(parse_expression("K"), parse_expression("L-1"))),
    ],
)
def test_kinds(text: str, kind: object) -> None:
    assert parse_kind(text) == kind
    assert parse_kind(str(kind)) == kind


@pytest.mark.parametrize("text", ["", "weight", "a|", "a|a", "a.b|c", "|", "a&", "a&a", "a&b|c", "3..", "str"])
def test_what_is_no_kind(text: str) -> None:
    with pytest.raises(SpecError):
        parse_kind(text)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "a key pattern can't be empty"),
        ("a..b", "'a..b' has an empty segment between two dots"),
        (".a", "'.a' has an empty segment between two dots"),
        ("a.", "'a.' has an empty segment between two dots"),
        ("a.{i", "the brace at column 3 of 'a.{i' isn't closed"),
        ("a.{i{j}}", "the brace at column 3 of 'a.{i{j}}' isn't closed"),
        ("a.i}", "a closing brace without an opening one at column 4 of 'a.i}'"),
        ("a.{i}{j}", "two placeholders of 'a.{i}{j}' touch: nothing tells where one ends"),
        ("a.{}", "an empty placeholder in 'a.{}'"),
        ("a.{:int}", "an empty placeholder in 'a.{:int}'"),
        ("a.{3}", "the placeholder {3} of 'a.{3}' names nothing"),
        ("a.{config.n}", "the placeholder {config.n} of 'a.{config.n}' reads the config"),
        ("a.{p:weight}", "'weight' is no kind of placeholder"),
    ],
)
def test_what_is_no_pattern(text: str, what: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_pattern(text, Location("s.yaml", 7, 3))
    assert caught.value.problems[0].what == what
    assert str(caught.value.problems[0].where) == "s.yaml:7:3"
