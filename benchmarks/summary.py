"""Medians and spreads of measured rows, and whether they meet their goals; pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some numbers, the least and the greatest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: Iterable[float]) -> Spread:
        """Summarize numbers, at least one.

        Raises:
            ValueError: there are none.
        """
        found = sorted(numbers)
        if not found:
            raise ValueError("there is nothing to summarize")
        return cls(statistics.median(found), found[0], found[-1])

    def text(self, digits: int = 2) -> str:
        """`0.82 (0.80 to 0.95)`."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


@dataclass(frozen=True, slots=True)
class PairSummary:
    """What the pairs of a row come to.

    Attributes:
        ratio: of wall times, pair by pair.
        wall, user, system, reference: seconds.
        resident, anonymous: the largest peaks, in bytes.
    """

    ratio: Spread
    wall: Spread
    user: Spread
    system: Spread
    reference: Spread
    resident: int
    anonymous: int


def summarize(pairs: Sequence[dict[str, Any]]) -> PairSummary:
    """Summarize pairs of `run` and `reference`, each as `Measured.as_json` gives it."""
    runs = [pair["run"] for pair in pairs]
    return PairSummary(
        ratio=Spread.of(pair["run"]["wall"] / pair["reference"]["wall"] for pair in pairs),
        wall=Spread.of(run["wall"] for run in runs),
        user=Spread.of(run["user"] for run in runs),
        system=Spread.of(run["system"] for run in runs),
        reference=Spread.of(pair["reference"]["wall"] for pair in pairs),
        resident=max(run["resident"] for run in runs),
        anonymous=max(run["anonymous"] for run in runs),
    )


def verdict(measured: float, goal: float) -> str:
    """`met`, or by how much it was missed."""
    return "met" if measured <= goal else f"missed by {measured / goal - 1:.0%}"
