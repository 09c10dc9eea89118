"""Checkpoints in one `.npz` file, as `numpy.savez` and `numpy.savez_compressed` write them; numpy is not needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Final

from msgspec import Struct

from converters.errors import CheckpointError, Problem
from converters.storage.npy_header import (
    MAX_HEADER_NBYTES,
    PREFIX_NBYTES,
    NpyHeader,
    NpyHeaderError,
    header_nbytes,
    parse_npy_header,
)
from converters.storage.open_files import OpenFiles, ReadsFiles, byte_view
from converters.storage.safetensors_extents import MAX_REPORTED
from converters.storage.safetensors_reader import check_range
from converters.storage.strided_reads import StridedReads
from converters.storage.torch_zip import Member, read_directory
from converters.storage.zip_contents import ZipContents
from converters.tensor_info import TensorInfo
from converters.text import printable

_ARRAY_SUFFIX: Final = ".npy"
_LISTED: Final = 5


class _Array(Struct, frozen=True):
    member: Member
    header: NpyHeader


class NpzReader(ReadsFiles):
    """Reads the arrays of an `.npz` file; each is a tensor under its own name.

    An array that is stored as it is, is read where it lies. One that is compressed is inflated once, into a temporary
    file; see `ZipContents`. One in Fortran's order is read in strides.

    Attributes:
        path: the file.
        tensors: every array by name, in the order of the file.
        file_of: for each of them, the name of the file.
        notes: what the user should know, though nothing is wrong enough to refuse the checkpoint.
    """

    def __init__(self, path: Path, name: str, file: Path, notes: Sequence[Problem] = ()) -> None:
        """Open the file and check its directory and the header of each array.

        Args:
            path: what the user gave, the file or its directory.
            name: the name of the file.
            file: the path to open, which must not be a symbolic link.
            notes: what was noticed when the file was looked up.

        Raises:
            CheckpointError: it can't be read or is damaged, or holds something else than arrays of plain numbers; all
                problems at once.
        """
        self.path = path
        self._filename = name
        self._files = OpenFiles(path if path.is_dir() else path.parent, {name: file})
        self._strided = StridedReads()
        self._contents: ZipContents | None = None
        try:
            self._arrays = self._read_headers()
        except BaseException:
            self.close()
            raise
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, array.header.shape, array.header.dtype) for name, array in self._arrays.items()
        }
        self.file_of: Mapping[str, str] = dict.fromkeys(self._arrays, self._filename)
        self.notes = (*notes, *self._note_on_raw_types())

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the array's bytes from `offset` on, the last axis varying fastest; safe in threads.

        Raises:
            CheckpointError: the file is damaged or was changed, reading failed, or there is no room to inflate it.
            ValueError: the range is outside of the array, or the reader is closed.
        """
        data = byte_view(buffer)
        info, array = self.tensors[name], self._arrays[name]
        check_range(info, offset, data.nbytes)
        contents = self._contents
        if contents is None:
            raise ValueError(f"the reader of {self.path} is closed")
        if not data.nbytes:
            return

        def read(position: int, part: memoryview) -> None:
            contents.read_into(array.member, array.header.data_start + position, part)

        if array.header.fortran_order:
            strides = tuple(prod(info.shape[:axis]) for axis in range(len(info.shape)))
            self._strided.read_into(read, info, strides, offset, data)
        else:
            read(offset, data)

    def check_unchanged(self) -> None:
        """Compare the file with what it was on opening, and check the CRCs of arrays that were read in part.

        Raises:
            CheckpointError: it was changed, replaced, removed or damaged.
        """
        self._files.check_unchanged()
        if self._contents is not None:
            self._contents.check()

    def close(self) -> None:
        """Close the file; reading is an error from now on."""
        contents, self._contents = self._contents, None
        if contents is not None:
            contents.close()
        self._files.close()

    def _read_headers(self) -> dict[str, _Array]:
        files, filename = self._files, self._filename
        where, nbytes = files.where(filename), files.open(filename)
        members = read_directory(partial(files.read, filename), nbytes, where)
        # A folder of arrays that somebody zipped has an entry of its own, which holds nothing.
        kept = [member for name, member in members.items() if not (name.endswith("/") and member.nbytes == 0)]
        self._contents = contents = ZipContents(partial(files.read_into, filename), nbytes, where, kept)
        arrays: dict[str, _Array] = {}
        problems: list[Problem] = []
        for member in kept:
            try:
                arrays[member.name.removesuffix(_ARRAY_SUFFIX)] = _Array(member, _read_header(contents, member))
            except NpyHeaderError as fault:
                problems.append(Problem(str(fault), f"{where}: {printable(member.name)}", fault.hint))
            except CheckpointError as error:
                problems.extend(error.problems)
        if not arrays and not problems:
            raise CheckpointError("there are no arrays in this file", where)
        if len(problems) > MAX_REPORTED:
            problems[MAX_REPORTED:] = [Problem(f"... and {len(problems) - MAX_REPORTED:,} more problems of this file")]
        if problems:
            raise CheckpointError(problems)
        return arrays

    def _note_on_raw_types(self) -> list[Problem]:
        raw = [printable(name) for name, array in self._arrays.items() if array.header.raw_bfloat16]
        if not raw:
            return []
        shown = ", ".join(raw[:_LISTED]) + (f" and {len(raw) - _LISTED:,} more" if len(raw) > _LISTED else "")
        what = f"the file says of these just that an element has two bytes; they are read as bfloat16: {shown}"
        return [Problem(what, self._files.where(self._filename))]


def _read_header(contents: ZipContents, member: Member) -> NpyHeader:
    """Read and check the header of one array.

    Raises:
        NpyHeaderError: it is no array, or none of plain numbers, or its size is not what its header says.
        CheckpointError: it can't be read.
    """
    if not member.name.endswith(_ARRAY_SUFFIX):
        raise NpyHeaderError(
            f"it is no array: the name of one ends in {_ARRAY_SUFFIX}", "Save the file without it, with numpy.savez."
        )
    start = contents.start_of(member, PREFIX_NBYTES + MAX_HEADER_NBYTES)
    header = parse_npy_header(start[: header_nbytes(start)])
    if header.data_start + header.nbytes != member.nbytes:
        found = member.nbytes - header.data_start
        raise NpyHeaderError(
            f"shape {list(header.shape)} of {header.dtype} takes {header.nbytes:,} bytes, but {found:,} are there",
            "It is damaged; save it again.",
        )
    contents.count_start(member, start[: header.data_start])
    return header
