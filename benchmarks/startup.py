"""What a command takes before any byte moves: start-up, `inspect`, `plan` of very many tensors, and how they grow."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.memory import settle
from benchmarks.process import Measured, measure
from benchmarks.summary import Spread
from benchmarks.workplace import REPOSITORY, nbytes_of, weightmap

GROWTH = (10_000, 30_000, 100_000, 300_000)
FEW = 3  # rounds of what takes long
MB = 1_000_000
SPARSE_DIVISOR = 16  # every width of DeepSeek-V3 divided by it: as many tensors, 2.6 GB
Say = Callable[[str], None]
Row = dict[str, Any]


class Startup:
    """Measures the rows of start-up and planning.

    Attributes:
        root: a folder for sparse checkpoints.
        rounds: how often each is run; the start of Python three times as often.
    """

    def __init__(self, root: Path, rounds: int, say: Say) -> None:
        self._root = root / "sparse"
        self._log = root / "log"
        self._rounds = rounds
        self._say = say

    def rows(self, *, quick: bool) -> dict[str, Callable[[], Row]]:
        """The rows by name, to be measured one by one."""
        rows: dict[str, Callable[[], Row]] = {"help": self.help}
        if quick:
            return rows | {"plan-10k": lambda: self.plan(10_000, "stack")}
        rows |= {"inspect": self.inspect, "plan-deepseek-rename": lambda: self.plan(None, "rename")}
        rows |= {"plan-deepseek-stack": lambda: self.plan(None, "stack")}
        for count in GROWTH:
            rows[f"plan-{count // 1000}k"] = lambda count=count: self.plan(count, "stack")  # type: ignore[misc]
        return rows | {"sparse": self.convert}

    def help(self) -> Row:
        """`--help`, and Python alone, in turn."""
        base, runs = [], []
        for _ in range(self._rounds * 3):
            base.append(self._measure([sys.executable, "-c", "pass"]))
            runs.append(self._measure(weightmap("--help")))
        beyond = [run.wall - bare.wall for run, bare in zip(runs, base, strict=True)]
        return self._row("`--help`, beyond `python -c pass`", runs, 0.060, None, beyond)

    def inspect(self) -> Row:
        """`inspect` of 100,000 tensors."""
        checkpoint = self._sparse(100_000)
        runs = self._repeat(weightmap("inspect", checkpoint), self._rounds)
        return self._row("`inspect` of 100,000 tensors", runs, 0.5, None)

    def plan(self, tensors: int | None, spec: str) -> Row:
        """`plan` of DeepSeek-V3's shape, or of so many tensors of its kind."""
        checkpoint = self._sparse(tensors)
        what = "DeepSeek-V3's 90,427" if tensors is None else f"{tensors:,}"
        rounds = self._rounds if tensors is None else min(self._rounds, FEW)
        runs = self._repeat(weightmap("plan", "--spec", checkpoint.parent / f"{spec}.yaml", checkpoint), rounds)
        title = f"`plan` of {what} tensors, " + ("experts stacked" if spec == "stack" else "renamed alone")
        goals = (2.0, 400 * MB) if tensors is None else (None, None)
        row = self._row(title, runs, *goals)
        if tensors is not None:
            row["beside"] = {"for 1,000 tensors": [run.wall / tensors * 1000 for run in runs]}
        return row

    def convert(self) -> Row:
        """A conversion of as many tensors as DeepSeek-V3 has, beside `cp` and `plan` of the same."""
        checkpoint = self._sparse(None, SPARSE_DIVISOR)
        output, files = self._root / "output", sorted(checkpoint.glob("*.safetensors"))
        spec = checkpoint.parent / "stack.yaml"
        convert = weightmap("convert", "--quiet", "--spec", spec, checkpoint, output, "--no-sync", "--digest", "none")
        copy = ["cp", "-r", "--sparse=never", str(checkpoint), str(output)]
        found: dict[str, list[Measured]] = {"convert": [], "cp": [], "plan": []}
        for _ in range(min(self._rounds, FEW)):
            for name, command in (("cp", copy), ("convert", convert)):
                settle(nbytes_of(checkpoint), files, prefault=True)
                found[name].append(measure(command, log=self._log))
                shutil.rmtree(output)
            found["plan"].append(self._measure(weightmap("plan", "--spec", spec, checkpoint)))
        row = self._row("`convert` of them, every width a 16th (2.6 GB), experts stacked", found["convert"], None, None)
        row["beside"] = {name: [run.wall for run in found[name]] for name in ("cp", "plan")}
        return row

    def _sparse(self, tensors: int | None, divisor: int = 1) -> Path:
        directory = self._root / f"{tensors or 'deepseek'}-{divisor}"
        if not directory.exists():
            options = [] if tensors is None else ["--tensors", str(tensors)]
            command = [sys.executable, "benchmarks/make_sparse.py", *options, "--divide", str(divisor), str(directory)]
            subprocess.run(command, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
        return directory / "checkpoint"

    def _repeat(self, command: list[str], rounds: int) -> list[Measured]:
        self._measure(command)
        return [self._measure(command) for _ in range(rounds)]

    def _measure(self, command: list[str]) -> Measured:
        return measure(command, log=self._log)

    def _row(
        self,
        title: str,
        runs: list[Measured],
        seconds_goal: float | None,
        memory_goal: int | None,
        seconds: list[float] | None = None,
    ) -> Row:
        row: Row = {
            "title": title,
            "seconds": seconds or [run.wall for run in runs],
            "cpu": [run.cpu for run in runs],
            "resident": max(run.resident for run in runs),
            "anonymous": max(run.anonymous for run in runs),
            "seconds_goal": seconds_goal,
            "memory_goal": memory_goal,
        }
        self._say(f"{title}: {Spread.of(row['seconds']).text(3)} s, {row['resident'] / MB:.0f} MB")
        return row
