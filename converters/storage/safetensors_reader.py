"""Checkpoints in safetensors files: one reader for one or many of them, and one writer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from converters.errors import Problem
from converters.storage.open_files import OpenFiles, ReadsFiles, byte_view, open_each
from converters.storage.safetensors_header import (
    LENGTH_NBYTES,
    SafetensorsHeader,
    parse_header,
    parse_length,
)
from converters.tensor_info import TensorInfo
from converters.text import printable

_SNIFFED_NBYTES: Final = 512


class SafetensorsReader(ReadsFiles):
    """Reads safetensors files, whose headers it has checked on opening; keeps one descriptor for each.

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
        self._files = OpenFiles(path if path.is_dir() else path.parent, files)
        try:
            self.headers, self.tensors, self.file_of = open_each(self._files, tuple(files), self._open_one)
        except BaseException:
            self.close()
            raise

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the tensor's bytes from byte `offset` on; safe to call from several threads.

        Raises:
            CheckpointError: the file was truncated since it was opened, or reading failed.
            ValueError: the range is outside of the tensor, or the reader is closed.
        """
        data = byte_view(buffer)
        check_range(self.tensors[name], offset, data.nbytes)
        filename = self.file_of[name]
        header = self.headers[filename]
        self._files.read_into(filename, header.data_start + header.offsets[name] + offset, data)

    def check_unchanged(self) -> None:
        """Compare each file with what it was on opening: size, time of modification, inode.

        Raises:
            CheckpointError: files were changed, replaced or removed; all of them at once.
        """
        self._files.check_unchanged()

    def _open_one(self, filename: str) -> SafetensorsHeader:
        where = self._files.where(filename)
        file_nbytes = self._files.open(filename)
        start = self._files.read(filename, 0, min(_SNIFFED_NBYTES, file_nbytes))
        raw = bytearray(parse_length(start, file_nbytes, where))
        self._files.read_into(filename, LENGTH_NBYTES, memoryview(raw))
        return parse_header(raw, file_nbytes, where)


def check_range(info: TensorInfo, offset: int, nbytes: int) -> None:
    """Check that a range of bytes lies within a tensor.

    Raises:
        ValueError: it does not.
    """
    if offset < 0 or offset + nbytes > info.nbytes:
        end = offset + nbytes
        raise ValueError(f"bytes {offset} to {end} are outside of {printable(info.name)}, which has {info.nbytes}")
