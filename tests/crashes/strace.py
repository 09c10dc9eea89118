"""Runs of the command line under `strace`: what they asked of the system, in order, and one call of it disturbed."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Final

from tests.crashes.kills import run_process
from tests.crashes.server import Ended

MUTATING: Final = (
    "openat", "mkdir", "mkdirat", "pwrite64", "pwritev", "pwritev2", "write", "ftruncate", "fallocate", "fsync",
    "fdatasync", "sync_file_range", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "flock",
    "copy_file_range", "sendfile",
)  # fmt: skip
READING: Final = ("openat", "pread64", "preadv", "preadv2", "read", "newfstatat", "fstat", "getdents64", "close")

_LINE: Final = re.compile(r"^(?P<thread>\d+) +(?P<name>\w+)\((?P<rest>.*)$")
_STRINGS: Final = "0"


@dataclass(frozen=True, slots=True)
class Traced:
    """A call, as strace shows it.

    Attributes:
        name: of the call.
        number: among the calls of this name by the same thread, from one.
        thread: which thread made it.
        path: the last path below the directory that was asked for; empty if there is none.
        text: all of its line.
    """

    name: str
    number: int
    thread: str
    path: str
    text: str

    @property
    def creates(self) -> bool:
        """Whether it opens a file that it makes."""
        return self.name == "openat" and "O_CREAT" in self.text

    @property
    def hit(self) -> bool:
        """Whether it was disturbed."""
        return "(INJECTED" in self.text


def why_no_strace() -> str:
    """Why nothing can be traced; empty if it can."""
    program, harmless = which("strace"), which("true")
    if program is None or harmless is None:
        return "there is no strace"
    line = [program, "-f", "-e", "inject=fsync:error=EIO:when=1", harmless]
    done = subprocess.run(line, check=False, capture_output=True, text=True)
    return "" if done.returncode == 0 else f"strace may not trace here ({' '.join(done.stderr.split())[:100]})"


def traced(
    words: tuple[str, ...], root: Path, names: tuple[str, ...], *, inject: str = "", follow: bool = True
) -> tuple[Ended, list[Traced]]:
    """Run a command line; returns how it ended, and its calls in their order.

    Args:
        words: of the command line.
        root: the directory whose paths are looked for.
        names: the calls that are traced.
        inject: what is done to which call, such as `fsync:error=EIO:when=3`.
        follow: trace all threads; else the first one alone.
    """
    with tempfile.NamedTemporaryFile("r") as file:
        options = ["-y", "-s", _STRINGS, "-o", file.name, "-e", f"trace={','.join(names)}"]
        options += ["-f", "--seccomp-bpf"] if follow else []
        options += ["-e", f"inject={inject}"] if inject else []
        ended = run_process(words, before=("strace", *options))
        return ended, _parse(file.read(), root, follow=follow)


def _parse(text: str, root: Path, *, follow: bool) -> list[Traced]:
    path = re.compile(re.escape(str(root)) + r'[^">]*')
    counts: dict[tuple[str, str], int] = {}
    found: list[Traced] = []
    waiting: dict[str, int] = {}
    for line in text.splitlines():
        shown = line if follow else f"0 {line}"
        if "resumed>" in shown:
            thread = shown.split()[0]
            if thread in waiting:
                place = waiting.pop(thread)
                call = found[place]
                found[place] = Traced(call.name, call.number, call.thread, call.path, f"{call.text} {shown}")
            continue
        match = _LINE.match(shown)
        if match is None:
            continue
        thread, name = match["thread"], match["name"]
        counts[thread, name] = number = counts.get((thread, name), 0) + 1
        if "<unfinished" in shown:
            waiting[thread] = len(found)
        paths = path.findall(match["rest"])
        found.append(Traced(name, number, thread, paths[-1] if paths else "", shown))
    return found
