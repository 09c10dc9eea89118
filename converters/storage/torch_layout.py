"""The layout of a zip archive as `torch.save` writes it, decided before its data is there.

Members are stored one after the other, their data at multiples of 64 bytes, each followed by its CRC and size; torch
can compute where each storage lies from that alone (`torch.utils.serialization.config.load.calculate_storage_offsets`).

Sources: PKWARE's APPNOTE.TXT 6.3; caffe2/serialize/inline_container.cc (`getPadding`), for torch's order and padding.
"""

from __future__ import annotations

import struct
from pathlib import PurePosixPath
from typing import Final

from msgspec import Struct

from converters.errors import CheckpointError, OutputError
from converters.sharding import Shard
from converters.storage.base import FileHeader
from converters.storage.crc import PiecewiseCrc, crc32
from converters.storage.files import read_exactly
from converters.storage.open_shard import Pieces
from converters.storage.torch_header import TorchHeader
from converters.storage.torch_pickle_writer import check_storable, write_pickle

ALIGNMENT: Final = 64
"""Every member's data begins at a multiple of so many bytes, so that a file can be mapped and used in place."""

_FULL_16: Final = 0xFFFF
_FULL_32: Final = 0xFFFFFFFF
_CHUNK: Final = 1 << 20
_UTF_8: Final = 0x0800
_SIZES_FOLLOW: Final = 0x0008
_VERSION: Final = 20
_VERSION_ZIP64: Final = 45
_MAX_STEM: Final = 200


class _Record(Struct, frozen=True):
    """A member: its name, where its header and its data begin, its size, and its data unless that comes later."""

    name: bytes
    header: int
    start: int
    nbytes: int
    data: bytes | None

    @property
    def zip64(self) -> bytes:
        """The extra field with the sizes that need 64 bits."""
        fields = b""
        if self.nbytes >= _FULL_32:
            fields += struct.pack("<QQ", self.nbytes, self.nbytes)
        if self.header >= _FULL_32:
            fields += struct.pack("<Q", self.header)
        return struct.pack("<HH", 1, len(fields)) + fields if fields else b""

    @property
    def flags(self) -> int:
        """What the zip format should know: the name's encoding, and whether CRC and sizes follow the data."""
        return _UTF_8 | (_SIZES_FOLLOW if self.nbytes else 0)

    @property
    def trailer_nbytes(self) -> int:
        """Bytes of what follows the data: none where there is no data."""
        return (24 if self.zip64 else 16) if self.nbytes else 0

    @property
    def end(self) -> int:
        """Where the next member's header begins."""
        return self.start + self.nbytes + self.trailer_nbytes

    def local_header(self) -> bytes:
        """What stands before the data, with padding up to it."""
        zip64 = self.zip64
        version = _VERSION_ZIP64 if zip64 else _VERSION
        padding = self.start - self.header - 30 - len(self.name) - len(zip64) - 4
        extra = zip64 + b"FB" + struct.pack("<H", padding) + b"Z" * padding
        size = _FULL_32 if self.nbytes >= _FULL_32 else 0
        fixed = struct.pack(
            "<4s5H3L2H", b"PK\3\4", version, self.flags, 0, 0, 0, 0, size, size, len(self.name), len(extra)
        )
        return fixed + self.name + extra

    def trailer(self, crc: int) -> bytes:
        """What follows the data: its CRC and its sizes."""
        if not self.nbytes:
            return b""
        return b"PK\7\10" + struct.pack("<LQQ" if self.zip64 else "<LLL", crc, self.nbytes, self.nbytes)

    def entry(self, crc: int) -> bytes:
        """Its entry in the archive's directory."""
        zip64 = self.zip64
        version = _VERSION_ZIP64 if zip64 else _VERSION
        size, header = min(self.nbytes, _FULL_32), min(self.header, _FULL_32)
        return (
            struct.pack("<4s6H", b"PK\1\2", version, version, self.flags, 0, 0, 0)
            + struct.pack("<3L5H2L", crc, size, size, len(self.name), len(zip64), 0, 0, 0, 0, header)
            + self.name
            + zip64
        )


