"""What is wrong with a spec whatever the checkpoint, and how placeholders become instances and axes."""

from __future__ import annotations

import pytest

from converters.pattern import Choice, Index, Name
from converters.spec_check import rule_shape
from tests.planning import spec_of, spec_refusal_of


def test_kinds_and_instances() -> None:
    spec = spec_of("""
placeholders: {p: weight|bias}
rules:
  - from: {g: "h.{i}.e.{e}.{m}.{p}"}
    to: "h.{i}.{m}.{p}"
    layout: {g: f, to: e f}
  - {from: "x.{n:name}", to: "{n}.w"}
  - {from: "x.{j}.y.{k}", to: "x.{j+1}.y.{k+1}"}
""")
    stack, named, computed = (rule_shape(rule, spec.placeholders, frozenset()) for rule in spec.rules)
    assert stack.kinds == {"i": Index(), "e": Index(), "m": Index(), "p": Choice(("weight", "bias"))}
    assert stack.instances == ("i", "m", "p")
    assert stack.key_axes(spec.rules[0].sources[0]) == ("e",)
    assert stack.key_axes(spec.rules[0].targets[0]) == ()
    assert named.kinds == {"n": Name()}
    assert computed.kinds == {"j": Index(), "k": Index()}, "what is computed with is a number, in the last segment too"


def test_a_placeholder_in_the_last_segment_is_a_name() -> None:
    spec = spec_of("rename: {'h.{i}.{p}': 'g.{i}.{p}'}")
    assert rule_shape(spec.rules[0], (), frozenset()).kinds == {"i": Index(), "p": Name()}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "rename: {'a.{i+j}': 'b.{i}.{j}'}",
            "rename.a.{i+j}: {i + j} names i and j\n    a placeholder is one name, with numbers and dims around it",
        ),
        ("dims: {L: 2}\nrename: {'a.{L}': b}", "{L} has no placeholder, only dims"),
        ("rename: {'a.{i}.w': b}", "{i} of 'a.{i}.w' is missing on the other side\n    put it into the other key"),
        ("rename: {a: 'b.{i}.w'}", "{i} of 'b.{i}.w' is missing on the other side"),
        (
            "rename: {'a.{p:x|z}': b}",
            "{p} of 'a.{p:x|z}' is x|z, but used as an axis\n    only a whole number can be an axis",
        ),
        ("rename: {'a.{p:x|z}.{p+1}': 'b.{p}'}", "{p + 1} computes with what is no whole number"),
        (
            "rename: {'x.{i:0..3}': 'z.{i:0..4}'}",
            "{i} is 0..3 in one key and 0..4 in another\n    write the kind once: it holds for the whole rule",
        ),
        (
            "rename: {'x.{a:path}.m.{b:path}': 'z.{a}.n.{b}'}",
            "'x.{a:path}.m.{b:path}' has two dotted rests: nothing tells where the first ends\n    a key can have one",
        ),
        (
            "rename: {'x.{a:name}_{b:name}': 'z.{a}.{b}'}",
            (
                "'{a:name}_{b:name}' has two placeholders of any length: nothing tells where one ends\n"
                "    write the kind of one of them, as in {i:int} or {p:weight|bias}"
            ),
        ),
        (
            "rules: [{from: {tie: ['a.{i}', 'b.{j}']}, to: 'c.{i}'}]",
            "have different placeholders\n    keys that hold one tensor need the same ones",
        ),
        (
            "rules: [{fill: ones, to: 'a.{i}', shape: [1]}]",
            "'fill' can't know the values of {i}\n    give its range, as in {i:0..L}",
        ),
        (
            "rules: [{fill: ones, to: {x: 'a.{i:0..3}', z: b}, shape: [1]}]",
            "{i} of 'x: a.{i:0..3}' isn't in every key of the rule",
        ),
        (
            "rules: [{from: {q: a}, to: {q: b}, layout: {q: i}}]",
            "two terms are labelled 'q'\n    give each term a label of its own",
        ),
        (
            "rename: {a: b}\ndrop: {'x.{i}': why}",
            "s.yaml:6:8: drop: 'x.{i}' has a placeholder\n    use '*' for any text",
        ),
        ("placeholders: {i: int}\nrename: {a: b}", "placeholders.i is used by no rule"),
        ("rules: [{from: a, to: b, layout: i o -> o j}]", "rules[0]: layout.to: axis i of 'i o' is not in 'o j'"),
        (
            "rules: [{from: {q: a, k: b}, to: c, layout: {q: i, k: i, to: '(q: i | w: i)'}}]",
            "layout.k: block 'k' of 'i' goes nowhere; the other side has 'q', 'w'",
        ),
        ("rules: [{from: a, to: b, layout: f f -> f f}]", "layout.from: axis f occurs twice in 'f f'"),
    ],
)
def test_what_could_never_work(body: str, message: str) -> None:
    assert message in spec_refusal_of(body)


def test_several_problems_of_several_rules_come_at_once() -> None:
    text = spec_refusal_of("rename:\n  a.{i}.w: b\n  c.{j}.w: d\ndrop: {'x.{i}': why}")
    assert [line.split(": ")[0] for line in text.split("\n") if line.startswith("s.yaml")] == [
        "s.yaml:6:3",
        "s.yaml:7:3",
        "s.yaml:8:8",
    ]
