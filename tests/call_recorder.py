"""Records what this process asks of the system for files below a directory, in order."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from converters import filesystem

STAGING = ".out.staging"
"""How the staging directory of an output called `out` is shown, its token taken off."""


@dataclass(frozen=True)
class Call:
    """A call that ended well.

    Attributes:
        path: relative to the directory.
        target: of a rename.
        nbytes: how many were read, written, or are in a file that is flushed.
        digest: of a file that is flushed, what it holds then.
    """

    name: str
    path: str
    flags: int = 0
    mode: int = 0
    target: str = ""
    nbytes: int = 0
    digest: str = ""


class _Recorder:
    """Stands between this process and `os`."""

    def __init__(self, directory: Path) -> None:
        self.calls: list[Call] = []
        self._directory = directory
        self._mutex = threading.Lock()
        self._real = {name: getattr(os, name) for name in self.names()}
        self._real_flock, self._real_renameat2 = fcntl.flock, filesystem._renameat2

    @staticmethod
    def names() -> Sequence[str]:
        """The functions of `os` that are watched."""
        return ("open", "mkdir", "fsync", "pwrite", "write", "preadv", "close", "unlink", "rmdir")

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        descriptor: int = self._real["open"](path, flags, mode, dir_fd=dir_fd)
        self._add("create" if flags & os.O_CREAT else "open", _path(path, dir_fd), flags=flags, mode=mode)
        return descriptor

    def mkdir(self, path: Any, mode: int = 0o777) -> None:
        self._real["mkdir"](path, mode)
        self._add("mkdir", _path(path), mode=mode)

    def fsync(self, descriptor: int) -> None:
        self._real["fsync"](descriptor)
        path = _path_of(descriptor)
        content = b"" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else path.read_bytes()
        self._add("fsync", path, digest=hashlib.sha256(content).hexdigest(), nbytes=len(content))

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        count: int = self._real["pwrite"](descriptor, data, offset)
        self._add("write", _path_of(descriptor), nbytes=count)
        return count

    def write(self, descriptor: int, data: Any) -> int:
        count: int = self._real["write"](descriptor, data)
        self._add("write", _path_of(descriptor), nbytes=count)
        return count

    def preadv(self, descriptor: int, buffers: Any, offset: int) -> int:
        count: int = self._real["preadv"](descriptor, buffers, offset)
        self._add("read", _path_of(descriptor), nbytes=count)
        return count

    def close(self, descriptor: int) -> None:
        path = _path_of(descriptor)
        self._real["close"](descriptor)
        self._add("close", path)

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        where = _path(path, dir_fd)
        self._real["unlink"](path, dir_fd=dir_fd)
        self._add("unlink", where)

    def rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        where = _path(path, dir_fd)
        self._real["rmdir"](path, dir_fd=dir_fd)
        self._add("rmdir", where)

    def flock(self, descriptor: int, flags: int) -> None:
        self._real_flock(descriptor, flags)
        self._add("flock", _path_of(descriptor), flags=flags)

    def renameat2(self, source: Path, target: Path, flags: int) -> None:
        self._real_renameat2(source, target, flags)
        self._add("rename", source, target=self._shown(target) or str(target), flags=flags)

    def _add(self, name: str, path: Path, **more: Any) -> None:
        if (where := self._shown(path)) is not None:
            with self._mutex:
                self.calls.append(Call(name, where, **more))

    def _shown(self, path: Path) -> str | None:
        if path != self._directory and self._directory not in path.parents:
            return None
        name = os.path.relpath(path, self._directory).removesuffix(" (deleted)")
        # A token of zeros is one that a test made.
        return re.sub(rf"^{re.escape(STAGING)}-(?!0{{16}})[0-9a-f]{{16}}", STAGING, name)


@contextmanager
def recorded(directory: Path, patch: pytest.MonkeyPatch) -> Iterator[list[Call]]:
    """Record calls within the block; what was opened through Python's own `open` alone isn't seen."""
    recorder = _Recorder(directory)
    with patch.context() as patched:
        for name in recorder.names():
            patched.setattr(os, name, getattr(recorder, name))
        patched.setattr(fcntl, "flock", recorder.flock)
        patched.setattr(filesystem, "_renameat2", recorder.renameat2)
        yield recorder.calls


def _path(path: Any, folder: int | None = None) -> Path:
    return Path(os.fsdecode(path)) if folder is None else _path_of(folder) / os.fsdecode(path)


def _path_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()
