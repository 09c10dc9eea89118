"""Runs hostile cases each in a process of its own, as the command line would, and measures time and memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.hostile.case import Case, fault_of, listing

REPOSITORY: Final = Path(__file__).resolve().parents[2]
_PEAK: Final = "VmHWM:"
# What the kernel reports to a parent counts the parent's own memory at the fork, too; the process itself knows better.
_RUN: Final = f"""\
import atexit, os, sys
report = os.environ.pop("HOSTILE_REPORT")
@atexit.register
def peak():
    with open("/proc/self/status") as status, open(report, "w") as file:
        file.write(next(line.split()[1] for line in status if line.startswith("{_PEAK}")))
from converters.commands import main
main(prog_name="weightmap")
"""
_LIMIT_SECONDS: Final = 120


@dataclass(frozen=True, slots=True)
class Trial:
    """How a case ended.

    Attributes:
        kind, title: of the case.
        refused: whether it had to be refused.
        large: whether its input is large.
        fault: which promise was broken; empty if none.
        seconds: of processor time, the start of Python included.
        nbytes: of memory at the peak.
    """

    kind: str
    title: str
    refused: bool
    large: bool
    fault: str
    seconds: float
    nbytes: int


def measure(cases: Iterable[Case], directory: Path) -> list[Trial]:
    """Write and run each case, in order."""
    return [_measure(case, directory / f"case{number}") for number, case in enumerate(cases)]


def _measure(case: Case, root: Path) -> Trial:
    root.mkdir()
    case.write(root)
    before = listing(root)
    report = root.with_suffix(".report")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HOSTILE_REPORT": str(report)}
    started = os.times()
    try:
        done = subprocess.run(
            [sys.executable, "-c", _RUN, *case.command(root)],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=_LIMIT_SECONDS,
        )
        fault = fault_of(case, root, before, done.returncode, done.stdout, done.stderr)
    except subprocess.TimeoutExpired:
        fault = f"it takes more than {_LIMIT_SECONDS} seconds"
    ended = os.times()
    seconds = ended.children_user + ended.children_system - started.children_user - started.children_system
    nbytes = int(report.read_text()) * 1024 if report.exists() else 0
    shutil.rmtree(root)
    return Trial(case.kind, case.title, bool(case.code), case.large, fault, seconds, nbytes)
