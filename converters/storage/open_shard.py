"""One file while it is written: ranges of its tensors in any order, and all of it accounted for at the end."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

import xxhash

from converters.digests import piece_digest
from converters.errors import OutputError, Problem
from converters.sharding import Shard
from converters.storage.base import FileHeader, WriteOptions
from converters.storage.disk_hints import allocate, start_writeback
from converters.storage.file_digests import Extent, FileDigests
from converters.storage.files import close_quietly, create_file, set_size, sync_and_close, write_exactly
from converters.storage.read_back import ReadBack
from converters.storage.reflink import Place, Reflinks, SharedRanges
from converters.storage.safetensors_reader import check_range
from converters.text import printable

_WRITEBACK_NBYTES: Final = 64 << 20
"""Bytes after which the disk is set to work on a file, so that flushing it is short and a signal is heeded soon."""

_ALLOCATED_NBYTES: Final = 64 << 10
"""Bytes of a range from which on room is made for the whole file; what shares its blocks needs none."""

Pieces = Iterable[tuple[int, bytes]]
"""Bytes to write, each with its position in the file."""


class FileLayout(Protocol):
    """The layout of one file, decided before anything is written."""

    @property
    def file_nbytes(self) -> int:
        """Bytes of the whole file."""
        ...

    def position(self, name: str) -> int:
        """Where a tensor's bytes begin in the file."""
        ...

    def before(self) -> Pieces:
        """What is written before the tensors."""
        ...

    def passed(self, name: str, offset: int, data: memoryview) -> None:
        """Take notice of bytes that were written; called from several threads."""
        ...

    def after(self, descriptor: int, where: str) -> Pieces:
        """What is written once all tensors are; `descriptor` is the file, to read it back."""
        ...

    def differs(self, header: FileHeader) -> bool:
        """Whether the header that was read back is not the one that was written."""
        ...


