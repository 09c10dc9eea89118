"""The open files of a checkpoint: read through one descriptor each, and noticed when they change."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from converters.errors import CheckpointError, Problem
from converters.storage.base import CheckpointReader, Closing, OpenFile
from converters.storage.file_map import FileMap
from converters.storage.files import FileIdentity, close_quietly, open_for_reading, raise_unreadable, read_exactly
from converters.storage.remote_file import RemoteFile
from converters.storage.remote_path import RemotePath
from converters.tensor_info import TensorInfo
from converters.text import printable


class LocalFile:
    """A file on a disk, read through one descriptor, or through a map if that was asked for."""

    def __init__(self, path: Path, where: str) -> None:
        """Open it; `path` must not be a symbolic link, and `where` is how errors name it."""
        self._path, self._where = path, where
        self.descriptor, self._identity = open_for_reading(path, where)
        self.nbytes = self._identity.nbytes
        self._map: FileMap | None = None

    def map(self) -> None:
        """Read it through a map from now on.

        Raises:
            CheckpointError: its file system can't do that.
        """
        if self._map is None and self.nbytes:
            self._map = FileMap(self.descriptor, self.nbytes, self._where)

    @property
    def identity(self) -> str:
        """See `OpenFile`."""
        known = self._identity
        return f"{known.nbytes} bytes, changed at {known.mtime_ns} ns, inode {known.inode} of device {known.device}"

    @property
    def is_local(self) -> bool:
        """See `OpenFile`."""
        return True

    def read_into(self, position: int, buffer: memoryview) -> None:
        """See `OpenFile`."""
        if self._map is not None:
            self._map.read_into(position, buffer)
        else:
            read_exactly(self.descriptor, buffer, position, self._where)

    def read_runs(self, positions: Iterable[int], nbytes: int, buffer: memoryview) -> None:
        """Fill a buffer of bytes with runs of `nbytes` each: a million short ones are worth a loop of their own.

        Raises:
            CheckpointError: the file was truncated since it was opened, or reading failed.
        """
        descriptor, preadv, end = self.descriptor, os.preadv, 0
        if self._map is not None:
            for number, position in enumerate(positions):
                self._map.read_into(position, buffer[number * nbytes : (number + 1) * nbytes])
            return
        for position in positions:
            start, end = end, end + nbytes
            run = buffer[start:end]
            try:
                count = preadv(descriptor, (run,), position)
            except OSError as error:
                raise_unreadable(error, self._where)
            if count != nbytes:
                read_exactly(descriptor, run[count:], position + count, self._where)

    def change(self) -> str | None:
        """See `OpenFile`."""
        try:
            if FileIdentity.of(os.fstat(self.descriptor)) != self._identity:
                return "the file was changed while it was read"
        except OSError as error:
            return f"nobody can tell whether the file was changed while it was read: {error.strerror}"
        try:
            replaced = FileIdentity.of(self._path.stat()) != self._identity
        except OSError:
            return "the file was removed while it was read"
        return "the file was replaced while it was read" if replaced else None

    def close(self) -> None:
        """See `OpenFile`."""
        if self._map is not None:
            self._map.close()
            self._map = None
        close_quietly(self.descriptor)


def open_file_at(path: Path, where: str) -> OpenFile:
    """Open a file, local or in a store.

    Args:
        path: the file; a local one must not be a symbolic link.
        where: how errors name it.

    Raises:
        CheckpointError: it is missing, not a regular file, a link, or can't be opened.
    """
    return RemoteFile(path, where) if isinstance(path, RemotePath) else LocalFile(path, where)


READING = ("auto", "read", "mmap")
"""How the files of a source can be read: by calls, or through a map. `auto` is by calls, wherever the files are."""


def choose_reading(reader: CheckpointReader, how: str) -> None:
    """Read a checkpoint's files in one of the ways of `READING`; what lies in a store is never mapped.

    Raises:
        CheckpointError: a file can't be mapped.
    """
    for file in reader.files.values() if how == "mmap" else ():
        if isinstance(file, LocalFile):
            file.map()


class OpenFiles:
    """Opens files by name, keeps them open, and reads ranges of bytes.

    It maps no file into memory unless asked to (`choose_reading`): truncation under a map kills the process, and
    replaced bytes would show through.
    """

    def __init__(self, directory: Path, paths: Mapping[str, Path]) -> None:
        """Nothing is opened yet.

        Args:
            directory: how errors name a file: by this, and its name.
            paths: for each file, by name, the path to open, which must not be a symbolic link.
        """
        self._names = {filename: printable(str(directory / filename)) for filename in paths}
        self._paths = dict(paths)
        self._files: dict[str, OpenFile] = {}
        self._opened: list[str] = []

    def open(self, filename: str) -> int:
        """Open a file; returns its size in bytes.

        Raises:
            CheckpointError: it is missing, not a regular file, a link, or can't be opened.
        """
        file = open_file_at(self._paths[filename], self.where(filename))
        self._files[filename] = file
        self._opened.append(filename)
        return file.nbytes

    def read_into(self, filename: str, position: int, buffer: memoryview) -> None:
        """Fill a buffer of bytes from `position` of an open file on; safe to call from several threads.

        Raises:
            CheckpointError: the file was truncated since it was opened, or reading failed.
            ValueError: the files are closed.
        """
        self._file(filename).read_into(position, buffer)

    def read(self, filename: str, position: int, nbytes: int) -> bytes:
        """Read bytes of an open file; raises what `read_into` raises."""
        data = bytearray(nbytes)
        self.read_into(filename, position, memoryview(data))
        return bytes(data)

    def check_unchanged(self) -> None:
        """Compare each file with what it was on opening: size, time of modification, inode; in a store its ETag.

        Raises:
            CheckpointError: files were changed, replaced or removed; all of them at once.
            ValueError: the files are closed.
        """
        hint = "Wait until nothing else writes to this checkpoint, then start again."
        problems = [
            Problem(what, self.where(filename), hint)
            for filename in self._opened
            if (what := self._file(filename).change()) is not None
        ]
        if problems:
            raise CheckpointError(problems)

    def close(self) -> None:
        """Close all files; reading is an error from now on."""
        while self._files:
            self._files.popitem()[1].close()

    @property
    def by_name(self) -> Mapping[str, OpenFile]:
        """The files that are open."""
        return self._files

    def where(self, filename: str) -> str:
        """How messages name a file."""
        return self._names[filename]

    def _file(self, filename: str) -> OpenFile:
        file = self._files.get(filename)
        if file is None:
            raise ValueError(f"{self.where(filename)} is closed")
        return file


class ReadsFiles(Closing):
    """What the readers of all formats have in common: files that stay open until they are closed."""

    _files: OpenFiles

    @property
    def files(self) -> Mapping[str, OpenFile]:
        """See `CheckpointReader`."""
        return self._files.by_name

    def close(self) -> None:
        """Close all files; reading is an error from now on."""
        self._files.close()


def byte_view(buffer: memoryview) -> memoryview:
    """A buffer of whatever items, as bytes."""
    return buffer if buffer.format == "B" and buffer.ndim == 1 else buffer.cast("B")


class Header(Protocol):
    """What a file says of itself."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Its tensors by name, in the order of the file."""
        ...


