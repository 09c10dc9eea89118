"""What the writers of all formats have in common: shards of known sizes, filled in any order, flushed and read back."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from converters.errors import CheckpointError, OutputError, Problem
from converters.sharding import Shard
from converters.storage.base import DEFAULT_WRITE_OPTIONS, FileHeader, WriteOptions
from converters.storage.disk_hints import allocate, start_writeback
from converters.storage.file_digests import Extent, FileDigests, WrittenPieces, digest_file
from converters.storage.files import (
    close_quietly,
    create_file,
    read_exactly,
    set_size,
    sync_and_close,
    write_exactly,
    write_new_file,
)
from converters.storage.open_files import byte_view
from converters.storage.safetensors_index import SafetensorsIndex, build_index, compare_with_headers
from converters.storage.safetensors_reader import check_range
from converters.tensor_info import TensorInfo
from converters.text import printable

_WRITEBACK_NBYTES: Final = 64 << 20
"""Bytes after which the disk is set to work on a file, so that flushing it is short and a signal is heeded soon."""

_ALLOCATED_NBYTES: Final = 64 << 10
"""Bytes written at once from which on room is made for the whole file; what shares its blocks needs none."""

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


class ShardWriter:
    """Writes shards, whose tensors are known beforehand, into a directory that exists already.

    Shards can be written in any order and by several threads. Nothing that exists is ever overwritten, and a shard
    counts as written only once it is flushed to the disk.
    """

    def __init__(
        self,
        directory: Path,
        shards: Sequence[Shard],
        layouts: Sequence[FileLayout],
        index_name: str,
        options: WriteOptions = DEFAULT_WRITE_OPTIONS,
    ) -> None:
        """Nothing is written yet.

        Args:
            directory: where the files go.
            shards: the files, as `split_into_shards` gives them.
            layouts: the layout of each of them.
            index_name: the name of the index, which is written if there are several shards.
            options: whether to flush, and which digests to make.

        Raises:
            OutputError: there are no shards, or two of them have a tensor or name in common.
        """
        if not shards:
            raise OutputError(
                "there is nothing to write: the checkpoint would have no tensors", printable(str(directory))
            )
        self._directory = directory
        self._shards = tuple(shards)
        self._layouts = tuple(layouts)
        self._index_name = index_name
        self._options = options
        self._shard_of = _place_tensors(self._shards)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._descriptors: dict[int, int] = {}
        self._pieces: dict[int, WrittenPieces] = {}
        self._unflushed: dict[int, int] = {}
        self._unallocated: set[int] = set()
        self._finished: set[int] = set()
        self._unwritten = {info.name: info.nbytes for shard in self._shards for info in shard.tensors}

    def start_shard(self, shard: int) -> None:
        """Create the file of the shard with this number, counted from zero, in its final size, and write its header.

        Raises:
            OutputError: the file exists already, or writing failed.
        """
        path = self._path(shard)
        descriptor = create_file(path)
        pieces = WrittenPieces()
        try:
            self._write_pieces(self._layouts[shard].before(), descriptor, pieces, path)
            set_size(descriptor, self._layouts[shard].file_nbytes, path)
        except BaseException:
            close_quietly(descriptor)
            raise
        with self._lock:
            self._descriptors[shard] = descriptor
            self._pieces[shard] = pieces
            self._unflushed[shard] = 0
            self._unallocated.add(shard)

    def write_from(self, name: str, offset: int, data: memoryview) -> None:
        """Write `data` from byte `offset` of the tensor on; safe to call from several threads.

        Raises:
            OutputError: the disk is full, or writing failed.
            ValueError: the range is outside of the tensor, or its shard is not open.
        """
        data = byte_view(data)
        shard, info = self._shard_of[name]
        check_range(info, offset, data.nbytes)
        descriptor = self._descriptors.get(shard)
        if descriptor is None:
            raise ValueError(f"{self._shards[shard].filename} is not open for writing")
        layout = self._layouts[shard]
        position = layout.position(name) + offset
        if data.nbytes >= _ALLOCATED_NBYTES and shard in self._unallocated:
            self._allocate(shard, descriptor)
        write_exactly(descriptor, data, position, self._path(shard))
        layout.passed(name, offset, data)
        if self._options.digest is not None:
            self._pieces[shard].add(position, data)
        with self._lock:
            self._unwritten[name] -= data.nbytes
            self._unflushed[shard] += data.nbytes
            due = self._options.sync and self._unflushed[shard] >= _WRITEBACK_NBYTES
            if due:
                self._unflushed[shard] = 0
        if due:
            start_writeback(descriptor, self._path(shard))

    def finish_shard(self, shard: int) -> FileDigests | None:
        """Write what follows the tensors, read the file back by digest, flush it to the disk and close it.

        Returns:
            What the file holds, if digests are wanted.

        Raises:
            OutputError: bytes of a tensor were never written, or written twice, or flushing failed; the shard can't
                be finished any more then.
        """
        with self._lock:
            descriptor = self._descriptors.pop(shard, None)
        if descriptor is None:
            raise ValueError(f"{self._shards[shard].filename} is not open for writing")
        path = self._path(shard)
        try:
            self._check_complete(shard)
            pieces = self._pieces.pop(shard)
            self._write_pieces(self._layouts[shard].after(descriptor, printable(str(path))), descriptor, pieces, path)
            if self._options.sync:
                start_writeback(descriptor, path)  # so that the disk writes while the file is read back
            found = self._read_back(shard, descriptor, pieces)
        except BaseException:
            close_quietly(descriptor)
            raise
        sync_and_close(descriptor, path, sync=self._options.sync)
        with self._lock:
            self._finished.add(shard)
        return found

    def keep_shard(self, shard: int) -> None:
        """Take a shard that is there already for finished; `finish` checks its header like that of any other."""
        with self._lock:
            self._finished.add(shard)

    def finish(self) -> Sequence[Path]:
        """Write the index, if there is one; read all files again, and compare them with the plan.

        Raises:
            OutputError: a shard is not finished, writing failed, or what is on the disk is not what was planned.
        """
        paths = self._finished_files()
        index: SafetensorsIndex | None = None
        if len(self._shards) > 1:
            path = self._directory / self._index_name
            content, index = build_index(self._shards)
            write_new_file(path, content, sync=self._options.sync)
            paths.append(path)
        self._check_written(index)
        return paths

    def stop(self) -> None:
        """Let reading back end early, with an error."""
        self._stopped.set()

    def abort(self) -> None:
        """Close all files that are still open, without finishing them."""
        with self._lock:
            while self._descriptors:
                close_quietly(self._descriptors.popitem()[1])

    def read_headers(self, files: Mapping[str, Path]) -> Mapping[str, FileHeader]:
        """Read the header of each file, by name.

        Raises:
            CheckpointError: a file is not valid.
        """
        raise NotImplementedError

    def _finished_files(self) -> list[Path]:
        if missing := [s.filename for number, s in enumerate(self._shards) if number not in self._finished]:
            raise OutputError(f"{len(missing)} shards were not finished: {', '.join(missing[:5])}")
        return [self._path(number) for number in range(len(self._shards))]

    def _allocate(self, shard: int, descriptor: int) -> None:
        """Make room for the whole file, once; other threads go on without waiting for that."""
        with self._lock:
            first = shard in self._unallocated
            self._unallocated.discard(shard)
        if first:
            allocate(descriptor, self._layouts[shard].file_nbytes, self._path(shard))

    def _write_pieces(self, content: Pieces, descriptor: int, pieces: WrittenPieces, path: Path) -> None:
        for position, data in content:
            write_exactly(descriptor, memoryview(data), position, path)
            if self._options.digest is not None:
                pieces.add(position, data)

    def _read_back(self, shard: int, descriptor: int, pieces: WrittenPieces) -> FileDigests | None:
        """Make the digests of a file, of what it holds now and not of what was meant to be written.

        Raises:
            OutputError: it holds something else than was written, or can't be read.
        """
        if self._options.digest is None:
            return None
        where, layout = printable(str(self._path(shard))), self._layouts[shard]

        def read(position: int, buffer: memoryview) -> None:
            if self._stopped.is_set():
                raise OutputError("stopped before it was complete", where)
            self._read(shard, descriptor, position, buffer, where)

        places = ((info, layout.position(info.name)) for info in self._shards[shard].tensors)
        try:
            found, wrong = digest_file(
                self._shards[shard].filename,
                layout.file_nbytes,
                read,
                [Extent(info.name, start, start + info.nbytes) for info, start in places],
                self._options.digest,
                pieces=pieces.in_order(),
            )
        except CheckpointError as error:
            raise OutputError(error.problems) from error
        if wrong is not None:
            what = f"holds something else at byte {wrong:,} than was written there"
            raise OutputError(what, where, "The disk, the memory or another program is at fault; start again.")
        return found

    def _read(self, shard: int, descriptor: int, position: int, buffer: memoryview, where: str) -> None:  # noqa: ARG002
        """Read bytes of a shard's file."""
        read_exactly(descriptor, buffer, position, where)

    def _check_complete(self, shard: int) -> None:
        problems = [
            Problem(
                f"{abs(left):,} of its {info.nbytes:,} bytes were {'never written' if left > 0 else 'written twice'}",
                f"{printable(str(self._path(shard)))}: {printable(info.name)}",
                "This is a mistake in weightmap, not in your checkpoint; please report it.",
            )
            for info in self._shards[shard].tensors
            if (left := self._unwritten[info.name])
        ]
        if problems:
            raise OutputError(problems)

    def _check_written(self, index: SafetensorsIndex | None) -> None:
        files = {shard.filename: self._path(number) for number, shard in enumerate(self._shards)}
        try:
            written = self.read_headers(files)
        except CheckpointError as error:
            raise OutputError(error.problems) from error
        problems = [
            Problem("its header on the disk is not the one that was written", printable(str(self._path(number))))
            for number, shard in enumerate(self._shards)
            if self._layouts[number].differs(written[shard.filename])
        ]
        if index is not None:
            problems.extend(compare_with_headers(index, written, printable(str(self._directory / self._index_name))))
        if problems:
            raise OutputError(problems)

    def _path(self, shard: int) -> Path:
        return self._directory / self._shards[shard].filename


def _place_tensors(shards: Sequence[Shard]) -> dict[str, tuple[int, TensorInfo]]:
    shard_of: dict[str, tuple[int, TensorInfo]] = {}
    problems = []
    filenames: set[str] = set()
    for number, shard in enumerate(shards):
        if shard.filename in filenames:
            problems.append(Problem("two shards have this name", printable(shard.filename)))
        filenames.add(shard.filename)
        for info in shard.tensors:
            if info.name in shard_of:
                other = shards[shard_of[info.name][0]].filename
                problems.append(Problem(f"this tensor is in {other} and in {shard.filename}", printable(info.name)))
            shard_of[info.name] = (number, info)
    if problems:
        raise OutputError(problems)
    return shard_of
