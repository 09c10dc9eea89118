"""Compiled keys: matching undoes formatting, whatever the literals hold; the trie finds what trying each would."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.errors import Location, SpecError
from converters.keys import CompiledPattern, is_index, matches_drop
from converters.pattern import Choice, Index, Kind, Name, Path, parse_pattern

KINDS: dict[str, Kind] = {
    "i": Index(), "e": Index(), "p": Choice(("weight", "bias")), "n": Name(), "r": Path(), "d": Choice(("a+b", "(")),
}  # fmt: skip
DIMS = {"L": 12}


def compiled(text: str) -> CompiledPattern:
    return CompiledPattern(parse_pattern(text), KINDS, DIMS, Location("s.yaml", 1))


@pytest.mark.parametrize(
    ("pattern", "key", "binding"),
    [
        ("h.{i}.w", "h.0.w", {"i": 0}),
        ("h.{i}.w", "h.10.w", {"i": 10}),
        ("h.{i}.w", "h.01.w", None),
        ("h.{i}.w", "h.00.w", None),
        ("h.{i}.w", "h.-1.w", None),
        ("h.{i}.w", "h.+1.w", None),
        ("h.{i}.w", "h.1_0.w", None),
        ("h.{i}.w", "h..w", None),
        ("h.{i}.w", "h.٣.w", None),
        ("h.{i}.w", "h.²..w", None),
        ("h.{i}.w", "h.1e1.w", None),
        ("h.{i}.w", "h.1.w.x", None),
        ("h.{i}.w", "xh.1.w", None),
        ("h.{i}.w", f"h.{10**18 - 1}.w", {"i": 10**18 - 1}),
        ("h.{i}.w", f"h.{10**18}.w", None),
        ("a.b", "a.b", {}),
        ("a.b", "aXb", None),
        ("h.{i//3}.{i%3}", "h.4.2", {"i": 14}),
        ("h.{i//3}.{i%3}", "h.4.3", None),
        ("h.{i%3}.{i//3}", "h.2.4", {"i": 14}),
        ("h.{L-1-i}", "h.0", {"i": 11}),
        ("h.{L-1-i}", "h.11", {"i": 0}),
        ("h.{L-1-i}", "h.12", None),
        ("h.{i+1}", "h.0", None),
        ("h.{i+1}.{i}", "h.5.4", {"i": 4}),
        ("h.{i+1}.{i}", "h.5.5", None),
        ("h.{2*i}", "h.5", None),
        ("x.in_proj_{p}", "x.in_proj_weight", {"p": "weight"}),
        ("x.in_proj_{p}", "x.in_proj_weights", None),
        ("x.in_proj_{p}", "x.in_proj_", None),
        ("{n}_{p}", "a_b_weight", {"n": "a_b", "p": "weight"}),
        ("{n}_x_{i}", "a_x_b_x_7", {"n": "a_x_b", "i": 7}),
        ("l{i}e{e}", "l12e3", {"i": 12, "e": 3}),
        ("l{i}e{e}", "l12e3e", None),
        ("{i}-of-{e}.{n}", "00001-of-2.w", None),
        ("a.{r}", "a.b.c.d", {"r": "b.c.d"}),
        ("a.{r}", "a.b", {"r": "b"}),
        ("a.{r}", "a", None),
        ("a.{r}.w", "a.b.w.w", {"r": "b.w"}),
        ("a.{i}.x{r}y.{p}", "a.1.xq.z.ty.bias", {"i": 1, "r": "q.z.t", "p": "bias"}),
        ("a.{d}", "a.a+b", {"d": "a+b"}),
        ("a.{d}", "a.(", {"d": "("}),
        ("a.{d}", "a.aab", None),
        ("a.{n}.{n}", "a.x.x", {"n": "x"}),
        ("a.{n}.{n}", "a.x.y", None),
        ("(a|b)+.{n}", "(a|b)+.%s{}", {"n": "%s{}"}),
        ("ключ.{n}", "ключ.é", {"n": "é"}),
        ("é", "e\u0301", None),  # composed and decomposed are two keys, as they are to safetensors
    ],
)
def test_matching(pattern: str, key: str, binding: dict[str, int | str] | None) -> None:
    found = compiled(pattern).match(key)
    assert found == binding
    if found is not None:
        assert compiled(pattern).format(found) == key


PARTS = st.sampled_from(["w", "in_", "1", "x+", "_"])
HOLES = st.sampled_from(
    ["{i}", "{i+1}", "{L-1-i}", "{2*i}", "{e}", "{p}", "{n}", "{d}", "{i//3}.{i%3}", "{e%2}.{e//2}"]
)


@st.composite
def patterns(draw: st.DrawFn, dotted: bool = True) -> str:  # noqa: FBT001, FBT002
    segments = []
    for _ in range(draw(st.integers(1, 4))):
        hole = draw(HOLES)
        if "." in hole:
            segments.append(hole)
        else:
            segments.append(draw(st.sampled_from(["", "w", "in_"])) + draw(st.sampled_from([hole, ""])))
    if dotted and draw(st.integers(0, 4)) == 0:
        segments.insert(draw(st.integers(0, len(segments))), "{r}")
    return ".".join(segment or draw(PARTS) for segment in segments)


BINDINGS = st.fixed_dictionaries(
    {
        "i": st.integers(0, 11),
        "e": st.integers(0, 40),
        "p": st.sampled_from(["weight", "bias"]),
        "n": st.text(st.characters(exclude_characters=".", codec="utf-8"), min_size=1, max_size=4),
        "d": st.sampled_from(["a+b", "("]),
        "r": st.text(st.characters(codec="utf-8"), min_size=1, max_size=6),
    }
)


@given(patterns(), BINDINGS)
def test_matching_undoes_formatting(text: str, binding: dict[str, int | str]) -> None:
    pattern = compiled(text)
    key = pattern.format(binding)
    assert key is not None
    assert pattern.match(key) == {name: binding[name] for name in pattern.names}


def test_numbers_below_zero_have_no_key() -> None:
    assert compiled("h.{i-2}").format({"i": 1}) is None
    assert compiled("h.{L-1-i}").format({"i": 12}) is None


def test_hostile_keys_take_no_time() -> None:
    started = time.perf_counter()
    for text in ("{n}_x_{i}", "{n}_x_", "{i}_x_{e}_x_{n}", "a{n}_x_{p}_x_{i}_x_{e}"):
        assert compiled(text).match("a" + "_x_" * 100_000) in (None, {"n": "a" + "_x_" * 99_999})
        assert compiled(text).match("1_x_" * 100_000 + "_") is None or text.endswith("{n}")
    assert compiled("a.{r}.b").match("a." * 50_000 + "b") is not None
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("h.{i//3}", "the value of i can't be worked out from a key like 'h.{i // 3}'"),
        ("h.{i%3}", "the value of i can't be worked out from a key like 'h.{i % 3}'"),
        ("h.{i+M}", "the value of M, which {M} needs, isn't known"),
    ],
)
def test_what_cannot_be_compiled(text: str, what: str) -> None:
    with pytest.raises(SpecError) as caught:
        compiled(text)
    assert caught.value.problems[0].what == what
    assert str(caught.value.problems[0].where) == "s.yaml:1:1"


@given(st.text())
def test_an_index_is_what_str_of_a_number_gives(text: str) -> None:
    assert is_index(text) == (text.isascii() and text.isdigit() and str(int(text)) == text and len(text) <= 18)


@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [
        ("a.b", "a.b", True),
        ("a.b", "aXb", False),
        ("*.inv_freq", "l.0.inv_freq", True),
        ("*.inv_freq", ".inv_freq", True),
        ("*.inv_freq", "inv_freq", False),
        ("a*", "a", True),
        ("*", "", True),
        ("a*b*c", "abc", True),
        ("a*b*c", "a.b.b.c", True),
        ("a*bb*b", "abb", False),
        ("ab*ba", "aba", False),
        ("a*a", "a", False),
        ("a**b", "ab", True),
        ("[a]*", "a", False),
        ("*a*", "bab", True),
    ],
)
def test_drop_patterns(pattern: str, key: str, matches: bool) -> None:  # noqa: FBT001
    assert matches_drop(pattern, key) is matches


@given(st.text("ab*", max_size=6), st.text("ab", max_size=8))
def test_drop_patterns_against_a_naive_glob(pattern: str, key: str) -> None:
    def naive(pattern: str, key: str) -> bool:
        if not pattern:
            return not key
        if pattern[0] == "*":
            return any(naive(pattern[1:], key[cut:]) for cut in range(len(key) + 1))
        return key[:1] == pattern[0] and naive(pattern[1:], key[1:])

    assert matches_drop(pattern, key) == naive(pattern, key)
