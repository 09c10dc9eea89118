"""Opening, reading and writing files that can't be trusted: no links, no pipes, no short reads taken for whole ones."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, Self

from msgspec import Struct

from converters.errors import CheckpointError, OutputError
from converters.storage.remote_file import RemoteFile
from converters.storage.remote_path import RemotePath
from converters.text import printable

# O_NONBLOCK: opening a pipe without a writer would hang forever. O_NOFOLLOW: callers resolve links by their own rules.
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_READ_HINTS = {
    errno.EACCES: "Check its permissions.",
    errno.EMFILE: "Too many files are open; raise the limit with `ulimit -n 4096`.",
    errno.ELOOP: "It is a symbolic link; give the file that it points to.",
    errno.EIO: "The disk or the network file system failed; see the system's log.",
}
_WRITE_HINTS = {
    errno.ENOSPC: "The disk is full; free some space or choose another disk.",
    errno.EDQUOT: "Your disk quota is used up; free some space or choose another disk.",
    errno.EFBIG: "The file system or `ulimit -f` limits the size of a file; choose smaller shards.",
    errno.EACCES: "Check the permissions of the directory.",
    errno.EROFS: "The file system is mounted read-only.",
    errno.EIO: "The disk or the network file system failed; see the system's log.",
    errno.ENAMETOOLONG: "Choose a shorter name for the output.",
}


class FileIdentity(Struct, frozen=True):
    """What tells a file from its replacement or from a changed version of itself."""

    nbytes: int
    mtime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """Take it from what `stat` returned."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)


def open_for_reading(path: Path, where: str) -> tuple[int, FileIdentity]:
    """Open a regular file; returns its descriptor and identity.

    Args:
        path: the file; its last part must not be a symbolic link.
        where: how errors name the file.

    Raises:
        CheckpointError: it is missing, not a regular file, a link, or can't be opened.
    """
    try:
        descriptor = os.open(path, _READ_FLAGS)
    except OSError as error:
        raise_unreadable(error, where)
    try:
        status = os.fstat(descriptor)
    except OSError as error:
        close_quietly(descriptor)
        raise_unreadable(error, where)
    if not stat.S_ISREG(status.st_mode):
        close_quietly(descriptor)
        raise CheckpointError(f"expected a regular file, this is {_kind(status.st_mode)}", where)
    return descriptor, FileIdentity.of(status)


def read_exactly(descriptor: int, buffer: memoryview, position: int, where: str) -> None:
    """Fill a buffer of bytes from `position` of a file on.

    Raises:
        CheckpointError: the file ends too early, or the disk failed.
    """
    while buffer.nbytes:
        try:
            count = os.preadv(descriptor, [buffer], position)
        except OSError as error:
            raise_unreadable(error, where)
        if count == 0:
            raise_truncated(buffer.nbytes, position, where)
        position += count
        buffer = buffer[count:]


def read_small_file(path: Path, limit_nbytes: int, where: str) -> bytes:
    """Read a whole file of at most `limit_nbytes`.

    Raises:
        CheckpointError: it is too large, not a regular file, or can't be read.
    """
    if isinstance(path, RemotePath):
        return _read_small_remote(path, limit_nbytes, where)
    descriptor, identity = open_for_reading(path, where)
    try:
        content = _room(identity.nbytes, limit_nbytes, where)
        read_exactly(descriptor, memoryview(content), 0, where)
    finally:
        close_quietly(descriptor)
    return bytes(content)


def _read_small_remote(path: RemotePath, limit_nbytes: int, where: str) -> bytes:
    file = RemoteFile(path, where)
    try:
        content = _room(file.nbytes, limit_nbytes, where)
        file.read_into(0, memoryview(content))
    finally:
        file.close()
    return bytes(content)


def _room(nbytes: int, limit_nbytes: int, where: str) -> bytearray:
    if nbytes > limit_nbytes:
        raise CheckpointError(f"expected at most {limit_nbytes:,} bytes, this file has {nbytes:,}", where)
    return bytearray(nbytes)


def create_file(path: Path) -> int:
    """Create a new file for writing, with the permissions that the umask leaves; returns its descriptor.

    Raises:
        OutputError: something is already there, or it can't be created.
    """
    try:
        return os.open(path, _CREATE_FLAGS, 0o666)
    except OSError as error:
        raise_unwritable(error, path)


def set_size(descriptor: int, nbytes: int, path: Path) -> None:
    """Give a new file its size.

    Raises:
        OutputError: it can't be so long.
    """
    try:
        os.ftruncate(descriptor, nbytes)
    except OSError as error:
        raise_unwritable(error, path)


def write_exactly(descriptor: int, data: memoryview, position: int, path: Path) -> None:
    """Write all of a buffer of bytes at `position` of a file.

    Raises:
        OutputError: the disk is full, or writing failed.
    """
    while data.nbytes:
        try:
            count = os.pwrite(descriptor, data, position)
        except OSError as error:
            raise_unwritable(error, path)
        if count <= 0:
            raise OutputError(f"writing stopped {data.nbytes:,} bytes before its end", printable(str(path)))
        position += count
        data = data[count:]


def sync_and_close(descriptor: int, path: Path, *, sync: bool = True) -> None:
    """Flush a file to the disk, unless that isn't wanted, and close it, whatever happens.

    Never call it again for the same file after an error: the kernel reports a lost write once, and then forgets it.

    Raises:
        OutputError: flushing or closing failed, so what was written may be lost.
    """
    try:
        try:
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise_unwritable(error, path)


def write_new_file(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Create a file, write it whole and flush it to the disk.

    Raises:
        OutputError: something is already there, or writing failed.
    """
    descriptor = create_file(path)
    try:
        write_exactly(descriptor, memoryview(content), 0, path)
    except BaseException:
        close_quietly(descriptor)
        raise
    sync_and_close(descriptor, path, sync=sync)


def make_directory(path: Path) -> None:
    """Make a directory with its parents, if it isn't there.

    Raises:
        OutputError: it can't be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise_unwritable(error, path)


def close_quietly(descriptor: int) -> None:
    """Close a file whose bytes are safe or don't matter: read only, or given up."""
    with suppress(OSError):
        os.close(descriptor)


def raise_unreadable(error: OSError, where: str) -> NoReturn:
    """Turn what the system said while reading into a `CheckpointError`."""
    raise CheckpointError(
        f"can't be read: {error.strerror or error}", where, _READ_HINTS.get(error.errno or 0)
    ) from error


def raise_truncated(missing_nbytes: int, position: int, where: str) -> NoReturn:
    """Say that a file ends at a byte, and before what it held when it was opened."""
    raise CheckpointError(
        f"the file was truncated while it was read: {missing_nbytes:,} bytes are missing at byte {position:,}",
        where,
        "Something else writes to this file; wait until it is done, then start again.",
    )


def raise_unwritable(error: OSError, path: Path) -> NoReturn:
    """Turn what the system said while writing into an `OutputError`."""
    raise OutputError(
        f"can't be written: {error.strerror or error}", printable(str(path)), _WRITE_HINTS.get(error.errno or 0)
    ) from error


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"
