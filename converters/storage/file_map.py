"""A file mapped into memory, for those who ask for it: reading it is never the default.

A map shows what the file holds now, and touching a page that a truncation took away kills the process (SIGBUS). Looking
at the file's size before each reading leaves a moment in which that can still happen.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Any, Final

from converters.storage.files import raise_truncated, raise_unreadable

if TYPE_CHECKING:
    import numpy as np

KEPT: Final = 64 << 20
"""Bytes of a map that may count as this process's memory; then all of it is given back, and stays in the file cache."""

_AROUND: Final = 64 << 10
"""Bytes that the system maps around one that is touched."""


class FileMap:
    """The bytes of an open file; reading is safe from several threads, closing while one reads isn't."""

    def __init__(self, descriptor: int, nbytes: int, where: str) -> None:
        """Map it.

        Args:
            descriptor: the file; it stays the caller's.
            nbytes: its size, which isn't zero.
            where: how errors name it.

        Raises:
            CheckpointError: its file system can't do that.
        """
        import numpy as np

        self._descriptor, self._where = descriptor, where
        try:
            self._map = mmap.mmap(descriptor, nbytes, prot=mmap.PROT_READ)
        except OSError as error:
            raise_unreadable(error, where)
        self._bytes: np.ndarray[Any, np.dtype[Any]] = np.frombuffer(self._map, dtype="u1")
        self._touched = 0

    def read_into(self, position: int, buffer: memoryview) -> None:
        """Fill a buffer of bytes from `position` on.

        Raises:
            CheckpointError: the file ends too early.
        """
        import numpy as np

        stop = position + buffer.nbytes
        missing = stop - min(os.fstat(self._descriptor).st_size, len(self._bytes))
        if missing > 0:
            raise_truncated(missing, stop - missing, self._where)
        # numpy lets other threads go on while it copies: a page may have to come from the disk.
        np.copyto(np.frombuffer(buffer, dtype="u1"), self._bytes[position:stop])
        self._touched += buffer.nbytes + 2 * _AROUND
        if self._touched > KEPT:
            self._touched = 0
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Take it out of memory."""
        del self._bytes
        self._map.close()
