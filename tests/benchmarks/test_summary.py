from __future__ import annotations

from typing import Any

import pytest

from benchmarks.summary import Spread, summarize, verdict


def measured(wall: float, resident: int = 0) -> dict[str, Any]:
    return {"wall": wall, "user": wall / 4, "system": wall / 2, "resident": resident, "anonymous": resident // 3}


def test_a_spread_is_median_least_and_greatest_whatever_the_order() -> None:
    assert Spread.of([3.0, 1.0, 9.0]) == Spread(3.0, 1.0, 9.0)
    assert Spread.of([4.0, 1.0, 2.0, 9.0]).median == 3.0
    assert Spread.of([0.8, 0.954, 0.816]).text() == "0.82 (0.80 to 0.95)"


def test_nothing_has_no_spread() -> None:
    with pytest.raises(ValueError, match="nothing to summarize"):
        Spread.of([])


def test_ratios_are_taken_pair_by_pair_and_peaks_are_the_largest() -> None:
    pairs = [
        {"run": measured(2.0, 30), "reference": measured(1.0)},
        {"run": measured(30.0, 60), "reference": measured(10.0)},
        {"run": measured(5.0, 45), "reference": measured(5.0)},
    ]
    found = summarize(pairs)
    # The ratio of the medians would be one.
    assert found.ratio == Spread(2.0, 1.0, 3.0)
    assert found.wall == Spread(5.0, 2.0, 30.0)
    assert found.reference == Spread(5.0, 1.0, 10.0)
    assert (found.user.median, found.system.median) == (1.25, 2.5)
    assert (found.resident, found.anonymous) == (60, 20)


def test_a_goal_is_met_at_its_value_and_missed_above() -> None:
    assert verdict(0.9, 0.9) == "met"
    assert verdict(0.99, 0.9) == "missed by 10%"
