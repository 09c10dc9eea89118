"""Data out of a file is equal to what says the same, wherever each of them stands; else not."""

from __future__ import annotations

from msgspec.structs import replace

from converters.errors import Location
from converters.layout import parse_layout
from converters.pattern import parse_pattern
from converters.spec import Drop, Note, Rule, Spec, Term
from converters.spec_file import parse_spec

HERE, THERE = Location("a.yaml", 3), Location("b.yaml", 7, 2)
TEXT = "weightmap: 1\nsource: {layout: a}\ntarget: {layout: b}\nrename: {old: new}\ndims: {H: 4}\n"


def test_the_place_does_not_count() -> None:
    assert Drop("a", "unused", HERE) == Drop("a", "unused", THERE)
    assert hash(Drop("a", "unused", HERE)) == hash(Drop("a", "unused", THERE))
    assert Drop("a", "unused", HERE) != Drop("b", "unused", HERE)
    assert Drop("a", "unused", HERE) != Drop("a", "made anew", HERE)


def test_data_of_another_kind_is_never_equal() -> None:
    assert Drop("a", "b") != Note("a")
    assert Drop("a", "b") != ("a", "b")


def test_what_a_rule_says_counts_and_its_path_does_not() -> None:
    terms = (Term((parse_pattern("x"),)),), (Term((parse_pattern("y"),)),)
    rule = Rule(*terms, location=HERE, path="rules[2]")
    assert rule == Rule(*terms, location=THERE, path="rename.x")
    assert len({rule, Rule(*terms)}) == 1
    assert rule != replace(rule, optional=True)
    assert rule != replace(rule, targets=(replace(terms[1][0], layout=parse_layout("i o")),))


def test_specs_of_two_files_that_say_the_same_are_equal() -> None:
    spec = parse_spec(TEXT, "one/a.yaml")
    moved = parse_spec(f"# moved\n\n{TEXT}", "two/a.yaml")
    assert isinstance(spec, Spec)
    assert (spec.path, spec.digest) != (moved.path, moved.digest)
    assert spec == moved
    assert hash(spec) == hash(moved)
    assert spec != replace(spec, name="other")
    assert spec.inverse() != spec
    assert spec.inverse().inverse() == spec
