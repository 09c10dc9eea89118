"""Runs of the command line by the hundred: a process that has everything imported forks a new one for each of them.

`Server` is the other end: it starts that process, tells it what to run, and how to disturb it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from tests.crashes.layer import Fault, cut_power, install

REPOSITORY: Final = Path(__file__).resolve().parents[2]
CUT: Final = "cut"
_LIMIT_SECONDS: Final = 120


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended.

    Attributes:
        code: the exit code; minus the number of the signal that killed it.
        output, errors: what it printed.
        seconds: how long it ran.
        late: seconds from the disturbance to the end.
        calls: the calls that the layer counted, by function and path.
        hits: those of them that it disturbed.
    """

    code: int
    output: str
    errors: str
    seconds: float
    late: float = 0.0
    calls: tuple[tuple[str, str], ...] = ()
    hits: tuple[tuple[str, str], ...] = ()

    @property
    def shell_code(self) -> int:
        """The exit code as a shell shows it."""
        return 128 - self.code if self.code < 0 else self.code


def environment() -> dict[str, str]:
    """The environment of each run: the same bytes each time, and no threads of other libraries."""
    fixed = {"SOURCE_DATE_EPOCH": "1700000000", "PYTHONHASHSEED": "0", "PYTHONPATH": str(REPOSITORY)}
    return {**os.environ, **fixed, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Server:
    """The process that forks; used as a context."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crashes.server"],
            cwd=REPOSITORY,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, words: Sequence[str], **disturbed: Any) -> Ended:
        """Run a command line; see `run_several`."""
        return self.run_several([words], **disturbed)[0]

    def run_several(
        self,
        lines: Sequence[Sequence[str]],
        *,
        after: float | None = None,
        send: int | str = signal.SIGKILL,
        target: str = "",
        fault: Fault | None = None,
        fsize: int | None = None,
    ) -> list[Ended]:
        """Run command lines, all at once.

        Args:
            lines: the words of each.
            after: seconds until they are disturbed.
            send: the signal that they get then; or `CUT`, to cut off the disk of the directory `target`.
            target: a directory.
            fault: which of their system calls is disturbed.
            fsize: bytes that a file may have.
        """
        request = {"lines": [list(words) for words in lines], "after": after, "send": send, "target": target}
        request |= {"fault": None if fault is None else asdict(fault), "fsize": fsize}
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("not started")
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return [Ended(**each) for each in answer]


def main() -> None:
    """Answer requests, a line each, until there are no more."""
    while line := sys.stdin.readline():
        request = json.loads(line)
        answer = _serve(request)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _serve(request: dict[str, Any]) -> list[dict[str, Any]]:
    runs = [_Run(words, request) for words in request["lines"]]
    disturbed = 0.0
    if request["after"] is not None:
        runs[0].wait(request["after"])
        disturbed = time.monotonic()
        if request["send"] == CUT:
            cut_power(request["target"])
        else:
            for run in runs:
                run.send(request["send"])
    return [run.ended(disturbed) for run in runs]


class _Run:
    """A forked run of the command line."""

    def __init__(self, words: list[str], request: dict[str, Any]) -> None:
        # Pipes, since a limit of the size of files holds for messages in a file, too.
        pipes = [os.pipe(), os.pipe()]
        self._pipes = [reading for reading, _ in pipes]
        self._files = [os.memfd_create(name) for name in ("report", "modules")]
        self._started = time.monotonic()
        self._process = os.fork()
        if self._process == 0:
            _child(words, request, *(writing for _, writing in pipes), *self._files)
        for _, writing in pipes:
            os.close(writing)
        self._descriptor = os.pidfd_open(self._process)

    def wait(self, seconds: float) -> bool:
        """Wait until it has ended, so long at the most."""
        return bool(select.select([self._descriptor], [], [], seconds)[0])

    def send(self, number: int) -> None:
        """Send it a signal, if it runs."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, number)

    def ended(self, disturbed: float) -> dict[str, Any]:
        """Wait until it has ended, and tell how."""
        if not self.wait(_LIMIT_SECONDS):
            self.send(signal.SIGKILL)
        now = time.monotonic()
        _, status = os.waitpid(self._process, 0)
        os.close(self._descriptor)
        output, errors = (_take(each) for each in self._pipes)
        report, modules = (_take(each) for each in self._files)
        _import_all(modules)
        lines = [line.split("\t") for line in report.splitlines()]
        return {
            "code": os.waitstatus_to_exitcode(status),
            "output": output,
            "errors": errors,
            "seconds": now - self._started,
            "late": now - disturbed if disturbed else 0.0,
            "calls": [line[1:] for line in lines],
            "hits": [line[1:] for line in lines if line[0] == "!"],
        }


def _child(words: list[str], request: dict[str, Any], output: int, errors: int, report: int, modules: int) -> None:
    """The whole life of a forked process."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(errors, 2)
        # Before the command line has its own handlers, and after, a signal just ends the run.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if request["fsize"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["fsize"], resource.RLIM_INFINITY))
        if request["fault"] is not None:
            install(Fault(**request["fault"]), report)
        from converters.commands import main as weightmap

        weightmap(words, prog_name="weightmap")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if request["fsize"] is None:
            os.write(modules, "\n".join(sys.modules).encode())
        os._exit(code)


def _import_all(modules: str) -> None:
    """Import what a run had to, so that the next one finds it."""
    for name in modules.splitlines():
        if name not in sys.modules:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def _take(descriptor: int) -> str:
    with os.fdopen(descriptor, "rb") as file:
        if file.seekable():
            file.seek(0)
        return file.read().decode("utf-8", "replace")


if __name__ == "__main__":
    main()
