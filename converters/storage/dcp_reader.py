"""Checkpoints of torch.distributed.checkpoint, read without torch: tensors in chunks, over several files.

Each chunk is a whole archive of `torch.save` somewhere in a `.distcp` file, so that its bytes are read where they lie,
and a range of a tensor is put together from the chunks that it touches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Final

from msgspec import Struct

from converters.errors import CheckpointError, Problem
from converters.storage.dcp_chunks import Chunk
from converters.storage.dcp_metadata import DcpMetadata, StoredChunk
from converters.storage.open_files import OpenFiles, ReadsFiles, byte_view
from converters.storage.safetensors_extents import MAX_REPORTED
from converters.storage.safetensors_reader import check_range
from converters.storage.strided_reads import StridedReads
from converters.storage.torch_archive import read_zip_header
from converters.storage.torch_zip import STORED, Member
from converters.storage.zip_contents import ZipContents
from converters.tensor_info import TensorInfo
from converters.text import printable

_PIECE: Final = 1 << 20
_DAMAGED: Final = "It was truncated or damaged; copy or download the whole checkpoint again."
_LISTED: Final = 3


class _Part(Struct, frozen=True):
    """An opened chunk.

    Attributes:
        info: the chunk as a tensor of its own, under a name of its own.
        box: the chunk in bytes: it has an axis more, as wide as an element.
        first: its first byte in the tensor.
        stop: the byte after its last one there.
        filename: the file that holds it.
        member: the storage that holds it.
        start: its first byte in the storage.
        strides: in elements; None where they follow each other.
    """

    info: TensorInfo
    box: Chunk
    first: int
    stop: int
    filename: str
    member: Member
    start: int
    strides: tuple[int, ...] | None


class DcpReader(ReadsFiles):
    """Reads a distributed checkpoint, whose chunks it has found and checked on opening.

    Attributes:
        path: what was opened, the directory or its `.metadata`.
        tensors: every tensor by name, in the order of the files and of the data in them.
        file_of: for each tensor, the name of the file that holds it, or its first chunk.
        notes: what the user should know, though nothing is wrong enough to refuse the checkpoint.
    """

    def __init__(
        self, path: Path, metadata: DcpMetadata, files: Mapping[str, Path], notes: Sequence[Problem] = ()
    ) -> None:
        """Open all files and find the chunks in them.

        Args:
            path: what the user gave.
            metadata: what `.metadata` says.
            files: for each file that it names, the path to open, which must not be a symbolic link.
            notes: what was noticed when the files were looked up.

        Raises:
            CheckpointError: a file can't be read, or a chunk in it is not what `.metadata` says; all problems at once.
        """
        self.path = path
        self.tensors = metadata.tensors
        self._files = OpenFiles(path if path.is_dir() else path.parent, files)
        self._strided = StridedReads()
        self._contents: dict[str, ZipContents] = {}
        self._parts: dict[str, tuple[_Part, ...]] = {}
        try:
            self._open_all(metadata, tuple(files))
        except BaseException:
            self.close()
            raise
        where = printable(str(path))
        self.notes = (*notes, *(Problem(note, where) for note in metadata.notes), *self._note_on_crcs(where))
        first = next(iter(files), "")
        self.file_of: Mapping[str, str] = {
            name: parts[0].filename if (parts := self._parts[name]) else first for name in self.tensors
        }

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the tensor's bytes from byte `offset` on; safe to call from several threads.

        Raises:
            CheckpointError: a file was truncated since it was opened, reading failed, or a CRC is wrong.
            ValueError: the range is outside of the tensor, or the reader is closed.
        """
        data = byte_view(buffer)
        info = self.tensors[name]
        check_range(info, offset, data.nbytes)
        shape = (*info.shape, info.dtype.bits // 8)
        end = offset + data.nbytes
        for part in self._parts[name]:
            if part.first >= end or part.stop <= offset:
                continue
            first, last = part.box.count_before(shape, offset), part.box.count_before(shape, end)
            if first < last:
                self._read_part(part, shape, (first, last), data, offset)

    def check_unchanged(self) -> None:
        """Compare each file with what it was on opening, and check the CRCs of chunks that were read in part.

        Raises:
            CheckpointError: files were changed, replaced, removed or damaged.
        """
        self._files.check_unchanged()
        for contents in self._contents.values():
            contents.check()

    def _read_part(
        self, part: _Part, shape: tuple[int, ...], span: tuple[int, int], data: memoryview, offset: int
    ) -> None:
        """Put the bytes `span` of a chunk in their places in `data`, whose first byte is `offset` of the tensor."""
        first, last = span
        _, position, length = next(part.box.runs(shape, first, last))
        if length == last - first:
            self._read(part, first, data[position - offset : position - offset + length])
            return
        scratch = memoryview(bytearray(min(_PIECE, last - first)))
        for start in range(first, last, _PIECE):
            stop = min(start + _PIECE, last)
            self._read(part, start, scratch[: stop - start])
            for at, position, length in part.box.runs(shape, start, stop):
                data[position - offset : position - offset + length] = scratch[at - start : at - start + length]

    def _read(self, part: _Part, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes of a chunk, in its own row-major order, from `offset` on."""
        contents = self._contents[part.filename]

        def read(position: int, into: memoryview) -> None:
            contents.read_into(part.member, part.start + position, into)

        if part.strides is None:
            read(offset, buffer)
        else:
            self._strided.read_into(read, part.info, part.strides, offset, buffer)

    def _open_all(self, metadata: DcpMetadata, filenames: Sequence[str]) -> None:
        problems: list[Problem] = []
        nbytes: dict[str, int] = {}
        for filename in filenames:
            try:
                nbytes[filename] = self._files.open(filename)
            except CheckpointError as error:
                problems.extend(error.problems)
        problems.extend(self._overlaps(metadata))
        for name, chunks in metadata.chunks.items():
            parts = []
            for stored in chunks:
                if stored.filename not in nbytes or len(problems) > MAX_REPORTED:
                    continue
                try:
                    parts.append(self._open_chunk(self.tensors[name], stored, nbytes[stored.filename]))
                except CheckpointError as error:
                    problems.extend(error.problems)
            self._parts[name] = tuple(parts)
        if len(problems) > MAX_REPORTED:
            problems[MAX_REPORTED:] = [Problem("... and more problems of this checkpoint")]
        if problems:
            raise CheckpointError(problems)
        for filename in filenames:
            members = {part.member for parts in self._parts.values() for part in parts if part.filename == filename}
            self._contents[filename] = ZipContents(
                partial(self._files.read_into, filename), nbytes[filename], self._files.where(filename), members
            )

    def _open_chunk(self, info: TensorInfo, stored: StoredChunk, file_nbytes: int) -> _Part:
        chunk = stored.chunk
        label = f"{info.name}{list(chunk.offsets)}" if chunk.sizes != info.shape else info.name
        where = f"{self._files.where(stored.filename)}: {printable(label)}"
        if stored.start + stored.nbytes > file_nbytes:
            what = f"its bytes {stored.start:,} to {stored.start + stored.nbytes:,} are past the end of the file"
            raise CheckpointError(what, where, _DAMAGED)

        def read(position: int, nbytes: int) -> bytes:
            return self._files.read(stored.filename, stored.start + position, nbytes)

        header = read_zip_header(read, stored.nbytes, where, label)
        found, placement = header.tensors.get(label), header.placements.get(label)
        if found is None or placement is None:
            raise CheckpointError("a single tensor should be saved there, but it is something else", where, _DAMAGED)
        if (found.shape, found.dtype) != (chunk.sizes, info.dtype):
            what = (
                f"it should be {list(chunk.sizes)} {info.dtype}, as .metadata says, "
                f"but it is {list(found.shape)} {found.dtype}"
            )
            raise CheckpointError(what, where, _DAMAGED)
        if found.nbytes > placement.extent.nbytes:
            raise CheckpointError("its elements repeat each other, as torch never saves them", where, _DAMAGED)
        width = info.dtype.bits // 8
        box = Chunk((*chunk.offsets, 0), (*chunk.sizes, width))
        shape = (*info.shape, width)
        extent = placement.extent
        _, first, _ = next(box.runs(shape, 0, 1))
        _, last, _ = next(box.runs(shape, box.size - 1, box.size))
        return _Part(
            found,
            box,
            first,
            last + 1,
            stored.filename,
            Member(label, stored.start + extent.start, extent.nbytes, extent.nbytes, STORED, extent.crc),
            placement.start,
            placement.strides,
        )

    def _overlaps(self, metadata: DcpMetadata) -> Iterator[Problem]:
        """Chunks that share bytes of a file: a few bytes could claim to be any number of tensors."""
        places = sorted(
            (stored.filename, stored.start, stored.nbytes, name)
            for name, chunks in metadata.chunks.items()
            for stored in chunks
        )
        for one, two in pairwise(places):
            if one[0] == two[0] and one[1] + one[2] > two[1]:
                what = f"its bytes overlap those of {printable(one[3])}"
                yield Problem(what, f"{self._files.where(two[0])}: {printable(two[3])}", _DAMAGED)

    def _note_on_crcs(self, where: str) -> Iterator[Problem]:
        without = [
            printable(name)
            for name, parts in self._parts.items()
            if any(not part.member.crc and prod(part.box.sizes) for part in parts)
        ]
        if without:
            shown = ", ".join(without[:_LISTED]) + (
                f" and {len(without) - _LISTED:,} more" if without[_LISTED:] else ""
            )
            yield Problem(f"saved without CRCs, so damage to the data can't be noticed: {shown}", where)
