"""`python -m tests.hostile.fuzz --seconds 60`: feeds each parser new random input for so long, and counts."""

from __future__ import annotations

import argparse
import sys
import time
from random import Random

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import HypothesisException

from converters.errors import WeightmapError
from tests.hostile.parsers import FEEDS, inputs, mutated

_AT_ONCE = 1000


def main() -> int:
    """Fuzz all parsers in turn; the exit status is 1 if anything but a documented error came out."""
    parser = argparse.ArgumentParser(description="Fuzz the parsers.")
    parser.add_argument("--seconds", type=float, default=60, help="for all parsers together (default: 60)")
    parser.add_argument("--only", choices=FEEDS, help="only this one")
    arguments = parser.parse_args()
    names = [arguments.only] if arguments.only else list(FEEDS)
    wrong = 0
    total = [0, 0]
    for name in names:
        taken, refused, fault, slowest = fuzz(name, arguments.seconds / len(names))
        total = [total[0] + taken, total[1] + refused]
        wrong += bool(fault)
        sys.stdout.write(f"{name:12} {taken:9,} taken {refused:9,} refused, slowest {slowest:.3f} s {fault}\n")
    sys.stdout.write(f"{sum(total):,} executions, {wrong} parsers with other errors\n")
    return int(wrong > 0)


def fuzz(name: str, seconds: float) -> tuple[int, int, str, float]:
    """Feed one parser; returns how much it took and refused, what else came out, and the slowest of all."""
    feed, _ = FEEDS[name]
    counts = {True: 0, False: 0}
    slowest = 0.0

    def execute(content: bytes) -> None:
        nonlocal slowest
        started = time.process_time()
        try:
            feed(content)
            counts[True] += 1
        except WeightmapError:
            counts[False] += 1
        slowest = max(slowest, time.process_time() - started)

    @settings(
        max_examples=_AT_ONCE,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(content=inputs(name))
    def run(content: bytes) -> None:
        execute(content)

    # What hypothesis makes is better formed, what is changed at random comes a hundred times as fast.
    random = Random()  # noqa: S311 - no secret
    content = b""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            run()
            for _ in range(20 * _AT_ONCE):
                content = mutated(name, random)
                execute(content)
        except HypothesisException:
            raise
        except Exception as error:  # noqa: BLE001 - whatever came out is what is looked for
            notes = " ".join(getattr(error, "__notes__", []))
            what = f"{type(error).__name__}: {error} {notes} after {content[:2000]!r}"
            return counts[True], counts[False], what, slowest
    return counts[True], counts[False], "", slowest


if __name__ == "__main__":
    sys.exit(main())
