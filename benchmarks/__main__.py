"""The benchmark suite: `python -m benchmarks`, or `make bench`.

    python -m benchmarks                              everything at full size; then docs/benchmarks.md is written
    python -m benchmarks --rows durable,cast          some rows
    python -m benchmarks --quick                      a subset, small, printed only; under three minutes
    python -m benchmarks --report                     docs/benchmarks.md from what was measured so far

Rows are those of the goals (jobs.py), `verify`, `peers` and `startup`. What was measured is kept row by row in
.bench/results.json; a row that is measured again replaces its older self.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.page import page, terminal_table
from benchmarks.results import Results
from benchmarks.shapes import SIZES
from benchmarks.suite import ALL_ROWS, QUICK_ROWS, Suite, chosen_rows
from benchmarks.workplace import REPOSITORY


def main() -> None:
    """Read the command line, measure, print, and write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", help=f"names or groups, with commas between; of {', '.join(ALL_ROWS)}")
    parser.add_argument("--size", choices=SIZES, default="full", help="of the checkpoints; default: full, 5.56 GB")
    parser.add_argument("--peer-sizes", default="medium,full", help="of the peers' rows; default: medium,full")
    parser.add_argument("--rounds", type=int, default=7, help="pairs of each row; default: 7")
    parser.add_argument("--minutes", type=float, help="about how long it may take: slow rows get fewer pairs")
    parser.add_argument("--memory", choices=["touched", "returned", "both"], default="both", help="see docs")
    parser.add_argument("--directory", type=Path, default=REPOSITORY / ".bench")
    parser.add_argument("--keep", action="store_true", help="leave the sources on the disk")
    parser.add_argument("--quick", action="store_true", help="a subset at the size `small`, printed only")
    parser.add_argument("--report", action="store_true", help="measure nothing, write docs/benchmarks.md")
    arguments = parser.parse_args()
    root: Path = arguments.directory.resolve()
    root.mkdir(parents=True, exist_ok=True)
    file = root / ("quick.json" if arguments.quick else "results.json")
    if arguments.quick:
        file.unlink(missing_ok=True)
        arguments.size, arguments.rounds, arguments.memory, arguments.minutes = "small", 3, "touched", 2.0
    results = Results(file)
    failed = False
    if not arguments.report:
        rows = QUICK_ROWS if arguments.quick and not arguments.rows else chosen_rows(arguments.rows)
        suite = Suite(
            root=root,
            results=results,
            size=arguments.size,
            peer_sizes=["small"] if arguments.quick else arguments.peer_sizes.split(","),
            rounds=arguments.rounds,
            seconds=arguments.minutes * 60 if arguments.minutes else None,
            memories={"touched": [True], "returned": [False], "both": [True, False]}[arguments.memory],
            quick=arguments.quick,
        )
        failed = not suite.run(rows, keep=arguments.keep)
        print(terminal_table(results.rows))
    if not arguments.quick:
        notes = (REPOSITORY / "benchmarks" / "notes.md").read_text()
        (REPOSITORY / "docs" / "benchmarks.md").write_text(page(results.rows, notes))
        print("wrote docs/benchmarks.md")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
