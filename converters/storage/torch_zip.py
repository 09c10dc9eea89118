"""The directory of a zip archive as `torch.save` writes it: which bytes of the file each member has. Reads no data.

An archive is accepted only if its parts can't be read in two ways: one directory, at the very end; every name once;
every member in bytes of its own, under a header of its own that agrees with the directory.

Source: PKWARE's APPNOTE.TXT 6.3, sections 4.3 (the records) and 4.5.3 (sizes above 4 GiB).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Final, NoReturn

from msgspec import Struct

from converters.errors import CheckpointError
from converters.storage.crc import crc32
from converters.text import format_nbytes, printable

MAX_DIRECTORY_NBYTES: Final = 100_000_000
"""Largest directory that is read, in bytes: about a million members."""

MAX_INFLATION: Final = 100
"""How many times its compressed size a member may have; torch itself compresses nothing."""

STORED: Final = 0
DEFLATED: Final = 8

_END: Final = struct.Struct("<4s4H2LH")
_END_MAGIC: Final = b"PK\x05\x06"
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_END64_MAGIC: Final = b"PK\x06\x06"
_LOCATOR: Final = struct.Struct("<4sLQL")
_LOCATOR_MAGIC: Final = b"PK\x06\x07"
_ENTRY: Final = struct.Struct("<4s6H3L5H2L")
_ENTRY_MAGIC: Final = b"PK\x01\x02"
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_LOCAL_MAGIC: Final = b"PK\x03\x04"
_EXTRA: Final = struct.Struct("<2H")
_ZIP64_ID: Final = 1
_FULL_16: Final = 0xFFFF
_FULL_32: Final = 0xFFFFFFFF
_ENCRYPTED: Final = 0x0001 | 0x0040 | 0x2000
_SIZES_FOLLOW: Final = 0x0008
_UTF_8: Final = 0x0800

_DAMAGED: Final = "It was truncated or damaged; copy or download it again."
_RESAVE: Final = "Load it where you trust its source, and save it again with torch.save."

ReadBytes = Callable[[int, int], bytes]
"""Gives so many bytes from a position of the file on."""


class Member(Struct, frozen=True):
    """A member of an archive.

    Attributes:
        name: its name, as the directory gives it.
        start: where its data begins, in bytes from the start of the file.
        stored_nbytes: bytes that it takes in the file.
        nbytes: bytes that it holds once inflated; the same, unless it is compressed.
        method: how it is compressed: STORED, DEFLATED, or another that is refused when it is read.
        crc: the CRC-32 of what it holds; 0 if it was not computed.
    """

    name: str
    start: int
    stored_nbytes: int
    nbytes: int
    method: int
    crc: int


class _Entry(Struct, frozen=True):
    name: str
    raw_name: bytes
    flags: int
    method: int
    crc: int
    stored_nbytes: int
    nbytes: int
    header: int


def read_directory(read: ReadBytes, file_nbytes: int, where: str) -> dict[str, Member]:
    """Read and check the directory of an archive; every member by name, in the order of the file.

    Args:
        read: gives bytes of the file.
        file_nbytes: size of the file.
        where: how errors name the file.

    Raises:
        CheckpointError: it is truncated, damaged, encrypted, too large, or can be read in two ways.
    """
    start, nbytes, count, end = _find_directory(read, file_nbytes, where)
    if nbytes > MAX_DIRECTORY_NBYTES:
        raise CheckpointError(
            f"its directory takes {nbytes:,} bytes, above the limit of {MAX_DIRECTORY_NBYTES:,}", where, _DAMAGED
        )
    if start + nbytes != end:
        _refuse(f"its directory should end at byte {end:,}, but it has bytes {start:,} to {start + nbytes:,}", where)
    entries = list(_entries(read(start, nbytes), where))
    if len(entries) != count:
        _refuse(f"its directory has {len(entries):,} members, but should have {count:,}", where)
    entries.sort(key=lambda entry: entry.header)
    members: dict[str, Member] = {}
    taken = 0
    for entry in entries:
        shown = f"{where}: {printable(entry.name)}"
        if entry.name in members:
            raise CheckpointError("two members of the archive have this name", shown, _DAMAGED)
        if entry.header < taken:
            raise CheckpointError("its bytes overlap those of the member before it", shown, _DAMAGED)
        member = _locate(read, entry, start, shown)
        members[entry.name] = member
        taken = member.start + member.stored_nbytes
    return members


def read_member(read: ReadBytes, member: Member, limit_nbytes: int, where: str) -> bytes:
    """Read a whole member of at most `limit_nbytes`, inflate it, and check its CRC.

    Raises:
        CheckpointError: it is too large, compressed in another way than by deflate, inflates too far, or is damaged.
    """
    shown = f"{where}: {printable(member.name)}"
    if member.nbytes > limit_nbytes:
        raise CheckpointError(f"expected at most {limit_nbytes:,} bytes, this has {member.nbytes:,}", shown)
    if member.nbytes > MAX_INFLATION * max(member.stored_nbytes, 1):
        raise CheckpointError(
            f"{member.stored_nbytes:,} bytes inflate to {member.nbytes:,}, more than {MAX_INFLATION} times as many",
            shown,
            "No checkpoint compresses so well; this is meant to fill the memory.",
        )
    data = read(member.start, member.stored_nbytes)
    if member.method == DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = inflater.decompress(data, member.nbytes + 1)
        except zlib.error as error:
            raise CheckpointError(f"can't be inflated: {error}", shown, _DAMAGED) from None
    elif member.method != STORED:
        raise CheckpointError(f"is compressed by method {member.method}, which is not supported", shown, _RESAVE)
    if len(data) != member.nbytes:
        raise CheckpointError(f"should hold {member.nbytes:,} bytes, but inflates to others", shown, _DAMAGED)
    if member.crc and crc32(data) != member.crc:
        raise CheckpointError("its CRC is wrong: bytes of it were changed since it was written", shown, _DAMAGED)
    return data


def _find_directory(read: ReadBytes, file_nbytes: int, where: str) -> tuple[int, int, int, int]:
    """Where the directory begins, its bytes, its members, and where it must end."""
    end = file_nbytes - _END.size
    if end < 0:
        _refuse(f"a zip archive has at least {_END.size} bytes, this file has {file_nbytes}", where)
    magic, disk, directory_disk, here, count, nbytes, start, comment = _END.unpack(read(end, _END.size))
    if magic != _END_MAGIC or comment:
        _refuse("it does not end as a zip archive does, with its directory", where)
    if disk or directory_disk or here != count:
        _refuse("it is one part of an archive in several files", where)
    at = end - _LOCATOR.size
    if at < 0 or _LOCATOR.unpack(read(at, _LOCATOR.size))[0] != _LOCATOR_MAGIC:
        return start, nbytes, count, end
    _, disk, at64, disks = _LOCATOR.unpack(read(at, _LOCATOR.size))
    if disk or disks > 1 or at64 + _END64.size != at:
        _refuse("the end of its directory is not where it says", where)
    magic, size, *_, disk, directory_disk, here, count64, nbytes64, start64 = _END64.unpack(read(at64, _END64.size))
    if magic != _END64_MAGIC or size != _END64.size - 12 or disk or directory_disk or here != count64:
        _refuse("the end of its directory is not valid", where)
    for small, large, full in ((count, count64, _FULL_16), (nbytes, nbytes64, _FULL_32), (start, start64, _FULL_32)):
        if small not in {large, full}:
            _refuse("it has two ends that contradict each other", where)
    return start64, nbytes64, count64, at64


def _entries(directory: bytes, where: str) -> Iterator[_Entry]:
    position = 0
    while position < len(directory):
        if len(directory) - position < _ENTRY.size:
            _refuse("its directory is cut off", where)
        fields = _ENTRY.unpack_from(directory, position)
        magic, _, _, flags, method, _, _, crc, stored_nbytes, nbytes = fields[:10]
        name_nbytes, extra_nbytes, comment_nbytes, disk, _, _, header = fields[10:]
        if magic != _ENTRY_MAGIC:
            _refuse(f"its directory is not valid at byte {position:,}", where)
        position += _ENTRY.size
        raw_name = directory[position : position + name_nbytes]
        extra = directory[position + name_nbytes : position + name_nbytes + extra_nbytes]
        position += name_nbytes + extra_nbytes + comment_nbytes
        if position > len(directory):
            _refuse("its directory is cut off", where)
        try:
            name = raw_name.decode("utf-8")
        except UnicodeDecodeError:
            if flags & _UTF_8:
                _refuse(f"the name of a member is not valid: {printable(repr(raw_name))}", where)
            name = raw_name.decode("cp437")
        shown = f"{where}: {printable(name)}"
        if flags & _ENCRYPTED:
            raise CheckpointError("is encrypted", shown, "Decrypt the archive first; torch reads none either.")
        if disk not in {0, _FULL_16}:
            raise CheckpointError("lies in another file of the archive", shown, _DAMAGED)
        nbytes, stored_nbytes, header = _with_zip64(extra, nbytes, stored_nbytes, header, shown)
        if method == STORED and nbytes != stored_nbytes:
            raise CheckpointError(f"takes {stored_nbytes:,} bytes as they are, but holds {nbytes:,}", shown, _DAMAGED)
        yield _Entry(name, raw_name, flags, method, crc, stored_nbytes, nbytes, header)


def _with_zip64(extra: bytes, nbytes: int, stored_nbytes: int, header: int, shown: str) -> tuple[int, int, int]:
    """Put the sizes above 4 GiB, which an extra field holds, in their places."""
    fields = b""
    found = 0
    position = 0
    while len(extra) - position >= _EXTRA.size:
        kind, length = _EXTRA.unpack_from(extra, position)
        if kind == _ZIP64_ID:
            fields = extra[position + _EXTRA.size : position + _EXTRA.size + length]
            found += 1
        position += _EXTRA.size + length
    if found > 1:
        raise CheckpointError("has its size twice", shown, _DAMAGED)
    values = [nbytes, stored_nbytes, header]
    at = 0
    for index, value in enumerate(values):
        if value == _FULL_32:
            if len(fields) - at < 8:  # noqa: PLR2004 - 64 bits
                raise CheckpointError("is larger than 4 GiB, but its size is missing", shown, _DAMAGED)
            values[index] = int.from_bytes(fields[at : at + 8], "little")
            at += 8
    return values[0], values[1], values[2]


def _locate(read: ReadBytes, entry: _Entry, limit: int, shown: str) -> Member:
    """Find where a member's data begins, by the header before it, which must agree with the directory."""
    if entry.header + _LOCAL.size > limit:
        raise CheckpointError("lies past the end of the archive's data", shown, _DAMAGED)
    # One read gets the header and most names; padding may make the extra field long, and nobody needs it.
    raw = read(entry.header, min(_LOCAL.size + len(entry.raw_name), limit - entry.header))
    fields = _LOCAL.unpack_from(raw)
    magic, _, flags, method, _, _, crc, stored_nbytes, nbytes, name_nbytes, extra_nbytes = fields
    sizes_agree = all(
        own in {entry_value, full} or (own == 0 and flags & _SIZES_FOLLOW)
        for own, entry_value, full in (
            (crc, entry.crc, entry.crc),
            (stored_nbytes, entry.stored_nbytes, _FULL_32),
            (nbytes, entry.nbytes, _FULL_32),
        )
    )
    if (
        magic != _LOCAL_MAGIC
        or raw[_LOCAL.size :] != entry.raw_name
        or name_nbytes != len(entry.raw_name)
        or method != entry.method
        or (flags ^ entry.flags) & ~_UTF_8
        or not sizes_agree
    ):
        raise CheckpointError("the header before it is not what the archive's directory says", shown, _DAMAGED)
    start = entry.header + _LOCAL.size + name_nbytes + extra_nbytes
    if start + entry.stored_nbytes > limit:
        what = f"its {format_nbytes(entry.stored_nbytes)} from byte {start:,} on end past the archive's data"
        raise CheckpointError(what, shown, _DAMAGED)
    return Member(entry.name, start, entry.stored_nbytes, entry.nbytes, entry.method, entry.crc)


def _refuse(what: str, where: str) -> NoReturn:
    raise CheckpointError(f"this zip archive is not valid: {what}", where, _DAMAGED)
