"""Runs the chosen rows one after the other, keeps each result, and the disk small."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from benchmarks.jobs import JOBS, Job
from benchmarks.pairs import run_pairs
from benchmarks.peers import PEERS, Peer, environment, run_peer
from benchmarks.process import CommandFailedError
from benchmarks.reading import run_verify
from benchmarks.results import Results, Row, pair_key
from benchmarks.rounds import Rounds
from benchmarks.startup import Startup
from benchmarks.workplace import REPOSITORY, Workplace, WrongOutputError, needed

ALL_ROWS = [*dict.fromkeys(job.group for job in JOBS), "verify", "peers", "startup"]
QUICK_ROWS = [
    *("rename-there", "durable-there", "transpose", "cast-fp16", "rope-there", "matrix"),
    *("script_there", "startup"),
]
STARTUP_ROUNDS = 5
LEAST_PAIRS, LEAST_PEER_PAIRS = 3, 1  # whatever they take


def chosen_rows(text: str | None) -> list[str]:
    """Rows and groups from the command line.

    Raises:
        SystemExit: one of them isn't there.
    """
    if text is None:
        return ALL_ROWS
    known = {*ALL_ROWS, *(job.name for job in JOBS), *(peer.name for peer in PEERS)}
    rows = text.split(",")
    if unknown := [row for row in rows if row not in known]:
        raise SystemExit(f"no row is called {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return rows


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to measure: the row's key, what it reads, and how it is measured, in at most about so many seconds."""

    key: str
    workplace: Workplace
    sources: frozenset[str]
    run: Callable[[float | None], Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """What to measure, and how often.

    Attributes:
        root: the folder for everything.
        rounds: pairs of each row.
        seconds: for everything, about; None for as long as it takes.
        memories: with memory touched before each run (True), with free memory given back (False), or both.
        quick: leave out what takes long.
    """

    root: Path
    results: Results
    size: str
    peer_sizes: list[str]
    rounds: int
    memories: list[bool]
    seconds: float | None = None
    quick: bool = False

    def run(self, rows: list[str], *, keep: bool) -> bool:
        """Measure the rows; returns whether none failed. A row that fails is kept as such, and the next one is run."""
        # As an installed package is: a source that was edited, or never run, would be compiled at each start.
        subprocess.run([sys.executable, "-m", "compileall", "-q", "converters", "mappings"], check=True, cwd=REPOSITORY)
        steps = list(self._steps(rows))
        good, begun = True, time.monotonic()
        for number, step in enumerate(steps):
            say(f"[{number + 1}/{len(steps)}] {step.key}")
            start = time.monotonic()
            # What one row leaves of its share is for the others.
            left = None if self.seconds is None else max(0.0, self.seconds - (start - begun)) / (len(steps) - number)
            try:
                row = step.run(left)
            except (CommandFailedError, WrongOutputError, subprocess.SubprocessError) as error:
                row = {"error": str(error)}
                say_more(str(error))
            good = good and "error" not in row
            self.results.put(step.key, row)
            step.workplace.free_output()
            say_more(f"took {time.monotonic() - start:.0f} s in all")
            if not keep:
                following = steps[number + 1] if number + 1 < len(steps) else None
                stays = following is not None and following.workplace.root == step.workplace.root
                step.workplace.keep_only(needed(following.sources) if following and stays else ())
        return good

    def _steps(self, rows: list[str]) -> Iterator[Step]:
        workplace = Workplace(self.root, self.size)
        verify = "verify" in rows
        for job in JOBS:
            # Verification reads what the rows before it read.
            if verify and not job.group.startswith(("rename", "durable")):
                yield self._verify_step(workplace)
                verify = False
            if job.name in rows or job.group in rows:
                for number, prefault in enumerate(self.memories):
                    run = partial(self._run_job, job, workplace, prefault=prefault, first=number == 0)
                    key = pair_key("job", job.name, self.size, prefault=prefault)
                    yield Step(key, workplace, frozenset([job.source]), run)
        yield from self._peer_steps(rows)
        if "startup" in rows:
            yield from self._startup_steps()

    def _run_job(self, job: Job, workplace: Workplace, seconds: float | None, *, prefault: bool, first: bool) -> Row:
        rounds = Rounds(self.rounds, 1 if self.quick else LEAST_PAIRS, seconds)
        return {"pairs": run_pairs(job, workplace, rounds, prefault=prefault, warm_up=first, say=say_more)}

    def _verify_step(self, workplace: Workplace) -> Step:
        def run(seconds: float | None) -> Row:
            rounds = Rounds(self.rounds, LEAST_PAIRS, seconds)
            return {"pairs": run_verify(workplace, rounds, prefault=True, say=say_more)}

        key = pair_key("verify", "roundtrip", self.size, prefault=True)
        return Step(key, workplace, frozenset(["phi", "tenny"]), run)

    def _peer_steps(self, rows: list[str]) -> Iterator[Step]:
        chosen = [peer for peer in PEERS if "peers" in rows or peer.name in rows]
        if not chosen:
            return
        # The other environment sees this one's packages, so it is needed only for those that aren't here.
        here = all(find_spec(peer.module) for peer in chosen)
        python = Path(sys.executable) if here else environment(self.root)
        for size in self.peer_sizes:
            workplace = Workplace(self.root, size)
            for peer in chosen:
                key = pair_key("peer", peer.name, size, prefault=True)
                yield Step(key, workplace, frozenset([peer.source]), partial(self._run_peer, peer, workplace, python))

    def _run_peer(self, peer: Peer, workplace: Workplace, python: Path, seconds: float | None) -> Row:
        return run_peer(peer, workplace, python, Rounds(self.rounds, LEAST_PEER_PAIRS, seconds), say_more)

    def _startup_steps(self) -> Iterator[Step]:
        workplace = Workplace(self.root, "startup")
        startup = Startup(workplace.root, STARTUP_ROUNDS, say_more)
        for name, run in startup.rows(quick=self.quick).items():
            yield Step(f"startup {name}", workplace, frozenset(["sparse"]), _untimed(run))


def _untimed(run: Callable[[], Row]) -> Callable[[float | None], Row]:
    return lambda _: run()


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def say_more(text: str) -> None:
    """Print a line below another one."""
    say(f"  {text}")
