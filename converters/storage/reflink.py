"""Blocks that two files share: a copy that moves no data, where the file system can (XFS, btrfs, bcachefs and others).

The target's blocks point to those of the source until either of the files is written again, and then to copies. Only
whole blocks can be shared, so source and target must begin at the same place in a block; see `shared_blocks.py`.

Source: ioctl_ficlonerange(2) of the Linux manual, and `struct file_clone_range` in linux/fs.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from bisect import bisect_right, insort
from typing import Final, Protocol, runtime_checkable

from converters.storage.files import read_exactly
from converters.storage.safetensors_header import BLOCK

LEAST_NBYTES: Final = 64 << 10
"""Bytes that are worth it: sharing takes as long as copying about so many."""

Place = tuple[int, int]
"""The descriptor of an open file, and a position in it."""

_FICLONERANGE: Final = 0x4020940D
_RANGE: Final = struct.Struct("=qQQQ")  # descriptor and position of the source, bytes, position in the target
_NEVER: Final = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EBADF}
)


@runtime_checkable
class SharingWriter(Protocol):
    """A writer whose files can share blocks with others."""

    def share_from(self, name: str, offset: int, nbytes: int, source: Place) -> tuple[int, int]:
        """Take bytes of a tensor from another file without reading them, as far as that goes; see `Reflinks.share`."""
        ...


class Reflinks:
    """Shares blocks between files, and remembers between which file systems that can't be done."""

    def __init__(self) -> None:
        self._refused: set[tuple[int, int]] = set()

    def share(self, source_place: Place, target_place: Place, nbytes: int) -> tuple[int, int]:
        """Let two open files share as much of a range as they can; safe to call from several threads.

        Args:
            source_place: where the range begins.
            target_place: where it goes, in a file that is open for writing.
            nbytes: its length.

        Returns:
            What of the range they share now, from byte to byte, counted from its beginning; equal if nothing. The
            caller copies the rest, and will hear of whatever is wrong with the files then.
        """
        (source, source_position), (target, target_position) = source_place, target_place
        if (target_position - source_position) % BLOCK or nbytes < LEAST_NBYTES:
            return 0, 0
        devices = os.fstat(source).st_dev, os.fstat(target).st_dev
        if devices in self._refused:
            return 0, 0
        block = max(BLOCK, os.fstatvfs(target).f_frsize)
        start = -target_position % block
        stop = nbytes - (target_position + nbytes) % block
        if stop - start < LEAST_NBYTES or (target_position - source_position) % block:
            return 0, 0
        request = _RANGE.pack(source, source_position + start, stop - start, target_position + start)
        try:
            fcntl.ioctl(target, _FICLONERANGE, request)
        except OSError as error:
            if error.errno in _NEVER:
                self._refused.add(devices)
            return 0, 0
        return start, stop


class SharedRanges:
    """What of a file is shared with others: read through those, which have just been read and so are in memory.

    They are the same blocks of the disk, unless the other file is changed meanwhile, for which a run checks at its end.
    """

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int, Place]] = []

    def add(self, start: int, stop: int, source: Place) -> None:
        """Note that the bytes from `start` to `stop` are those of another file."""
        insort(self._ranges, (start, stop, source))

    def read_into(self, descriptor: int, position: int, buffer: memoryview, where: str) -> None:
        """Fill a buffer with bytes of the file, whose descriptor is given; see `read_exactly`.

        Raises:
            CheckpointError: a file ends too early, or the disk failed.
        """
        end = position + len(buffer)
        number = max(0, bisect_right(self._ranges, (position,)) - 1)
        done = position
        for start, stop, (source, source_position) in self._ranges[number:]:
            if start >= end:
                break
            first, last = max(start, done), min(stop, end)
            if first < last:
                read_exactly(descriptor, buffer[done - position : first - position], done, where)
                shared = buffer[first - position : last - position]
                read_exactly(source, shared, source_position + first - start, where)
                done = last
        read_exactly(descriptor, buffer[done - position :], done, where)
