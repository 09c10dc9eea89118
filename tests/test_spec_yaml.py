"""A spec written as YAML reads back as the same spec, whichever way it points."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from converters.config_mapping import ConfigMapping, ConfigSide
from converters.dims import parse_expression
from converters.errors import SpecError
from converters.layout import parse_layout
from converters.library import load_spec, shipped_specs
from converters.operations.cast import Cast
from converters.operations.fill import Fill
from converters.pattern import parse_kind, parse_pattern
from converters.spec import Dim, Drop, Note, Rule, Side, Spec, Term
from converters.spec_file import parse_spec
from converters.spec_yaml import spec_to_yaml
from converters.tensor_info import DType
from tests.strategies import Case, cases


def assert_reads_back(spec: Spec) -> None:
    assert parse_spec(spec_to_yaml(spec)) == spec


@pytest.mark.parametrize("path", shipped_specs(), ids=lambda path: path.stem)
def test_every_shipped_spec_reads_back_both_ways(path: Any) -> None:
    spec = load_spec(path)
    assert_reads_back(spec)
    assert_reads_back(spec.inverse())


@given(cases())
def test_random_layouts_read_back_both_ways(case: Case) -> None:
    spec = parse_spec(case.yaml())
    assert_reads_back(spec)
    assert_reads_back(spec.inverse())


# Whole characters only: half of a surrogate pair is no text, and YAML has no way to write it.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
said = texts.filter(bool)
AWKWARD = [
    "no",
    "true",
    "1",
    "1e3",
    "0x1",
    "2024-01-01",
    "~",
    "null",
    "a: b",
    "- a",
    "# a",
    "'",
    '"',
    " a ",
    "é",
    "...",
    "\n",
    "*",
]
words = st.sampled_from(AWKWARD) | said
literals = words.map(lambda text: "".join(character for character in text if character not in "{}.") or "x")
conditions = st.sampled_from(
    ["config.a", "not target_config.a.b", "config.x == 'it'", 'target_config.x == "it\'s"', "true", "null", "1"]
)
expressions = st.sampled_from(
    ["5", "0", "L", "L * 2 // 3", "config.a or L", "int(0.5 * L)", "target_config.b.c - 1", "-1", "'1'"]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
configs = st.dictionaries(words, values, max_size=3)
parsed = expressions.map(parse_expression)
wheres = st.none() | conditions.map(parse_expression)


@st.composite
def rules(draw: st.DrawFn, number: int) -> Rule:
    """A rule with keys that no other rule has."""
    literal = draw(literals)

    def term(name: str, label: str | None = None, layout: str = "...") -> Term:
        sharing = draw(st.sampled_from(["one", "one", "copy", "tie"]))
        keys = [f"{literal}{number}.{name}.{{i}}.{{p}}", f"again{number}.{name}.{{i}}.{{p}}"]
        patterns = tuple(parse_pattern(key) for key in keys[: 1 if sharing == "one" else 2])
        return Term(patterns, label, parse_layout(layout), sharing)

    kind = draw(st.sampled_from(["rename", "layout", "labels", "cast", "fill", "checked"]))
    rule = Rule((), ())
    match kind:
        case "rename":
            rule = Rule((term("old"),), (term("new"),))
        case "layout":
            rule = Rule(
                (term("old", draw(st.none() | st.just("q")), "a (b 2) ..."),), (term("new", None, "(2 b) a ..."),)
            )
        case "labels":
            parts = (term("q", "q", "(A B) ..."), term("k", "k", "(A B) ..."))
            whole = (term("new", draw(st.none() | st.just("all")), "(q: A B | k: A B) ..."),)
            rule = Rule(parts, whole) if draw(st.booleans()) else Rule(whole, parts)
        case "cast":
            cast = Cast(draw(st.sampled_from([DType.F32, DType.BF16])), draw(st.none() | st.just(DType.F16)))
            rule = Rule((term("old"),), (term("new"),), (cast,))
        case _:
            key = parse_pattern(f"{literal}{number}.made.{{e:0..L}}.{{p:weight|bias}}")
            shape = tuple(parse_expression(text) for text in draw(st.lists(expressions, min_size=1, max_size=3)))
            dtype = draw(st.none() | st.sampled_from(["F32", "BF16"]))
            made = (Term((key,)),)
            ends = (made, ()) if kind == "checked" else ((), made)
            rule = Rule(*ends, fill=Fill(draw(st.sampled_from(["zeros", "sinusoidal"]))), shape=shape, dtype=dtype)
    if draw(st.integers(0, 2)) == 0:
        rule = replace(rule, when=draw(wheres), optional=draw(st.booleans()))
    return rule


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """A spec with something in every section."""
    count = draw(st.integers(1, 4))
    found = tuple(draw(rules(number)) for number in range(count))
    uses_p = any(term.layout or term for rule in found if rule.fill is None for term in (*rule.sources, *rule.targets))
    kinds = {"i": "0..L", "p": draw(st.sampled_from(["weight|bias", "weight&bias"]))} if uses_p else {}

    def side() -> Side:
        drops = draw(st.dictionaries(literals, said, max_size=2))
        return Side(
            draw(said),
            draw(configs),
            tuple(draw(st.lists(texts, max_size=2))),
            tuple(Drop(pattern, reason) for pattern, reason in drops.items()),
            config_file=draw(st.sampled_from(["config.json", "params.json", ""])),
            configs=tuple((word, f"{word}/{word}.json") for word in draw(st.sets(st.sampled_from(["noise", "whole"])))),
        )

    def config_side() -> ConfigSide:
        derive, default = (draw(st.dictionaries(words, parsed, max_size=2)) for _ in range(2))
        return ConfigSide(draw(configs), derive, default, draw(st.dictionaries(words, said, max_size=2)))

    old, new = (draw(st.lists(words, min_size=2, max_size=2, unique=True)) for _ in range(2))
    mapping = ConfigMapping(tuple(zip(old, new, strict=True)), config_side(), config_side())
    return Spec(
        name=draw(words),
        source=side(),
        target=side(),
        rules=found,
        dims=(Dim("L", parse_expression("config.layers")), Dim("D", parse_expression(draw(expressions)))),
        placeholders=tuple((name, parse_kind(kind)) for name, kind in kinds.items()),
        config=draw(st.none() | st.just(ConfigMapping()) | st.just(mapping)),
        notes=tuple(Note(draw(said), draw(wheres)) for _ in range(draw(st.integers(0, 2)))),
        description=draw(texts),
    )


@given(specs())
def test_any_spec_reads_back(spec: Spec) -> None:
    assert_reads_back(spec)
    try:
        inverse = spec.inverse()
    except SpecError:
        return
    assert_reads_back(inverse)
    assert parse_spec(spec_to_yaml(inverse)).inverse() == spec


def test_plain_renames_stay_renames() -> None:
    text = spec_to_yaml(load_spec("phi2_to_tenny"))
    assert "rename:\n  model.layers.{i}.self_attn.dense.{p}: transformer_encoder" in text
    assert "\nrules:\n" in text


def test_a_rename_between_rules_keeps_its_place() -> None:
    head = "weightmap: 1\nsource: {layout: a}\ntarget: {layout: b}\n"
    spec = parse_spec(head + "rules:\n  - {from: a, to: b, layout: i o -> o i}\n  - {from: c, to: d}\n")
    assert_reads_back(spec)
    assert "rename" not in spec_to_yaml(spec)


def test_what_yaml_has_no_spelling_for_is_refused() -> None:
    spec = load_spec("phi2_to_tenny")
    twice = replace(spec, source=replace(spec.source, drop=(Drop("a", "x"), Drop("a", "y"))))
    with pytest.raises(SpecError, match="two entries for 'a'"):
        spec_to_yaml(twice)
    infinite = replace(spec, target=replace(spec.target, config={"x": float("inf")}))
    with pytest.raises(SpecError, match="not finite"):
        spec_to_yaml(infinite)
