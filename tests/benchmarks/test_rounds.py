from __future__ import annotations

import pytest

from benchmarks import rounds
from benchmarks.rounds import Rounds


def counted(found: Rounds, monkeypatch: pytest.MonkeyPatch, *, each: float) -> int:
    now = 0.0
    monkeypatch.setattr(rounds.time, "monotonic", lambda: now)
    count = 0
    for count, _ in enumerate(found, 1):  # noqa: B007 - the last one counts
        now += each
    return count


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, 7),
        (100.0, 7),
        (50.0, 5),  # a sixth one would end at 60
        (1.0, 3),  # the least, whatever they take
    ],
)
def test_rounds_end_with_the_time(monkeypatch: pytest.MonkeyPatch, seconds: float | None, expected: int) -> None:
    assert counted(Rounds(7, 3, seconds), monkeypatch, each=10.0) == expected
