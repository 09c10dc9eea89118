"""SIGKILL at random moments: the output is absent or complete, or old or new, and the next run succeeds."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from random import Random
from statistics import median

from tests.crashes.check import Checked, Row, end_of
from tests.crashes.scene import Scene
from tests.crashes.server import REPOSITORY, Ended, Server, environment

_MEASURED = 5
_BETWEEN_MEASURES = 50
_MOST_TRIALS = 4
_BEYOND = 1.1
"""Delays go so far beyond the usual time, so that some runs are over before they would be killed."""


def kills(scene: Scene, server: Server, number: int, seed: int = 0) -> Row:
    """Kill forked runs, each third with --overwrite over an old output; their imports are done, so all of it counts."""
    return _kill(
        Row("kill -9, at random"),
        scene,
        server,
        number,
        seed,
        usual=lambda: usual_seconds(scene, server),
        run=lambda words, delay: server.run(words, after=delay),
    )


def kills_of_processes(scene: Scene, server: Server, number: int, seed: int = 0) -> Row:
    """As `kills`, but of whole processes, from the start of Python on."""

    def usual() -> float:
        scene.clear()
        return run_process(scene.words()).seconds

    return _kill(Row("kill -9, of whole processes"), scene, server, number, seed, usual=usual, run=run_process)


def _kill(
    row: Row,
    scene: Scene,
    server: Server,
    number: int,
    seed: int,
    *,
    usual: Callable[[], float],
    run: Callable[[tuple[str, ...], float], Ended],
) -> Row:
    """Kill so many runs; those that are over before are judged, too, and only named among the ends."""
    random = Random(seed)  # noqa: S311 - no secret
    seconds = 0.0
    trial = 0
    while row.tried < number and trial < _MOST_TRIALS * number:
        if trial % _BETWEEN_MEASURES == 0:
            seconds = usual()  # what else the machine does comes and goes
        checked = checked_in_turn(scene, server, trial)
        checked.begin()
        delay = random.uniform(0, seconds * _BEYOND)
        ended = run(checked.words, delay)
        end = end_of(ended, checked.state())
        fault = checked.broken_by_kill(ended) or checked.broken_by_rerun()
        row.add(f"trial {trial} of seed {seed}, after {delay:.4f} s, {_kind(checked)}", end, fault, ended.seconds)
        row.tried -= ended.code >= 0
        trial += 1
    return row


def checked_in_turn(scene: Scene, server: Server, trial: int) -> Checked:
    """Each third trial replaces an old output, the others make a new one."""
    old = trial % 3 == 2
    return Checked(scene, server, scene.words("--overwrite") if old else scene.words(), old=old)


def usual_seconds(scene: Scene, server: Server, *options: str) -> float:
    """How long an undisturbed run takes once all is imported."""
    taken = []
    for _ in range(_MEASURED):
        scene.clear()
        taken.append(server.run(scene.words(*options)).seconds)
    return median(taken)


def run_process(words: tuple[str, ...], after: float | None = None, before: tuple[str, ...] = ()) -> Ended:
    """Run a command line in a process of its own, and kill it after so many seconds.

    Args:
        words: the words of the command line.
        after: seconds; None to let it end.
        before: words of another program that runs it, such as `strace`.
    """
    line = [*before, sys.executable, str(REPOSITORY / "cli.py"), *words]
    started = time.monotonic()
    with subprocess.Popen(
        line, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=after)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
    return Ended(process.returncode, output, errors, time.monotonic() - started)


def _kind(checked: Checked) -> str:
    return "over an old output" if checked.old else "plain"