H = TypeVar("H", bound=Header)


def open_each(
    files: OpenFiles, filenames: Sequence[str], open_one: Callable[[str], H]
) -> tuple[dict[str, H], dict[str, TensorInfo], dict[str, str]]:
    """Open the files of one checkpoint.

    Returns:
        The header of each file, every tensor by name, and the file that holds it.

    Raises:
        CheckpointError: what `open_one` raises, or two files hold a tensor of one name; all problems at once.
    """
    headers: dict[str, H] = {}
    tensors: dict[str, TensorInfo] = {}
    file_of: dict[str, str] = {}
    problems: list[Problem] = []
    for filename in filenames:
        try:
            header = open_one(filename)
        except CheckpointError as error:
            problems.extend(error.problems)
            continue
        headers[filename] = header
        together = len(tensors) + len(header.tensors)
        tensors.update(header.tensors)
        if len(tensors) == together:  # no name is in two files
            file_of.update(dict.fromkeys(header.tensors, filename))
            continue
        for name in header.tensors:
            other = file_of.setdefault(name, filename)
            if other is not filename:
                what = f"this tensor is in {printable(other)}, too"
                where = f"{files.where(filename)}: {printable(name)}"
                problems.append(Problem(what, where, "Keep the files of one checkpoint only."))
    if problems:
        raise CheckpointError(problems)
    return headers, tensors, file_of
