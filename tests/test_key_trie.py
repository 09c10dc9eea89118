from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from converters import key_trie
from converters.key_trie import KeyTrie
from tests.test_keys import BINDINGS, compiled, patterns


@settings(max_examples=200)
@given(st.lists(patterns(), min_size=1, max_size=8), BINDINGS, st.data())
def test_the_trie_finds_what_trying_each_pattern_finds(
    texts: list[str], binding: dict[str, int | str], data: st.DataObject
) -> None:
    found_by = [compiled(text) for text in texts]
    trie = KeyTrie()
    for number, pattern in enumerate(found_by):
        trie.add(pattern, number)
    key = data.draw(st.sampled_from(found_by)).format(binding)
    assert key is not None
    key = data.draw(st.sampled_from([key, f"{key}.x", key.replace("w", "in_"), key[:-1]]))
    each = [(number, found) for number, pattern in enumerate(found_by) if (found := pattern.match(key)) is not None]
    assert sorted(trie.match(key), key=lambda match: match[0]) == each


def test_two_patterns_that_both_match_are_both_found() -> None:
    trie = KeyTrie()
    for number, text in enumerate(["h.{i}.{p}", "h.{n}.weight", "{r}", "h.1.weight", "h.{i}.{n}"]):
        trie.add(compiled(text), number)
    assert sorted(number for number, _ in trie.match("h.1.weight")) == [0, 1, 2, 3, 4]
    assert sorted(number for number, _ in trie.match("h.x.weight")) == [1, 2]


def test_what_is_remembered_is_forgotten_when_a_pattern_is_added() -> None:
    trie = KeyTrie()
    trie.add(compiled("h.{i}.w"), 0)
    assert trie.match("h.1.b") == []
    trie.add(compiled("h.{i}.b"), 1)
    assert trie.match("h.1.b") == [(1, {"i": 1})]


def test_keys_too_long_to_be_remembered_are_matched_all_the_same() -> None:
    trie = KeyTrie()
    long = "x" * key_trie.MAX_REMEMBERED_TEXT
    trie.add(compiled("h.{n}.w"), 0)
    assert trie.match(f"h.{long}.w") == [(0, {"n": long})]
    assert trie.match(f"{long}.h.w") == []


def test_more_beginnings_than_are_remembered() -> None:
    trie = KeyTrie()
    trie.add(compiled("h.{i}.w"), 0)
    for index in range(key_trie.MAX_REMEMBERED + 2):
        assert trie.match(f"h.{index}.w") == [(0, {"i": index})]
    assert trie.match("h.0.w") == [(0, {"i": 0})]
