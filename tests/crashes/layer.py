"""A layer between a run and the system: it counts the calls that touch a directory, and disturbs one of them.

It takes the place of functions of `os`, `fcntl` and the C library in the process that calls `install`, so that it needs
no privilege and no other program. What Python's own buffered files do, it doesn't see; `strace` does.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

READING: Final = ("open", "fstat", "stat", "lstat", "scandir", "read", "pread", "preadv", "readlink")
WRITING: Final = ("create", "mkdir", "pwrite", "pwritev", "write", "ftruncate", "posix_fallocate", "fsync", "fdatasync")
NAMING: Final = ("rename", "replace", "renameat2", "unlink", "remove", "rmdir", "link")
OTHERS: Final = ("close", "flock", "statvfs", "sync_file_range", "sendfile", "copy_file_range", "posix_fadvise")
MUTATING: Final = frozenset({*WRITING, *NAMING, "flock", "sendfile", "copy_file_range"})

_LIBC: Final = {"renameat2": 1, "sync_file_range": 0}
"""Functions that are called through ctypes, with the place of the argument that names the file."""

_SHUTDOWN: Final = 0x8004587D
_WITHOUT_LOG: Final = 2
_BLOCK: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done to which call.

    Attributes:
        call: the name of the function; `create` is an `open` that makes a file. Empty: any.
        at: its number among the calls of this name, from one; 0 is each of them.
        do: the name of an error to raise; or `kill`, `kill after`, `short`, `fill`, `cut`, the name of a signal, or
            one of `CHANGES` for the file that is read.
        under: only calls on paths that begin so are counted.
        target: what `fill` fills or `cut` cuts off: a directory on that disk.
        lasting: all later calls of the name meet with the same.
    """

    call: str
    at: int
    do: str
    under: str
    target: str = ""
    lasting: bool = False


def install(fault: Fault, report: int) -> None:
    """Put the layer in place; each call that it counts becomes a line in the file `report`."""
    layer = _Layer(fault, report)
    for name in (*READING, *WRITING, *NAMING, *OTHERS):
        if name not in {"create", "flock", *_LIBC} and hasattr(os, name):
            setattr(os, name, layer.around(name, getattr(os, name)))
    fcntl.flock = layer.around("flock", fcntl.flock)
    layer.cover_libc()


def cut_power(directory: str) -> None:
    """Let the file system forget all that it has not written to its disk; nothing can be written from now on."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _SHUTDOWN, _WITHOUT_LOG.to_bytes(4, "little"))
    finally:
        os.close(descriptor)


def fill_disk(directory: str) -> None:
    """Write into a disk until not a byte more goes into it."""
    descriptor = os.open(f"{directory}/filler", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nbytes = _BLOCK
    try:
        while nbytes:
            try:
                os.write(descriptor, bytes(nbytes))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                nbytes //= 2
    finally:
        os.close(descriptor)


class _Layer:
    def __init__(self, fault: Fault, report: int) -> None:
        self._fault = fault
        self._report = report
        self._counts: dict[str, int] = {}
        self._lock = threading.RLock()
        self._inside = threading.local()
        self._write, self._readlink = os.write, os.readlink

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with the layer before it."""

        def call(*args: Any, **more: Any) -> Any:
            return self._call(name, function, args, more, self._place(name, args, more))

        return call

    def cover_libc(self) -> None:
        """Put the layer before functions that are called through ctypes."""
        layer, usual = self, ctypes.CDLL

        class Library(usual):  # type: ignore[misc,valid-type]
            def __getattr__(self, name: str) -> Any:
                function = super().__getattr__(name)
                if name in _LIBC:
                    function = _Foreign(layer, name, function)
                    setattr(self, name, function)
                return function

        ctypes.CDLL = Library  # type: ignore[misc]

    def _call(self, name: str, function: Callable[..., Any], args: Any, more: Any, place: str | None) -> Any:
        if getattr(self._inside, "busy", False) or place is None or not place.startswith(self._fault.under):
            return function(*args, **more)
        if name == "open" and args[1] & os.O_CREAT:
            name = "create"
        self._inside.busy = True
        try:
            return self._disturb(name, function, args, more, place)
        finally:
            self._inside.busy = False

    def _disturb(self, name: str, function: Callable[..., Any], args: Any, more: Any, place: str) -> Any:
        fault = self._fault
        with self._lock:
            self._counts[name] = count = self._counts.get(name, 0) + 1
            hit = fault.call in {"", name} and (fault.at in {0, count} or (fault.lasting and count > fault.at))
            self._write(self._report, f"{'!' if hit else ' '}\t{name}\t{place}\n".encode())
        if not hit:
            return function(*args, **more)
        if fault.do == "short":
            return function(*_shortened(args), **more)
        if fault.do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.do == "kill after":
            function(*args, **more)
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.do.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, fault.do))
        elif fault.do == "fill":
            fill_disk(fault.target)
        elif fault.do == "cut":
            cut_power(fault.target)
        elif fault.do in _CHANGES:
            _CHANGES[fault.do](Path(place))
        else:
            number = getattr(errno, fault.do)
            if name == "close":  # which gives the descriptor back, whatever it says
                function(*args, **more)
            if isinstance(function, _Foreign):
                ctypes.set_errno(number)
                return -1
            raise OSError(number, os.strerror(number))
        return function(*args, **more)

    def _place(self, name: str, args: Any, more: Any) -> str | None:
        """The path that a call is about."""
        try:
            first = args[_LIBC.get(name, 0)]
            if isinstance(first, int):
                return self._readlink(f"/proc/self/fd/{first}")
            path = os.fsdecode(first)
            folder = more.get("dir_fd") or more.get("src_dir_fd")
            return path if folder is None else f"{self._readlink(f'/proc/self/fd/{folder}')}/{path}"
        except (OSError, TypeError, IndexError):
            return None


class _Foreign:
    """A function of the C library, with the layer before it."""

    def __init__(self, layer: _Layer, name: str, function: Any) -> None:
        self.__dict__.update(_layer=layer, _name=name, _function=function)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._function, name, value)

    def __call__(self, *args: Any) -> Any:
        place = self._layer._place(self._name, args, {})
        return self._layer._call(self._name, _Raw(self._function), args, {}, place)


class _Raw(_Foreign):
    def __init__(self, function: Any) -> None:
        self.__dict__.update(_function=function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


def _shortened(args: Any) -> Any:
    """The arguments of a read or write, with half of the bytes."""
    descriptor, data, *rest = args
    if isinstance(data, int):
        return (descriptor, max(1, data // 2), *rest)
    if isinstance(data, list):
        half = memoryview(data[0])
        return (descriptor, [half[: max(1, half.nbytes // 2)]], *rest)
    return (descriptor, memoryview(data)[: max(1, memoryview(data).nbytes // 2)], *rest)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _replace(path: Path) -> None:
    """As a download does that begins anew: another file of the same size under the same name."""
    other = path.with_name("replacement")
    other.write_bytes(path.read_bytes()[::-1])
    other.rename(path)


def _change(path: Path) -> None:
    """The last byte, in place."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


_CHANGES: Final[dict[str, Callable[[Path], None]]] = {
    "truncate": _truncate,
    "empty": lambda path: os.truncate(path, 0),
    "replace": _replace,
    "change": _change,
    "remove": Path.unlink,
}
CHANGES: Final = tuple(_CHANGES)
