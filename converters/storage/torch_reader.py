"""Checkpoints in files of `torch.save`, read without torch: one reader for one or many of them.

A zip archive carries a CRC of each storage. It is checked as the bytes pass by, once all of a storage has been read;
`check_unchanged` reads what is missing of those that were read in part. Storages that nobody reads are not checked.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from converters.errors import CheckpointError, Problem
from converters.storage.content import HINTS, sniff
from converters.storage.crc import PiecewiseCrc
from converters.storage.formats import LEGACY_START
from converters.storage.open_files import OpenFiles, ReadsFiles, byte_view, open_each
from converters.storage.safetensors_reader import check_range
from converters.storage.strided_reads import StridedReads
from converters.storage.torch_archive import read_zip_header
from converters.storage.torch_header import Extent, TorchHeader
from converters.storage.torch_legacy import read_legacy_header
from converters.tensor_info import TensorInfo
from converters.text import printable

_SNIFFED_NBYTES: Final = 512
_ZIP_START: Final = b"PK\x03\x04"
_CHUNK: Final = 1 << 20


class TorchReader(ReadsFiles):
    """Reads files of `torch.save`, whose pickles it has read on opening, without running them.

    Attributes:
        path: what was opened, a file or a directory.
        tensors: every tensor by name, in the order of the files and of the state dicts in them.
        file_of: for each tensor, the name of the file that holds it.
        headers: for each file, by name, what it says of itself.
        notes: what the user should know, though nothing is wrong enough to refuse the checkpoint.
    """

    def __init__(self, path: Path, files: Mapping[str, Path], notes: Sequence[Problem] = ()) -> None:
        """Open all files and read their pickles.

        Args:
            path: what the user gave, a file or a directory.
            files: for each file, its name and the path to open, which must not be a symbolic link.
            notes: what was noticed when the files were looked up.

        Raises:
            CheckpointError: a file can't be read or isn't valid, or two files hold a tensor of the same name; all
                problems at once.
        """
        self.path = path
        self.headers: Mapping[str, TorchHeader] = {}
        self.tensors: Mapping[str, TensorInfo] = {}
        self.file_of: Mapping[str, str] = {}
        self._files = OpenFiles(path if path.is_dir() else path.parent, files)
        self._strided = StridedReads()
        self._lock = threading.Lock()
        self._crcs: dict[tuple[str, str], PiecewiseCrc | None] = {}
        try:
            self.headers, self.tensors, self.file_of = open_each(self._files, tuple(files), self._open_one)
        except BaseException:
            self.close()
            raise
        self.notes = (*notes, *(note for header in self.headers.values() for note in header.notes))

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the tensor's bytes from byte `offset` on; safe to call from several threads.

        Raises:
            CheckpointError: the file was truncated since it was opened, reading failed, or the CRC of what was read
                is wrong.
            ValueError: the range is outside of the tensor, or the reader is closed.
        """
        data = byte_view(buffer)
        info = self.tensors[name]
        check_range(info, offset, data.nbytes)
        filename = self.file_of[name]
        placement = self.headers[filename].placements[name]

        def read(position: int, into: memoryview) -> None:
            self._read(filename, placement.extent, placement.start + position, into)

        if placement.strides is None:
            read(offset, data)
        else:
            self._strided.read_into(read, info, placement.strides, offset, data)

    def check_unchanged(self) -> None:
        """Compare each file with what it was on opening, and check the CRCs of storages that were read in part.

        Raises:
            CheckpointError: files were changed, replaced, removed or damaged; all of them at once.
        """
        self._files.check_unchanged()
        for (filename, key), crc in list(self._crcs.items()):
            if crc is not None:
                self._read_again(filename, key)

    def _read(self, filename: str, extent: Extent, position: int, into: memoryview) -> None:
        """Read a part of a storage, and add it to the storage's CRC; `position` counts from the storage's start."""
        self._files.read_into(filename, extent.start + position, into)
        if not extent.crc:
            return
        with self._lock:
            crc = self._crcs.setdefault((filename, extent.key), PiecewiseCrc(extent.nbytes))
        if crc is None:
            return
        total = crc.add(position, into)
        if total is not None:
            self._compare(filename, extent, total)

    def _read_again(self, filename: str, key: str) -> None:
        """Read all of a storage, for its CRC."""
        extent = self.headers[filename].extents[key]
        buffer = memoryview(bytearray(min(_CHUNK, extent.nbytes)))
        crc = PiecewiseCrc(extent.nbytes)
        for position in range(0, extent.nbytes, _CHUNK):
            part = buffer[: min(_CHUNK, extent.nbytes - position)]
            self._files.read_into(filename, extent.start + position, part)
            total = crc.add(position, part)
            if total is not None:
                self._compare(filename, extent, total)

    def _compare(self, filename: str, extent: Extent, crc: int) -> None:
        if crc != extent.crc:
            names = [
                printable(name)
                for name, placement in self.headers[filename].placements.items()
                if placement.extent is extent
            ]
            raise CheckpointError(
                f"the CRC of its data is wrong ({crc:08x}, the file says {extent.crc:08x}): bytes of {names[0]} were "
                "changed since it was saved",
                self._files.where(filename),
                "It was damaged on the disk or on its way here; copy or download it again.",
            )
        with self._lock:
            self._crcs[filename, extent.key] = None

    def _open_one(self, filename: str) -> TorchHeader:
        where = self._files.where(filename)
        file_nbytes = self._files.open(filename)

        def read(position: int, nbytes: int) -> bytes:
            return self._files.read(filename, position, nbytes)

        start = read(0, min(_SNIFFED_NBYTES, file_nbytes))
        if start.startswith(_ZIP_START):
            return read_zip_header(read, file_nbytes, where)
        if start.startswith(LEGACY_START):
            return read_legacy_header(read, file_nbytes, where)
        found = sniff(start) or "neither a zip archive nor a pickle"
        raise CheckpointError(f"torch.save did not write this file: it is {found}", where, HINTS.get(found))
