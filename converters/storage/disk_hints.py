"""What the disk is told beforehand: how long a file will be, and to begin with it. Python lacks these calls."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

from converters.storage.files import raise_unwritable

# Of sync_file_range.
_WAIT_BEFORE: Final = 1
_WRITE: Final = 2
# All other errors mean that the file system can't do it, and then nothing is lost.
_LOST_WRITES: Final = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT})
_NO_ROOM: Final = _LOST_WRITES | {errno.EFBIG}


def allocate(descriptor: int, nbytes: int, path: Path) -> None:
    """Give a file its place on the disk, where the file system can do that beforehand.

    Writing into it takes a third less processor time then (on ext4), and a full disk is noticed before that. It is the
    system's own call: posix_fallocate writes to every block where the file system can't do it.

    Raises:
        OutputError: there is no room for it.
    """
    code = _call("fallocate", descriptor, ctypes.c_int(0), ctypes.c_int64(0), ctypes.c_int64(nbytes))
    if code in _NO_ROOM:
        raise_unwritable(OSError(code, os.strerror(code)), path)


def start_writeback(descriptor: int, path: Path) -> None:
    """Let the disk begin with what was written to a file, once it is done with what it was given by the last such call.

    So it is never idle, and never far behind. It is a hint, and no substitute for flushing; where the system knows no
    such call, nothing happens.

    Raises:
        OutputError: what was written before is lost. The kernel says so once for a descriptor, so flushing it after
            that would be no error any more.
    """
    whole = ctypes.c_int64(0)
    code = _call("sync_file_range", descriptor, whole, whole, ctypes.c_uint(_WAIT_BEFORE | _WRITE))
    if code in _LOST_WRITES:
        raise_unwritable(OSError(code, os.strerror(code)), path)


def _call(name: str, descriptor: int, *arguments: ctypes.c_int | ctypes.c_uint | ctypes.c_int64) -> int:
    """Call a function of the system; returns the number of its error, 0 where there is none, or no such function."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None or function(descriptor, *arguments) == 0:
        return 0
    return ctypes.get_errno()
