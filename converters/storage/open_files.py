"""The open files of a checkpoint: read through one descriptor each, and noticed when they change."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from converters.errors import CheckpointError, Problem
from converters.storage.files import FileIdentity, close_quietly, open_for_reading, read_exactly
from converters.storage.remote_file import RemoteFile
from converters.storage.remote_path import RemotePath
from converters.tensor_info import TensorInfo
from converters.text import printable


class OpenFile(Protocol):
    """A file that is open for reading, wherever it is."""

    @property
    def nbytes(self) -> int:
        """Its size when it was opened."""
        ...

    def read_into(self, position: int, buffer: memoryview) -> None:
        """Fill a buffer of bytes from `position` on; safe to call from several threads."""
        ...

    def change(self) -> str | None:
        """What happened to the file since it was opened; None if nothing did."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


class LocalFile:
    """A file on a disk, read through one descriptor."""

    def __init__(self, path: Path, where: str) -> None:
        """Open it; `path` must not be a symbolic link, and `where` is how errors name it."""
        self._path, self._where = path, where
        self._descriptor, self._identity = open_for_reading(path, where)
        self.nbytes = self._identity.nbytes

    def read_into(self, position: int, buffer: memoryview) -> None:
        """See `OpenFile`."""
        read_exactly(self._descriptor, buffer, position, self._where)

    def change(self) -> str | None:
        """See `OpenFile`."""
        if FileIdentity.of(os.fstat(self._descriptor)) != self._identity:
            return "the file was changed while it was read"
        try:
            replaced = FileIdentity.of(self._path.stat()) != self._identity
        except OSError:
            return "the file was removed while it was read"
        return "the file was replaced while it was read" if replaced else None

    def close(self) -> None:
        """See `OpenFile`."""
        close_quietly(self._descriptor)


def open_file_at(path: Path, where: str) -> OpenFile:
    """Open a file, local or in a store.

    Args:
        path: the file; a local one must not be a symbolic link.
        where: how errors name it.

    Raises:
        CheckpointError: it is missing, not a regular file, a link, or can't be opened.
    """
    return RemoteFile(path, where) if isinstance(path, RemotePath) else LocalFile(path, where)


class OpenFiles:
    """Opens files by name, keeps them open, and reads ranges of bytes.

    It never maps a file into memory: truncation under a map kills the process, and replaced bytes would show through.
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

    def where(self, filename: str) -> str:
        """How messages name a file."""
        return self._names[filename]

    def _file(self, filename: str) -> OpenFile:
        file = self._files.get(filename)
        if file is None:
            raise ValueError(f"{self.where(filename)} is closed")
        return file


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
        for name, info in header.tensors.items():
            other = file_of.setdefault(name, filename)
            if other is not filename:
                what = f"this tensor is in {printable(other)}, too"
                where = f"{files.where(filename)}: {printable(name)}"
                problems.append(Problem(what, where, "Keep the files of one checkpoint only."))
            tensors[name] = info
    if problems:
        raise CheckpointError(problems)
    return headers, tensors, file_of
