"""A spec joined to a config: dims, conditions, ranges, notes."""

from __future__ import annotations

import pytest

from converters.bind import BoundSpec, bind
from converters.errors import SpecError
from tests.planning import spec_of

BODY = """
dims: {L: config.L, K: config.K or 0}
rules:
  - {from: "a.{i:K..L}", to: "b.{i}"}
  - {from: c, to: d, when: config.tied}
  - {from: e, to: f, when: not config.tied}
notes:
  - {say: many layers, when: L > 2}
"""


def bound(config: dict[str, object] | None, **dims: int) -> BoundSpec:
    return bind(spec_of(BODY), config, dims=dims)


def test_dims_and_ranges() -> None:
    found = bound({"L": 3, "K": 1})
    assert found.dims.values == {"L": 3, "K": 1}
    assert found.rules[0].ranges == {"i": (1, 3)}
    assert found.rules[0].starts == {"i": 1}
    assert found.notes == ("many layers",)


def test_conditions_turn_rules_off() -> None:
    assert bound({"L": 1, "tied": True}).off == {2: "not config.tied"}
    assert bound({"L": 1, "tied": False}).off == {1: "config.tied"}
    assert bound({"L": 1}).off == {1: "config.tied"}, "a key that isn't there counts as false"
    assert [rule.number for rule in bound({"L": 1}).rules] == [0, 2]


def test_without_a_config_ranges_are_open() -> None:
    found = bind(spec_of("dims: {L: config.L}\nrename: {'a.{i:2..L}': 'b.{i}'}"), None)
    assert found.rules[0].ranges == {}
    assert found.rules[0].starts == {"i": 2}
    assert found.dims.reasons.keys() == {"L"}
    assert found.target_config is None


def test_a_config_that_holds_nothing_is_a_config_too() -> None:
    """Else a missing layer would go unnoticed."""
    with pytest.raises(SpecError, match="needs L: config"):
        bind(spec_of("dims: {L: config.L}\nrename: {'a.{i:2..L}': 'b.{i}'}"), {})


def test_overrides_take_the_place_of_dims() -> None:
    assert bound({"L": 3}, L=7).rules[0].ranges == {"i": (0, 7)}
    with pytest.raises(SpecError, match="a value is given for M, and no dim is called that"):
        bound({"L": 3}, M=7)


@pytest.mark.parametrize(
    ("body", "config", "message"),
    [
        (
            "dims: {L: config.L}\nrename: {'a.{i:0..L}': 'b.{i}'}",
            {"x": 1},
            "rename.a.{i:0..L}: the range of {i} needs L: config.L is not in config.json",
        ),
        ("rename: {'a.{i:0..M}': 'b.{i}'}", {"x": 1}, "the range of {i} needs M: no dim is called M"),
        ("rename: {'a.{i+M}': 'b.{i}'}", {"x": 1}, "M names i and M"),
        (
            "dims: {L: 4}\nrename: {'a.{i:0..L/2}': 'b.{i}'}",
            {"x": 1},
            "the range of {i} ends at L / 2, which is 2.0 and no whole number",
        ),
        (
            "rules: [{from: a, to: b, when: config.n > 3}]",
            {"x": 1},
            "'when: config.n > 3' can't be decided: config.n is not",
        ),
        (
            "rename: {'a.{i//3}': 'b.{i//3}'}",
            {"x": 1},
            "the value of i can't be worked out from a key like 'a.{i // 3}'",
        ),
    ],
)
def test_what_makes_no_sense_with_this_config(body: str, config: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        bind(spec_of(body), config)
    assert message.replace("M names i and M", "{i + M} names M and i") in str(caught.value)
