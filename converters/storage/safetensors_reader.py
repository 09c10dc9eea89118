"""Checkpoints in safetensors files: one reader for one or many of them, and one writer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from converters.errors import CheckpointError, Problem
from converters.storage.files import (
    FileIdentity,
    close_quietly,
    open_for_reading,
    read_exactly,
)
from converters.storage.safetensors_header import (
    LENGTH_NBYTES,
    SafetensorsHeader,
    parse_header,
    parse_length,
)
from converters.tensor_info import TensorInfo
from converters.text import printable

_SNIFFED_NBYTES: Final = 512


class SafetensorsReader:
    """Reads safetensors files, whose headers it has checked on opening; keeps one descriptor for each.

    It never maps a file into memory: truncation under a map kills the process, and replaced bytes would show through.

    Attributes:
        path: what was opened, a file or a directory.
        tensors: every tensor by name, in the order of the files and of the data in them.
        file_of: for each tensor, the name of the file that holds it.
        headers: for each file, by name, its header.
        notes: what the user should know, though nothing is wrong enough to refuse the checkpoint.
    """

    def __init__(self, path: Path, files: Mapping[str, Path], notes: Sequence[Problem] = ()) -> None:
        """Open all files and check their headers.

        Args:
            path: what the user gave, a file or a directory.
            files: for each file, its name and the path to open, which must not be a symbolic link.
            notes: what was noticed when the files were looked up.

        Raises:
            CheckpointError: a file can't be read or isn't valid, or two files hold a tensor of the same name; all
                problems at once.
        """
        self.path = path
        self.notes = tuple(notes)
        self.headers: Mapping[str, SafetensorsHeader] = {}
        self.tensors: Mapping[str, TensorInfo] = {}
        self.file_of: Mapping[str, str] = {}
        self._directory = path if path.is_dir() else path.parent
        self._paths = dict(files)
        self._descriptors: dict[str, int] = {}
        self._identities: dict[str, FileIdentity] = {}
        try:
            self._open_all()
        except BaseException:
            self.close()
            raise

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the tensor's bytes from byte `offset` on; safe to call from several threads.

        Raises:
            CheckpointError: the file was truncated since it was opened, or reading failed.
            ValueError: the range is outside of the tensor, or the reader is closed.
        """
        data = buffer if buffer.format == "B" and buffer.ndim == 1 else buffer.cast("B")
        check_range(self.tensors[name], offset, data.nbytes)
        filename = self.file_of[name]
        descriptor = self._descriptors.get(filename)
        if descriptor is None:
            raise ValueError(f"the reader of {self.path} is closed")
        header = self.headers[filename]
        read_exactly(descriptor, data, header.data_start + header.offsets[name] + offset, self._where(filename))

    def check_unchanged(self) -> None:
        """Compare each file with what it was on opening: size, time of modification, inode.

        Raises:
            CheckpointError: files were changed, replaced or removed; all of them at once.
        """
        problems = []
        for filename, identity in self._identities.items():
            descriptor = self._descriptors.get(filename)
            if descriptor is None:
                raise ValueError(f"the reader of {self.path} is closed")
            what = None
            if FileIdentity.of(os.fstat(descriptor)) != identity:
                what = "the file was changed while it was read"
            else:
                try:
                    if FileIdentity.of(self._paths[filename].stat()) != identity:
                        what = "the file was replaced while it was read"
                except OSError:
                    what = "the file was removed while it was read"
            if what:
                hint = "Wait until nothing else writes to this checkpoint, then start again."
                problems.append(Problem(what, self._where(filename), hint))
        if problems:
            raise CheckpointError(problems)

    def close(self) -> None:
        """Close all files; reading is an error from now on."""
        while self._descriptors:
            close_quietly(self._descriptors.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_all(self) -> None:
        headers: dict[str, SafetensorsHeader] = {}
        tensors: dict[str, TensorInfo] = {}
        file_of: dict[str, str] = {}
        problems: list[Problem] = []
        for filename in self._paths:
            try:
                header = self._open_one(filename)
            except CheckpointError as error:
                problems.extend(error.problems)
                continue
            headers[filename] = header
            for name, info in header.tensors.items():
                other = file_of.setdefault(name, filename)
                if other is not filename:
                    what = f"this tensor is in {printable(other)}, too"
                    hint = "Keep the files of one checkpoint only."
                    problems.append(Problem(what, f"{self._where(filename)}: {printable(name)}", hint))
                tensors[name] = info
        if problems:
            raise CheckpointError(problems)
        self.headers, self.tensors, self.file_of = headers, tensors, file_of

    def _open_one(self, filename: str) -> SafetensorsHeader:
        where = self._where(filename)
        descriptor, identity = open_for_reading(self._paths[filename], where)
        self._descriptors[filename] = descriptor
        self._identities[filename] = identity
        start = bytearray(min(_SNIFFED_NBYTES, identity.nbytes))
        read_exactly(descriptor, memoryview(start), 0, where)
        raw = bytearray(parse_length(bytes(start), identity.nbytes, where))
        read_exactly(descriptor, memoryview(raw), LENGTH_NBYTES, where)
        return parse_header(raw, identity.nbytes, where)

    def _where(self, filename: str) -> str:
        return printable(str(self._directory / filename))


def check_range(info: TensorInfo, offset: int, nbytes: int) -> None:
    """Check that a range of bytes lies within a tensor.

    Raises:
        ValueError: it does not.
    """
    if offset < 0 or offset + nbytes > info.nbytes:
        end = offset + nbytes
        raise ValueError(f"bytes {offset} to {end} are outside of {printable(info.name)}, which has {info.nbytes}")
