"""`python -m tests.safety`: hostile input, crashes and fuzzing, one after the other; prints one table of all of it."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.crashes.__main__ import table as crash_table
from tests.crashes.__main__ import told
from tests.crashes.experiments import FULL, QUICK, rows
from tests.hostile.__main__ import table as hostile_table
from tests.hostile.corpus import CASES
from tests.hostile.fuzz import fuzz
from tests.hostile.measure import measure
from tests.hostile.parsers import FEEDS

_EVERY_QUICK: Final = 10
_SECONDS_QUICK: Final = 30.0
_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the table: its title, its lines, and whether all promises were kept."""

    title: str
    lines: list[str]
    kept: bool


def main() -> int:
    """Run all of it; the exit status is 1 if any promise was broken."""
    parser = argparse.ArgumentParser(description="Everything that shows how safe weightmap is, in one table.")
    parser.add_argument("--quick", action="store_true", help="a sample of all, in a few minutes")
    parser.add_argument("--seconds", type=float, help=f"of fuzzing (default: {_SECONDS:.0f})")
    arguments = parser.parse_args()
    seconds = arguments.seconds or (_SECONDS_QUICK if arguments.quick else _SECONDS)
    parts = [_hostile(quick=arguments.quick), _crashes(quick=arguments.quick), _fuzzing(seconds)]
    sys.stdout.write("\n\n".join("\n".join([part.title, "", *part.lines]) for part in parts) + "\n")
    return int(not all(part.kept for part in parts))


def _hostile(*, quick: bool) -> Part:
    with tempfile.TemporaryDirectory() as directory:
        trials = measure(CASES[:: _EVERY_QUICK if quick else 1], Path(directory))
    return Part("Hostile input", hostile_table(trials), not any(trial.fault for trial in trials))


def _crashes(*, quick: bool) -> Part:
    found = list(told(rows(QUICK if quick else FULL)))
    return Part(
        "Crashes, full disks, errors of the system", crash_table(found), not any(row.violations for row in found)
    )


def _fuzzing(seconds: float) -> Part:
    """Feed each parser random input; the rows are parsers."""
    lines = [f"{'parser':12} {'taken':>11} {'refused':>11} {'other errors':>13}  slowest"]
    total, wrong = 0, []
    for name in FEEDS:
        taken, refused, fault, slowest = fuzz(name, seconds / len(FEEDS))
        total += taken + refused
        wrong += [f"wrong: {name}: {fault}"] if fault else []
        lines.append(f"{name:12} {taken:11,} {refused:11,} {int(bool(fault)):13}  {slowest:.3f} s")
    return Part("Fuzzing", [*lines, f"{total:,} executions, {len(wrong)} parsers with other errors", *wrong], not wrong)


if __name__ == "__main__":
    sys.exit(main())
