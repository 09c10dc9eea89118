"""The table of shipped specs: each says what it is for and what it was compared with, and the numbers are there."""

from __future__ import annotations

import json

import pytest

from converters.commands.spec_text import one_way_reasons
from converters.library import MEASURED, load_spec, shipped_directory, shipped_specs
from converters.spec import Spec
from tests import shelf
from tests.answers import difference
from tests.shelf_page import specs_page

SPECS = [load_spec(path) for path in shipped_specs()]
EACH = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)


def measured() -> dict[str, dict[str, float]]:
    specs: dict[str, dict[str, float]] = json.loads((shipped_directory() / MEASURED).read_text())["specs"]
    return specs


@EACH
def test_a_shipped_spec_says_what_it_is_for_and_what_it_was_compared_with(spec: Spec) -> None:
    assert spec.description
    assert spec.models
    assert spec.proof is not None
    assert spec.proof.oracles
    assert 0 <= spec.proof.tolerance <= 1e-4


@EACH
def test_a_shipped_spec_has_a_pair_for_each_direction_and_both_were_measured(spec: Spec) -> None:
    assert shelf.pairs_of(spec.name)
    assert spec.proof is not None
    ways = {"there"} if one_way_reasons(spec) else {"there", "back"}
    numbers = measured().get(spec.name)
    assert numbers is not None, f"run `make shelf`: {spec.name} has no entry in {MEASURED}"
    assert numbers.keys() == ways
    assert all(0 <= value <= spec.proof.tolerance for value in numbers.values())


def test_nothing_was_measured_that_is_gone() -> None:
    assert measured().keys() == {spec.name for spec in SPECS}


def test_every_pair_is_of_a_shipped_spec() -> None:
    assert {pair.spec for pair in shelf.PAIRS} == {spec.name for spec in SPECS}


def test_the_page_is_what_the_generator_gives() -> None:
    assert shelf.PAGE.read_text() == specs_page(SPECS), "run `make shelf`"


@pytest.mark.parametrize("reverse", [False, True])
def test_a_direction_without_a_pair_is_named(monkeypatch: pytest.MonkeyPatch, reverse: bool) -> None:  # noqa: FBT001
    others = tuple(pair for pair in shelf.PAIRS if pair.reverse is not reverse)
    monkeypatch.setattr(shelf, "PAIRS", others)
    with pytest.raises(LookupError, match=f"phi2_to_tenny has no Pair with reverse={reverse}"):
        shelf.pairs_of("phi2_to_tenny")


def test_a_nan_is_an_infinite_difference() -> None:
    import torch

    fine = torch.tensor([1.0, 2.0, 4.0])
    broken = torch.tensor([1.0, float("nan"), 4.0])
    assert difference([fine], [fine + 0.5]) == 0.5
    assert difference([fine], [broken]) == float("inf")
