"""`python -m tests.crashes`: conversions that are killed, cut off and starved; prints the table of how they ended."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace

from tests.crashes.check import Row
from tests.crashes.experiments import EXPERIMENTS, FULL, QUICK, rows

HEAD = ("kind", "tried", "violations", "slowest", "ended")


def main() -> int:
    """Run all of it; the exit status is 1 if any promise was broken."""
    parser = argparse.ArgumentParser(description="Crashes, and all that can go wrong while files are written.")
    parser.add_argument("--quick", action="store_true", help="the short version, of a minute or two")
    parser.add_argument("--kills", type=int, help=f"kills at random moments (default: {FULL.kills})")
    parser.add_argument("--every", type=int, help="disturb only each so-manieth system call (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: 0)")
    parser.add_argument("--only", action="append", default=[], choices=EXPERIMENTS, help="only these experiments")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that its disks are taken off, whoever ends it
    amount = replace(QUICK if arguments.quick else FULL, seed=arguments.seed)
    if arguments.kills is not None:
        amount = replace(amount, kills=arguments.kills)
    if arguments.every is not None:
        amount = replace(amount, every=arguments.every, every_traced=arguments.every)
    done = list(told(rows(amount, arguments.only)))
    sys.stdout.write("\n".join(table(done)) + "\n")
    return int(any(row.violations for row in done))


def told(found: Iterable[Row]) -> Iterable[Row]:
    """Each row, after a line on standard error that says what was just done: all of it takes long."""
    for row in found:
        sys.stderr.write(f"{row.kind}: {row.tried:,} tried, {len(row.violations)} violations\n")
        sys.stderr.flush()
        yield row


def table(found: Sequence[Row]) -> list[str]:
    """The lines of the table, then what was not tried and why, then every violation."""
    cells = [HEAD, *(_cells(row) for row in found), _cells(total(found))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    missing = [f"not tried: {row.kind}: {row.missing}" for row in found if row.missing]
    return [*lines, "", *missing, *(f"violation: {each}" for row in found for each in row.violations)]


def total(found: Sequence[Row]) -> Row:
    """All rows in one."""
    violations = [each for row in found for each in row.violations]
    return Row("all", sum(row.tried for row in found), violations, max((row.slowest for row in found), default=0.0))


def _cells(row: Row) -> tuple[str, ...]:
    ends = ", ".join(f"{count} {end}" for end, count in sorted(row.ends.items(), key=lambda each: -each[1]))
    return row.kind, f"{row.tried:,}", str(len(row.violations)), f"{row.slowest:.2f} s", ends


if __name__ == "__main__":
    sys.exit(main())
