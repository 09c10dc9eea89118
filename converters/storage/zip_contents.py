"""What the members of a zip archive hold, read by offset: those stored as they are from the file, others inflated once.

A deflated member can be read from its beginning only, and the engine reads any part of any tensor, in several threads.
So a member that is compressed is inflated whole when it is first read, into a temporary file that has no name and is
gone when the reader is closed; memory stays at a few buffers.

CRCs: of a deflated member before its first byte is handed out; of a stored one as its bytes pass by, once all of them
have, and `check` reads again what was read in part. What nobody reads is not checked.
"""

from __future__ import annotations

import os
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Final

from converters.errors import CheckpointError
from converters.storage.crc import PiecewiseCrc, crc32
from converters.storage.files import read_exactly
from converters.storage.torch_zip import DEFLATED, MAX_INFLATION, STORED, Member
from converters.text import format_nbytes, printable

HARMLESS_NBYTES: Final = 64 << 20
"""Bytes that an archive may inflate to whatever its size: a tensor of zeros shrinks by far more than the limit."""

_BUFFER_NBYTES: Final = 1 << 20
_DAMAGED: Final = "It was damaged; copy or download it again."
_SPOOL: Final = "the temporary file of inflated tensors"


ReadInto = Callable[[int, memoryview], None]
"""Fills a buffer with bytes of the file from a position on; safe to call from several threads."""


