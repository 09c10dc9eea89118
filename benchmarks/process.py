"""Runs whole processes and measures each: wall time, processor time, and the peak of its own memory by kind."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 0.005  # often enough for a peak, and far below one percent of a processor
KEYS = {"VmHWM": "resident", "RssAnon": "anonymous", "RssFile": "file"}


class CommandFailedError(RuntimeError):
    """A command of a benchmark did not end with 0; holds what it printed last."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run: of one process, or of several in turn, whose times add up and whose largest peaks count.

    Attributes:
        wall, user, system: seconds.
        resident: peak resident memory, in bytes.
        anonymous: peak of the part that is no file's, in bytes, as sampled.
        file: peak of the pages of mapped files (libraries, and what is read through a map), in bytes, as sampled.
    """

    wall: float
    user: float
    system: float
    resident: int
    anonymous: int
    file: int

    @property
    def cpu(self) -> float:
        """Seconds of processor time."""
        return self.user + self.system

    def as_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def measure(*commands: Sequence[str | Path], log: Path, environment: dict[str, str] | None = None) -> Measured:
    """Run commands one after the other.

    Args:
        commands: each a program, found on PATH, and its arguments.
        log: where their standard output and error go.
        environment: variables beside those of this process.

    Raises:
        CommandFailedError: one of them failed.
    """
    runs = [_measure([*map(str, command)], log, {**os.environ, **(environment or {})}) for command in commands]
    return Measured(
        wall=sum(run.wall for run in runs),
        user=sum(run.user for run in runs),
        system=sum(run.system for run in runs),
        resident=max(run.resident for run in runs),
        anonymous=max(run.anonymous for run in runs),
        file=max(run.file for run in runs),
    )


def _measure(command: list[str], log: Path, environment: dict[str, str]) -> Measured:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    redirect = [(os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o644), (os.POSIX_SPAWN_DUP2, 1, 2)]
    start = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, environment, file_actions=redirect)
    peaks = dict.fromkeys(KEYS, 0)
    ended = select.poll()
    handle = os.pidfd_open(pid)
    try:
        ended.register(handle, select.POLLIN)
        while not ended.poll(SAMPLE_SECONDS * 1000):
            _sample(pid, peaks)
        wall = time.perf_counter() - start
    except BaseException:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(handle)
    _, status, usage = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        text = log.read_text(errors="replace")[-2000:]
        raise CommandFailedError(f"{' '.join(command)} ended with {code}:\n{text}")
    return Measured(
        wall=wall,
        user=usage.ru_utime,
        system=usage.ru_stime,
        resident=_peak(usage.ru_maxrss * 1024, peaks["VmHWM"]),
        anonymous=peaks["RssAnon"],
        file=peaks["RssFile"],
    )


def _sample(pid: int, peaks: dict[str, int]) -> None:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key in peaks:
            peaks[key] = max(peaks[key], int(value.split()[0]) * 1024)


def _peak(reported: int, sampled: int) -> int:
    """The exact peak where it can be had.

    What the system reports at the end counts what this process held when it started the other, too; so it is exact
    only above that. Below, the last sample of the high-water mark is at most a few milliseconds old.
    """
    own = {"VmHWM": 0}
    _sample(os.getpid(), own)
    return reported if reported > own["VmHWM"] else sampled
