"""Every shipped layout passes the verifier at its strongest level, and mutants of each are caught and named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.models_pairs import PAIRS, Pair
from tests.mutations.layouts import (
    SHORT,
    WITHOUT_TOKENS,
    WRONG,
    layout_result,
    levels_of,
    run_levels,
    try_wrong,
    write_correct,
)
from tests.mutations.table import render_layouts


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_correct_conversion_passes_and_wrong_ones_are_caught(pair: Pair, tmp_path: Path) -> None:
    correct = tmp_path / "correct"
    write_correct(pair, correct)
    results = {result.level: result for result in run_levels(pair, correct, levels_of(pair)).levels}
    failed = {level: result.reason for level, result in results.items() if str(result.verdict) == "fail"}
    assert not failed
    # A plain model may use an embedding's weight without calling the module; the logits have seen it all the same.
    unproved = {level for level, result in results.items() if str(result.verdict) != "pass"}
    assert unproved <= {"modules"}
    for wrong in SHORT:
        problem = try_wrong(pair, wrong, correct, tmp_path / "wrong")
        assert not problem, f"{wrong.name}: {problem}"


def test_all_kinds_on_one_layout(tmp_path: Path) -> None:
    """`make mutations` tries them on every layout."""
    result = layout_result(PAIRS[0], tmp_path)
    assert result.right, result.problems
    assert len(result.problems) == len(WRONG)
    page = render_layouts([result, replace(result, problems={"a kind": "not caught"}, verdicts={"roundtrip": "pass"})])
    assert f"| {PAIRS[0].name} | pass | pass | pass | pass | {len(WRONG)}/{len(WRONG)} |  |" in page
    assert f"| {PAIRS[0].name} | - | pass | - | - | 0/1 |  |" in page
    assert page.endswith(f"- {PAIRS[0].name}: a kind: not caught")


def test_what_is_excepted_is_shipped() -> None:
    assert {pair.spec for pair in PAIRS} >= WITHOUT_TOKENS.keys()