class ZipContents:
    """Reads any range of what the members of an archive hold; safe to use from several threads."""

    def __init__(self, read_into: ReadInto, file_nbytes: int, where: str, members: Iterable[Member]) -> None:
        """Check how far the members would inflate; nothing is read yet.

        Args:
            read_into: reads the archive.
            file_nbytes: its size.
            where: how errors name it.
            members: those that will be read.

        Raises:
            CheckpointError: a member is compressed in an unknown way, or they would inflate to far more than any
                checkpoint does.
        """
        self._read_into = read_into
        self._where = where
        self._spool: IO[bytes] | None = None
        self._lock = threading.Lock()
        self._members: dict[str, Member] = {}
        self._crcs: dict[str, PiecewiseCrc | None] = {}
        self._starts: dict[str, bytes] = {}
        self._inflating: dict[str, threading.Lock | None] = {}
        self._spooled_at: dict[str, int] = {}
        inflated = 0
        for member in members:
            self._members[member.name] = member
            if member.method == DEFLATED:
                self._inflating[member.name] = threading.Lock()
                self._spooled_at[member.name] = inflated
                inflated += member.nbytes
            elif member.method != STORED:
                raise CheckpointError(
                    f"is compressed by method {member.method}, which is not supported",
                    self._shown(member),
                    "Save it again, as it is or deflated.",
                )
        if inflated > max(HARMLESS_NBYTES, MAX_INFLATION * file_nbytes):
            raise CheckpointError(
                f"its {format_nbytes(file_nbytes)} would inflate to {format_nbytes(inflated)}, "
                f"more than {MAX_INFLATION} times as many",
                where,
                "No checkpoint compresses so well; this is meant to fill the disk.",
            )

    def start_of(self, member: Member, nbytes: int) -> bytes:
        """The first bytes of a member, at most so many, without looking at the rest of it.

        Raises:
            CheckpointError: they can't be read or inflated.
        """
        if member.method == STORED:
            data = bytearray(min(nbytes, member.nbytes))
            self._read_into(member.start, memoryview(data))
            return bytes(data)
        start = b""
        for part in self._inflated(member):
            start += part
            if len(start) >= nbytes:
                break
        return start[:nbytes]

    def count_start(self, member: Member, start: bytes) -> None:
        """Count a member's first bytes in its CRC, if anything else of it will be read: they are known already."""
        self._starts[member.name] = start

    def read_into(self, member: Member, offset: int, buffer: memoryview) -> None:
        """Fill a buffer of bytes with what the member holds from `offset` on.

        Raises:
            CheckpointError: the member is damaged, or reading failed, or there is no room to inflate it.
        """
        if member.method == STORED:
            self._read_into(member.start + offset, buffer)
            self._count_in(member, offset, buffer)
            return
        self._inflate(member)
        spool = self._spool
        if spool is None:
            raise ValueError(f"the reader of {self._where} is closed")
        read_exactly(spool.fileno(), buffer, self._spooled_at[member.name] + offset, _SPOOL)

    def check(self) -> None:
        """Read the stored members again that were read in part, for their CRCs.

        Raises:
            CheckpointError: a CRC is wrong, or reading failed.
        """
        for name in [name for name, crc in self._crcs.items() if crc is not None]:
            member = self._members[name]
            buffer = memoryview(bytearray(min(_BUFFER_NBYTES, member.nbytes)))
            crc = 0
            for position in range(0, member.nbytes, _BUFFER_NBYTES):
                part = buffer[: member.nbytes - position]
                self._read_into(member.start + position, part)
                crc = crc32(part, crc)
            self._compare(member, crc)

    def close(self) -> None:
        """Give the temporary file back, if there is one."""
        with self._lock:
            spool, self._spool = self._spool, None
        if spool is not None:
            spool.close()

    def _count_in(self, member: Member, offset: int, data: memoryview) -> None:
        if not member.crc:
            return
        with self._lock:
            if member.name not in self._crcs:
                self._crcs[member.name] = fresh = PiecewiseCrc(member.nbytes)
                fresh.add(0, memoryview(self._starts.get(member.name, b"")))
            crc = self._crcs[member.name]
        if crc is not None and (total := crc.add(offset, data)) is not None:
            self._compare(member, total)

    def _compare(self, member: Member, crc: int) -> None:
        if member.crc and crc != member.crc:
            what = "its CRC is wrong: bytes of it were changed since it was written"
            raise CheckpointError(what, self._shown(member), _DAMAGED)
        self._crcs[member.name] = None

    def _inflate(self, member: Member) -> None:
        """Inflate a member into the temporary file: by the first thread that comes, once."""
        lock = self._inflating[member.name]
        if lock is None:
            return
        with lock:
            if self._inflating[member.name] is None:
                return
            crc = position = 0
            for part in self._inflated(member):
                crc = crc32(part, crc)
                self._keep(part, self._spooled_at[member.name] + position)
                position += len(part)
            if position != member.nbytes:
                found = "more" if position > member.nbytes else "fewer"
                what = f"should hold {member.nbytes:,} bytes, but inflates to {found}"
                raise CheckpointError(what, self._shown(member), _DAMAGED)
            self._compare(member, crc)
            self._inflating[member.name] = None

    def _inflated(self, member: Member) -> Iterator[bytes]:
        """What a deflated member holds, in parts; never more than one byte beyond what the directory says."""
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        left = member.nbytes + 1
        position = 0
        buffer = memoryview(bytearray(min(_BUFFER_NBYTES, member.stored_nbytes)))
        while position < member.stored_nbytes and not inflater.eof:
            chunk = buffer[: member.stored_nbytes - position]
            self._read_into(member.start + position, chunk)
            position += len(chunk)
            pending: bytes | memoryview = chunk
            more = True
            # Output can be left over after the input has been taken in.
            while (pending or more) and left and not inflater.eof:
                limit = min(left, _BUFFER_NBYTES)
                try:
                    part = inflater.decompress(pending, limit)
                except zlib.error as error:
                    raise CheckpointError(f"can't be inflated: {error}", self._shown(member), _DAMAGED) from None
                more = len(part) == limit
                left -= len(part)
                pending = inflater.unconsumed_tail
                if part:
                    yield part
            if not left:
                return
        if not inflater.eof or inflater.unused_data or position < member.stored_nbytes:
            raise CheckpointError("its compressed data doesn't end where it should", self._shown(member), _DAMAGED)

    def _keep(self, part: bytes, position: int) -> None:
        try:
            with self._lock:
                if self._spool is None:
                    self._spool = tempfile.TemporaryFile(prefix="weightmap-")  # noqa: SIM115 - until close()
                spool = self._spool
            _write(spool.fileno(), position, part)
        except OSError as error:
            raise CheckpointError(
                f"can't be inflated into a temporary file in {printable(tempfile.gettempdir())}: {error.strerror}",
                self._where,
                "Set TMPDIR to a directory with room for the uncompressed tensors, or save the file uncompressed.",
            ) from error

    def _shown(self, member: Member) -> str:
        return f"{self._where}: {printable(member.name)}"


def _write(descriptor: int, position: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, position)
        view, position = view[count:], position + count