class TorchLayout:
    """Lays a state dict out in one archive; the CRCs are computed from what passes by."""

    def __init__(self, shard: Shard, *, pickle: bytes | None = None, base: int = 0) -> None:
        """Lay out the archive of a shard.

        Args:
            shard: the tensors, and the name of their file.
            pickle: what the archive says of its tensors; by default, that they are a state dict.
            base: where in the file the archive begins.

        Raises:
            OutputError: torch has no such dtype.
        """
        check_storable(shard.tensors)
        self._tensors = shard.tensors
        self._base = base
        # torch names the folder after the file, too.
        folder = PurePosixPath(shard.filename).stem
        folder = folder[:_MAX_STEM] if folder.isascii() else "archive"
        self._records: list[_Record] = []
        self._end = 0
        for name, data in (
            ("data.pkl", write_pickle(shard.tensors) if pickle is None else pickle),
            (".format_version", b"1"),
            (".storage_alignment", str(ALIGNMENT).encode()),
            ("byteorder", b"little"),
        ):
            self._add(f"{folder}/{name}", len(data), data)
        self._starts: dict[str, int] = {}
        first = len(self._records)
        for number, info in enumerate(shard.tensors):
            self._starts[info.name] = self._add(f"{folder}/data/{number}", info.nbytes, None)
        self._storages = range(first, len(self._records))
        self._add(f"{folder}/version", 2, b"3\n")
        self._crcs = {info.name: PiecewiseCrc(info.nbytes) for info in shard.tensors}
        self._sums: dict[str, int] = {}
        self.file_nbytes = self._end + len(self._directory([0] * len(self._records)))

    def position(self, name: str) -> int:
        """Where a tensor's bytes begin in the file."""
        return self._base + self._starts[name]

    def before(self) -> Pieces:
        """The members before the first storage, so that the file is known for what it is."""
        for record in self._records[: self._storages.start]:
            data = record.data or b""
            yield self._base + record.header, record.local_header() + data + record.trailer(crc32(data))

    def passed(self, name: str, offset: int, data: memoryview) -> None:
        """Add what was written to its storage's CRC."""
        total = self._crcs[name].add(offset, data)
        if total is not None:
            self._sums[name] = total

    def after(self, descriptor: int, where: str) -> Pieces:
        """All that stands between the storages and after them: headers, CRCs, and the directory."""
        crcs = [self._crc(number, descriptor, where) for number in range(len(self._records))]
        for number in range(self._storages.start, len(self._records)):
            record = self._records[number]
            yield self._base + record.header, record.local_header() + (record.data or b"")
            yield self._base + record.start + record.nbytes, record.trailer(crcs[number])
        yield self._base + self._end, self._directory(crcs)

    def differs(self, header: FileHeader) -> bool:
        """Whether a header that was read back is not the one that was written."""
        return (
            not isinstance(header, TorchHeader)
            or list(header.tensors.values()) != list(self._tensors)
            or header.file_nbytes != self.file_nbytes
            or any(
                placement.strides is not None or placement.extent.start + placement.start != self._starts[name]
                for name, placement in header.placements.items()
                if header.tensors[name].nbytes
            )
        )

    def _add(self, name: str, nbytes: int, data: bytes | None) -> int:
        raw = name.encode("utf-8", "surrogatepass")
        record = _Record(raw, self._end, 0, nbytes, data)
        earliest = self._end + 30 + len(raw) + len(record.zip64) + 4
        record = _Record(raw, self._end, earliest + -earliest % ALIGNMENT, nbytes, data)
        self._records.append(record)
        self._end = record.end
        return record.start

    def _crc(self, number: int, descriptor: int, where: str) -> int:
        data = self._records[number].data
        if data is not None:
            return crc32(data)
        info = self._tensors[number - self._storages.start]
        if info.nbytes and info.name not in self._sums:
            self._sums[info.name] = self._read_back(self._records[number], descriptor, where)
        return self._sums.get(info.name, 0)

    def _read_back(self, record: _Record, descriptor: int, where: str) -> int:
        """The CRC of a storage that was written in too many small pieces to add them up."""
        buffer = memoryview(bytearray(min(_CHUNK, record.nbytes)))
        crc = 0
        for offset in range(0, record.nbytes, _CHUNK):
            part = buffer[: min(_CHUNK, record.nbytes - offset)]
            try:
                read_exactly(descriptor, part, self._base + record.start + offset, where)
            except CheckpointError as error:
                raise OutputError(error.problems) from error
            crc = crc32(part, crc)
        return crc

    def _directory(self, crcs: list[int]) -> bytes:
        entries = b"".join(record.entry(crc) for record, crc in zip(self._records, crcs, strict=True))
        count, nbytes, start = len(self._records), len(entries), self._end
        end64 = b""
        if count >= _FULL_16 or nbytes >= _FULL_32 or start >= _FULL_32:
            end64 = struct.pack(
                "<4sQ2H2L4Q", b"PK\6\6", 44, _VERSION_ZIP64, _VERSION_ZIP64, 0, 0, count, count, nbytes, start
            ) + struct.pack("<4sLQL", b"PK\6\7", 0, start + nbytes, 1)
        count, nbytes, start = min(count, _FULL_16), min(nbytes, _FULL_32), min(start, _FULL_32)
        return entries + end64 + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, nbytes, start, 0)
