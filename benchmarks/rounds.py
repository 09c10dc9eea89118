"""How often a row is measured: a number of rounds, or fewer where there is a limit of time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rounds:
    """Counts rounds.

    Attributes:
        most: rounds, where time doesn't matter.
        least: rounds, whatever they take.
        seconds: no round is begun that would probably end later than so long after the first began.
    """

    most: int
    least: int = 1
    seconds: float | None = None

    def __iter__(self) -> Iterator[int]:
        start = time.monotonic()
        for number in range(self.most):
            spent = time.monotonic() - start
            if number >= self.least and self.seconds is not None and spent + spent / number > self.seconds:
                return
            yield number
