"""The inverse laws, for every shipped spec and for random ones, and what has no inverse."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from converters.errors import SpecError
from converters.library import load_spec, shipped_specs
from converters.spec import weakest
from converters.spec_check import check_spec
from converters.spec_file import parse_spec
from tests.planning import spec_of
from tests.strategies import Case, cases
from tests.test_spec_file import EVERYTHING


@pytest.mark.parametrize("path", shipped_specs(), ids=lambda path: path.stem)
def test_the_inverse_laws_hold_for_shipped_specs(path: Path) -> None:
    spec = load_spec(path)
    back = spec.inverse()
    assert back.inverse() == spec
    assert back.reverse
    assert not back.inverse().reverse
    assert (back.source, back.target) == (spec.target, spec.source)
    assert check_spec(back) == []
    assert back.exactness == spec.exactness
    for rule, inverse in zip(spec.rules, back.rules, strict=True):
        assert inverse == rule.inverse()
        assert inverse.inverse() == rule
        assert (inverse.sources, inverse.targets) == (rule.targets, rule.sources)
        assert inverse.exactness == rule.exactness


@settings(max_examples=100)
@given(cases())
def test_the_inverse_laws_hold_for_random_specs(case: Case) -> None:
    spec = parse_spec(case.yaml())
    assert spec.inverse().inverse() == spec
    assert spec.inverse() != spec
    assert check_spec(spec.inverse()) == []


def test_the_inverse_of_every_construct() -> None:
    spec = parse_spec(EVERYTHING)
    back = spec.inverse()
    assert back.inverse() == spec
    assert [str(dim.value) for dim in back.dims] == ["target_config.L", "4", "target_config.H or 2"]
    assert str(back.rules[3].when) == "target_config.tied"
    assert str(back.notes[0].when) == "target_config.H > 1"
    assert back.config is not None
    assert back.config.rename == (("width", "hidden"),)
    assert [rule.kind for rule in back.rules] == [rule.kind for rule in spec.rules]


def test_a_one_way_rule_has_no_inverse_and_says_why() -> None:
    spec = spec_of("rules:\n  - {from: a, to: b, cast: F32}\n  - {from: c, to: d}\n  - {from: e, to: f, cast: BF16}\n")
    assert spec.exactness == "one-way"
    with pytest.raises(SpecError) as caught:
        spec.inverse()
    assert str(caught.value) == (
        "s.yaml:6:5: rules[0]: this rule is one-way: a -> b\n"
        "    'cast: F32' doesn't say what the source's dtype was; "
        "write 'cast: {from: F16, to: F32}' with the dtype to go back to\n"
        "s.yaml:8:5: rules[2]: this rule is one-way: e -> f\n"
        "    'cast: BF16' doesn't say what the source's dtype was; "
        "write 'cast: {from: F16, to: BF16}' with the dtype to go back to"
    )


def test_exactness() -> None:
    grades = [rule.exactness for rule in spec_of(
        "rules:\n"
        "  - {from: a, to: b, cast: {from: F16, to: F32}}\n"
        "  - {from: c, to: d, cast: {from: F32, to: F16}}\n"
        "  - {from: e, to: f}\n"
    ).rules]  # fmt: skip
    assert grades == ["exact", "approximate", "exact"]
    assert weakest(grades) == "approximate"
    assert weakest([]) == "exact"
    assert weakest(["approximate", "one-way"]) == "one-way"
