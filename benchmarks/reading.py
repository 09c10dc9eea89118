"""`verify --level roundtrip` against reading both sides' bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.memory import settle
from benchmarks.process import Measured, measure
from benchmarks.rounds import Rounds
from benchmarks.workplace import Workplace, weightmap

GOAL = 1.1  # "at reading speed"


def run_verify(
    workplace: Workplace, rounds: Rounds, *, prefault: bool, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure the proof that Tenny holds all of Phi-2, and reading both, in turn."""
    source, target = workplace.source("phi"), workplace.source("tenny")
    files = [path for name in ("phi", "tenny") for path in workplace.files(name)]

    def measured(command: list[str | Path]) -> Measured:
        settle(0, files, prefault=prefault)
        return measure(command, log=workplace.log)

    options = ["--spec", "phi2_to_tenny", "--level", "roundtrip", "--no-hash", "--quiet"]
    verify: list[str | Path] = [*weightmap("verify", source, target, *options)]
    read: list[str | Path] = ["sh", "-c", 'cat "$@" > /dev/null', "sh", *files]
    pairs = []
    for number in rounds:
        if number % 2:
            run, reading = measured(verify), measured(read)
        else:
            reading, run = measured(read), measured(verify)
        pairs.append({"run": run.as_json(), "reference": reading.as_json()})
        say(f"{run.wall:.2f} s, {run.wall / reading.wall:.2f} of reading both sides")
    return pairs
