"""Names in directories that change all at once: renames that never replace by accident, locks, and durable directories.

Python's own `os.rename` replaces an empty directory without a word, and can't swap two. Linux can do both right.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from converters.deferred_signals import deferred_signals

_AT_FDCWD: Final = -100
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
# ENOSYS: an old kernel. EINVAL: a file system that knows no flags. The others: what some network file systems say.
_UNSUPPORTED: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})
_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
_LOCK_ATTEMPTS: Final = 100
_HOLDER_NBYTES: Final = 200


class UnsupportedRenameError(OSError):
    """This system or file system has no such rename; the caller has to do with weaker ones."""


class LockedError(Exception):
    """Someone else holds the lock; the message says who, as far as that is known."""


def rename_noreplace(source: Path, target: Path) -> None:
    """Rename, unless something is at `target`, in one step.

    Raises:
        FileExistsError: something is at `target`.
        UnsupportedRenameError: the system can't.
        OSError: renaming failed.
    """
    _renameat2(source, target, _RENAME_NOREPLACE)


def exchange(first: Path, second: Path) -> None:
    """Swap two names in one step; at no time is either of them missing.

    Raises:
        UnsupportedRenameError: the system can't.
        OSError: swapping failed.
    """
    _renameat2(first, second, _RENAME_EXCHANGE)


def sync_directory(directory: Path) -> None:
    """Flush the names in a directory to the disk: without it, a rename survives a kill and not a power cut.

    Raises:
        OSError: flushing failed; never try again, the kernel reports a lost write only once.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # how some file systems say that their directories need no flushing
            raise
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Flush every file and directory below `directory` to the disk, and then itself; links are left alone.

    Raises:
        OSError: flushing failed.
    """
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                sync_tree(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
    sync_directory(directory)


def remove_tree(directory: Path) -> None:
    """Remove a directory with all that is in it, if it is there; a link is removed, and not what it points to.

    Raises:
        OSError: something in it can't be removed.
    """
    try:
        mode = os.lstat(directory).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        import shutil

        shutil.rmtree(directory)
    else:
        directory.unlink()


@contextmanager
def exclusive_lock(path: Path) -> Iterator[bool]:
    """Hold a lock file, without waiting for it; it is gone after the last holder.

    Yields whether it really holds: some network file systems have no locks, and nothing may be concluded there.

    The holder unlinks the file before it lets go. Someone who opened it before that, and locked it after, has locked a
    file without a name; so each compares what it locked with what is at the path, and starts again if they differ.

    Raises:
        LockedError: someone else holds it.
        OSError: the file can't be made.
    """
    descriptor: int | None = None
    try:
        with deferred_signals():  # one between the making of the file and our knowing of it would leave it behind
            descriptor = _lock(path)
        yield descriptor is not None
    finally:
        if descriptor is not None:
            try:
                _release(descriptor, path)
            except BaseException:  # a signal that came right here
                _release(descriptor, path)
                raise


def _release(descriptor: int, path: Path) -> None:
    """Let a lock go; a second time does no harm."""
    with deferred_signals(), suppress(OSError):
        # In this order: once the lock is free, the file may be someone else's.
        try:
            if _is_at(descriptor, path):
                path.unlink()
        finally:
            os.close(descriptor)


def check_unlocked(path: Path) -> bool:
    """Look whether someone holds a lock file, without making one or keeping it.

    Whoever tries to lock it in the same instant is told that someone does.

    Returns:
        True if no one does; False where the file system has no locks, so that nobody can tell.

    Raises:
        LockedError: someone holds it.
        OSError: it can't be opened.
    """
    exists = True
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        # Nobody holds it, if there are locks here at all: the directory can tell.
        exists = False
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        if exists:
            raise LockedError(_holder(descriptor)) from None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    finally:
        os.close(descriptor)
    return True


def _lock(path: Path) -> int | None:
    for _ in range(_LOCK_ATTEMPTS):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        held = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = _is_at(descriptor, path)
            if held:
                # On a full disk it holds without a name, too; what needs more room fails later, and cleans up.
                with suppress(OSError):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
                return descriptor
        except BlockingIOError:
            raise LockedError(_holder(descriptor)) from None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                with suppress(OSError):
                    # Of no use here; one that another machine holds, if it can, isn't empty.
                    if os.fstat(descriptor).st_size == 0 and _is_at(descriptor, path):
                        path.unlink()
                return None
            raise
        finally:
            if not held:
                os.close(descriptor)
    raise LockedError("other processes, one after the other")


def _holder(descriptor: int) -> str:
    try:
        text = os.pread(descriptor, _HOLDER_NBYTES, 0)
    except OSError:  # a lock on SMB keeps others from reading, too
        text = b""
    return text.decode("utf-8", "replace") or "another process"


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _renameat2(source: Path, target: Path, flags: int) -> None:
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        raise UnsupportedRenameError(errno.ENOSYS, "this C library has no renameat2") from None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    function.restype = ctypes.c_int
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        raise UnsupportedRenameError(code, os.strerror(code))
    raise OSError(code, os.strerror(code), str(source), None, str(target))