class OpenShard:
    """A file that is being written; all its methods but `finish` and `close` are safe to call from several threads."""

    def __init__(self, path: Path, shard: Shard, layout: FileLayout, options: WriteOptions) -> None:
        """Create the file in its final size, and write what comes before the tensors.

        Raises:
            OutputError: it exists already, or writing failed.
        """
        self.path = path
        self.descriptor = create_file(path)
        self._where = printable(str(path))
        self._tensors = {info.name: info for info in shard.tensors}
        self._layout = layout
        self._options = options
        self._lock = threading.Lock()
        self._unwritten = {info.name: info.nbytes for info in shard.tensors}
        self._unflushed = 0
        self._allocated = False
        self._shared = SharedRanges()
        self._read_back: ReadBack | None = None
        try:
            set_size(self.descriptor, layout.file_nbytes, path)
            if options.digest is not None:
                places = ((info, layout.position(info.name)) for info in shard.tensors)
                extents = [Extent(info.name, start, start + info.nbytes) for info, start in places]
                self._read_back = ReadBack(
                    shard.filename, layout.file_nbytes, extents, options.digest, self._read_into, self._where
                )
            self._write(layout.before())
        except BaseException:
            self.close()
            raise

    def open_range(self, name: str, offset: int, nbytes: int) -> RangeWriter:
        """Begin to write `nbytes` bytes of a tensor, from byte `offset` on.

        Raises:
            OutputError: the disk has no room.
            ValueError: the range is outside of the tensor.
        """
        check_range(self._tensors[name], offset, nbytes)
        if nbytes >= _ALLOCATED_NBYTES and not self._allocated:
            with self._lock:
                first, self._allocated = not self._allocated, True
            if first:  # other threads go on without waiting for that
                allocate(self.descriptor, self._layout.file_nbytes, self.path)
        return RangeWriter(self, name, offset, self._layout, compared=self._read_back is not None)

    def share(self, name: str, offset: int, nbytes: int, source: Place, reflinks: Reflinks) -> tuple[int, int]:
        """Take bytes of a tensor from another file without reading them; see `SharingWriter.share_from`."""
        check_range(self._tensors[name], offset, nbytes)
        position = self._layout.position(name) + offset
        first, last = reflinks.share(source, (self.descriptor, position), nbytes)
        if first < last:
            with self._lock:
                self._shared.add(position + first, position + last, (source[0], source[1] + first))
            self.wrote(name, position + first, position + last, None)
        return first, last

    def wrote(self, name: str, start: int, end: int, digest: int | None) -> None:
        """Note that a tensor's bytes are there, from one position of the file to another."""
        with self._lock:
            self._unwritten[name] -= end - start
        if self._read_back is not None:
            self._read_back.wrote(start, end, digest)

    def count(self, nbytes: int) -> None:
        """Note that so many bytes more were written, and set the disk to work if it is time.

        Raises:
            OutputError: what was written before is lost.
        """
        if not self._options.sync:
            return
        with self._lock:
            self._unflushed += nbytes
            if self._unflushed < _WRITEBACK_NBYTES:
                return
            self._unflushed = 0
        start_writeback(self.descriptor, self.path)

    def finish(self) -> FileDigests | None:
        """Write what follows the tensors, read the rest of the file back, flush it to the disk and close it.

        Returns:
            What the file holds, if digests are wanted.

        Raises:
            OutputError: bytes of a tensor were never written, or written twice; the file holds something else than
                was written; or flushing failed. The file is closed in any case.
        """
        found = None
        try:
            self._check_complete()
            self._write(self._layout.after(self.descriptor, self._where))
            if self._options.sync:
                start_writeback(self.descriptor, self.path)  # the disk writes while the rest is read back
            if self._read_back is not None:
                found = self._read_back.result()
        except BaseException:
            self.close()
            raise
        sync_and_close(self.descriptor, self.path, sync=self._options.sync)
        return found

    def stop(self) -> None:
        """Let reading back end early; `finish` is an error then."""
        if self._read_back is not None:
            self._read_back.stop()

    def close(self) -> None:
        """Close the file without finishing it."""
        if self._read_back is not None:
            self._read_back.close()
        close_quietly(self.descriptor)

    def _read_into(self, position: int, buffer: memoryview) -> None:
        self._shared.read_into(self.descriptor, position, buffer, self._where)

    def _write(self, content: Pieces) -> None:
        for position, data in content:
            write_exactly(self.descriptor, memoryview(data), position, self.path)
            if self._read_back is not None:
                self._read_back.wrote(position, position + len(data), piece_digest(data))

    def _check_complete(self) -> None:
        problems = [
            Problem(
                f"{abs(left):,} of its {self._tensors[name].nbytes:,} bytes were "
                f"{'never written' if left > 0 else 'written twice'}",
                f"{self._where}: {printable(name)}",
                "This is a mistake in weightmap, not in your checkpoint; please report it.",
            )
            for name, left in self._unwritten.items()
            if left
        ]
        if problems:
            raise OutputError(problems)


class RangeWriter:
    """Writes a range of a tensor; see the protocol of this name."""

    def __init__(self, shard: OpenShard, name: str, offset: int, layout: FileLayout, *, compared: bool) -> None:
        self._shard = shard
        self._name = name
        self._offset = offset
        self._passed = layout.passed
        self._start = layout.position(name) + offset
        self._nbytes = 0
        self._hasher = xxhash.xxh3_64() if compared else None

    def note(self, data: memoryview) -> None:
        """Take notice of the next bytes, from the first to the last of the range; by one thread at a time."""
        self._nbytes += data.nbytes
        if self._hasher is not None:
            self._hasher.update(data)

    def write(self, place: int, data: memoryview) -> None:
        """Write bytes that were noted, to their place in the range; safe to call from several threads.

        Raises:
            OutputError: the disk is full, or writing failed.
        """
        write_exactly(self._shard.descriptor, data, self._start + place, self._shard.path)
        self._passed(self._name, self._offset + place, data)
        self._shard.count(data.nbytes)

    def close(self) -> None:
        """All that was noted is written, and counts from now on."""
        digest = self._hasher.intdigest() if self._hasher is not None else None
        self._shard.wrote(self._name, self._start, self._start + self._nbytes, digest)
