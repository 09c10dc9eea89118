"""Several runs into one output: one makes it, the others are refused and say why; locks of the dead are taken."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.crashes.calls import both_ways
from tests.crashes.check import OUTPUT, Checked, Row, end_of
from tests.crashes.scene import COMPLETE, Scene
from tests.crashes.server import Ended, Server

_AT_ONCE = 6
_REASONS = ("another run is writing this output", "already exists", "something has appeared here")


def rivals(scene: Scene, server: Server, rounds: int) -> Row:
    """Six at once, in turn plain and with --overwrite over an old output; counts runs."""
    row = Row("six at once into one output")
    ways = both_ways(scene, server)
    for number in range(rounds):
        checked = ways[number % 2]
        checked.begin()
        runs = server.run_several([checked.words] * _AT_ONCE)
        fault = _broken_by_rivals(checked, runs) or checked.broken_by_rerun()
        for ended in runs:
            row.add(f"round {number}", end_of(ended, COMPLETE), fault, ended.seconds)
            fault = ""
    return row


def _broken_by_rivals(checked: Checked, runs: list[Ended]) -> str:
    won = [ended for ended in runs if ended.code == 0]
    if not won or (len(won) > 1 and not checked.old):
        return f"{len(won)} of {len(runs)} runs made the output: {[ended.errors for ended in runs if ended.code][:2]}"
    for ended in runs:
        said = " ".join(ended.errors.split())
        if ended.code not in {0, OUTPUT} or (ended.code and not any(reason in said for reason in _REASONS)):
            return f"one ended with {ended.code}: {said[:300]}"
    if (state := checked.state()) != COMPLETE:
        return f"the output is {state}"
    left = checked.scene.beside()
    return f"they left {left}" if left else ""


def locks(scene: Scene, server: Server) -> Row:
    """A lock that is held, and locks whose owners are dead."""
    row = Row("locks of others")
    for checked in both_ways(scene, server):
        checked.begin()
        with _held(scene):
            ended = server.run(checked.words)
            said = " ".join(ended.errors.split())
            fault = "" if ended.code == OUTPUT and "the holder" in said else f"{ended.code}: {said[:300]}"
            fault = fault or ("" if checked.state() == checked.before else f"the output is {checked.state()}")
        row.add("held", end_of(ended, checked.state()), fault, ended.seconds)
        for content in ("", "process 1 on elsewhere", f"process {os.getpid()} on {os.uname().nodename}"):
            checked.begin()
            _lock(scene).write_text(content)
            row.add(f"left, {content!r}", "taken", checked.broken_by_rerun(), 0.0)
    return row


@contextmanager
def _held(scene: Scene) -> Iterator[None]:
    with _lock(scene).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("the holder")
        file.flush()
        yield
    _lock(scene).unlink()


def _lock(scene: Scene) -> Path:
    return scene.outputs / ".out.lock"
