"""`python -m tests.hostile`: every hostile case in a process of its own; prints the table of how they ended."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.hostile.corpus import CASES
from tests.hostile.measure import Trial, measure

SECONDS = 1.0
NBYTES = 200_000_000


def main() -> int:
    """Run all of it; the exit status is 1 if any promise was broken."""
    parser = argparse.ArgumentParser(description="The hostile corpus, with time and memory.")
    parser.add_argument("--every", type=int, default=1, help="run only each so-manieth case (default: all)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        trials = measure(CASES[:: arguments.every], Path(directory))
    sys.stdout.write("\n".join(table(trials)) + "\n")
    return int(any(trial.fault for trial in trials))


def table(trials: Sequence[Trial]) -> list[str]:
    """The lines of the table, and everything that is not as it should be."""
    head = ("kind", "refused", "accepted", "wrong", "payloads run", "slowest", "memory")
    kinds = list(dict.fromkeys(trial.kind for trial in trials))
    rows = [_row(kind, [trial for trial in trials if trial.kind == kind and not trial.large]) for kind in kinds]
    large = [trial for trial in trials if trial.large]
    rows += [_row("large input", large)] if large else []
    rows.append(_row("all", trials))
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    lines += ["", *(f"wrong: {trial.title}: {trial.fault}" for trial in trials if trial.fault)]
    for trial in trials:
        if not trial.large and (trial.seconds > SECONDS or trial.nbytes > NBYTES):
            lines.append(f"over a second or 200 MB: {trial.title}: {_size(trial)}")
    return [*lines, *(f"large: {trial.title}: {_size(trial)}" for trial in large)]


def _row(kind: str, trials: Sequence[Trial]) -> tuple[str, ...]:
    wrong = [trial for trial in trials if trial.fault]
    return (
        kind,
        str(sum(trial.refused and not trial.fault for trial in trials)),
        str(sum(not trial.refused and not trial.fault for trial in trials)),
        str(len(wrong)),
        str(sum(trial.fault == "a payload was run" for trial in wrong)),
        f"{max(trial.seconds for trial in trials):.2f} s",
        f"{max(trial.nbytes for trial in trials) / 1e6:.0f} MB",
    )


def _size(trial: Trial) -> str:
    return f"{trial.seconds:.2f} s, {trial.nbytes / 1e6:.0f} MB"


if __name__ == "__main__":
    sys.exit(main())
