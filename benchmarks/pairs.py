"""Runs a job of the table in pairs with its reference, in turn, and checks every output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.jobs import Job
from benchmarks.memory import settle
from benchmarks.process import Measured, measure
from benchmarks.rounds import Rounds
from benchmarks.workplace import Workplace, nbytes_of, weightmap

Command = Sequence[str | Path]
Pair = dict[str, Any]


def run_pairs(
    job: Job, workplace: Workplace, rounds: Rounds, *, prefault: bool, warm_up: bool, say: Callable[[str], None]
) -> list[Pair]:
    """Measure a job and its reference, each first in every other round.

    Returns:
        A pair of measurements for each round, `run` and `reference`.
    """
    source = workplace.source(job.source)
    files = [path for path in workplace.files(job.source) if path.suffix != ".json"]
    workplace.expected(*job.expected)
    output_nbytes = 0

    def convert() -> Measured:
        nonlocal output_nbytes
        workplace.free_output()
        settle(max(nbytes_of(source), output_nbytes), files, prefault=prefault)
        measured = measure(weightmap("convert", "--quiet", source, workplace.output, *job.arguments), log=workplace.log)
        output_nbytes = nbytes_of(workplace.output)
        workplace.check(workplace.output, job.expected)
        workplace.free_output()
        return measured

    def reference() -> Measured:
        workplace.free_output()
        settle(nbytes_of(source), files, prefault=prefault)
        if job.reference == "dd":
            workplace.output.mkdir()
        commands = reference_commands(job.reference, source, workplace.output, files, output_nbytes)
        measured = measure(*commands, log=workplace.log)
        workplace.free_output()
        return measured

    if warm_up or job.reference == "dd":
        convert()  # also says how many bytes it writes
        reference()
    pairs: list[Pair] = []
    for number in rounds:
        if number % 2:
            run, copied = convert(), reference()
        else:
            copied, run = reference(), convert()
        pairs.append({"run": run.as_json(), "reference": copied.as_json()})
        say(f"{run.wall:.2f} s, {run.wall / copied.wall:.2f} of {job.reference}")
    return pairs


def reference_commands(
    reference: str, source: Path, output: Path, files: Sequence[Path], output_nbytes: int
) -> list[Command]:
    """What the job's time is compared with.

    Raises:
        ValueError: there is no such reference.
    """
    if reference == "cp":
        return [["cp", "-r", source, output]]
    if reference == "cp+sync":
        copies = [output / path.relative_to(source) for path in sorted(source.iterdir())]
        return [["cp", "-r", source, output], ["sync", *copies]]
    if reference == "dd":
        return _read_and_write(files, output, output_nbytes)
    raise ValueError(f"no reference is called {reference}")


def _read_and_write(files: Sequence[Path], output: Path, output_nbytes: int) -> list[Command]:
    """Copy as many bytes of the files as the job writes, and read the rest of them."""
    commands: list[Command] = []
    for number, file in enumerate(files):
        size = file.stat().st_size
        copied = min(size, output_nbytes)
        output_nbytes -= copied
        if copied:
            parts = [f"if={file}", f"of={output / str(number)}", "iflag=count_bytes", f"count={copied}"]
            commands.append(["dd", "bs=1M", "status=none", *parts])
        if copied < size:
            parts = [f"if={file}", "of=/dev/null", "iflag=skip_bytes", f"skip={copied}"]
            commands.append(["dd", "bs=1M", "status=none", *parts])
    return commands
