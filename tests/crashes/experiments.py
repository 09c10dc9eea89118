"""All experiments by name, and how much of each is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tests.crashes.calls import errors_at_calls, halves_of_calls, kills_at_calls
from tests.crashes.check import Row
from tests.crashes.flushes import flush_order
from tests.crashes.full_disk import full_disks
from tests.crashes.kills import kills, kills_of_processes
from tests.crashes.power import power_cuts
from tests.crashes.resuming import resumes
from tests.crashes.rivals import locks, rivals
from tests.crashes.scene import Scene, scene
from tests.crashes.server import Server
from tests.crashes.signals import LIMIT_SECONDS, signals, signals_at_calls
from tests.crashes.sources import changing_sources
from tests.crashes.strace_calls import errors_by_strace, interruptions_by_strace, kills_by_strace


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is done.

    Attributes:
        kills: runs that are killed at random moments.
        processes: as many, but whole processes.
        signals: runs that are stopped by SIGINT or SIGTERM at random moments.
        resumes: runs that are killed up to three times, and resumed.
        rounds: rounds of six runs into one output.
        points: points at which a disk is full.
        cuts: power cuts after exit 0, and as many at random moments.
        every: each so-manieth system call is disturbed by the layer.
        every_traced: each so-manieth by strace, where a run takes ten times as long.
        seed: of all that is random.
        limit_seconds: within which a signal must end a run.
    """

    kills: int = 1000
    processes: int = 100
    signals: int = 200
    resumes: int = 200
    rounds: int = 200
    points: int = 50
    cuts: int = 50
    every: int = 1
    every_traced: int = 1
    seed: int = 0
    limit_seconds: float = LIMIT_SECONDS


FULL: Final = Amount()
QUICK: Final = Amount(25, 4, 12, 9, 5, 8, 3, every=16, every_traced=64, limit_seconds=20)
"""A minute or two, on a machine that may be busy."""

Experiment = Callable[[Scene, Server, Amount], Sequence[Row]]

EXPERIMENTS: Final[dict[str, Experiment]] = {
    "kills": lambda there, server, amount: [kills(there, server, amount.kills, amount.seed)],
    "kills of processes": lambda there, server, amount: [
        kills_of_processes(there, server, amount.processes, amount.seed)
    ],
    "kills at calls": lambda there, server, amount: [kills_at_calls(there, server, amount.every)],
    "kills by strace": lambda there, server, amount: [kills_by_strace(there, server, amount.every_traced)],
    "errors at calls": lambda there, server, amount: errors_at_calls(there, server, amount.every),
    "errors by strace": lambda there, server, amount: errors_by_strace(there, server, amount.every_traced),
    "half of a call": lambda there, server, _: [halves_of_calls(there, server)],
    "interruptions": lambda there, server, amount: [interruptions_by_strace(there, server, amount.every_traced)],
    "full disks": lambda there, server, amount: full_disks(there, server, amount.points),
    "signals": lambda there, server, amount: [
        signals(there, server, amount.signals, amount.seed, amount.limit_seconds),
        signals_at_calls(there, server, amount.every, amount.limit_seconds),
    ],
    "sources": lambda there, server, amount: changing_sources(there, server, amount.every),
    "rivals": lambda there, server, amount: [rivals(there, server, amount.rounds), locks(there, server)],
    "power cuts": lambda there, server, amount: power_cuts(there, server, amount.cuts, amount.every, amount.seed),
    "resume": lambda there, server, amount: resumes(there, server, amount.resumes, amount.every, amount.seed),
    "flushes": lambda there, server, _: [flush_order(there, server)],
}


def rows(amount: Amount = FULL, only: Sequence[str] = ()) -> Iterator[Row]:
    """Do the experiments, each in a scene of its own; those of the names in `only`, if there are any."""
    with Server() as server:
        for name, experiment in EXPERIMENTS.items():
            if not only or name in only:
                with scene() as there:
                    yield from experiment(there, server, amount)
