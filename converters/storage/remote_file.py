"""Reading ranges of a file that lies in a store: few requests, bounded memory, and nothing short taken for whole."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from converters.errors import CheckpointError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from converters.storage.remote_path import Entry, RemotePath

BLOCK: Final = 256 << 10
"""Bytes that are asked for at least: as much as most headers have, so that a header is one request."""

LONGEST: Final = 4 << 20
"""Bytes that are asked for at most to read ahead; requests of this length are bound by the network's width."""

CACHE: Final = 32 << 20
"""Bytes of blocks that are kept, of all files together."""


_File = tuple[str, "Entry"]
"""Its address, and what it was when it was opened: a replaced file has blocks of its own."""


class _Blocks:
    """The blocks that were fetched last, of all open files."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple[_File, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, file: _File, number: int) -> bytes | None:
        with self._lock:
            block = self._blocks.get((file, number))
            if block is not None:
                self._blocks.move_to_end((file, number))
            return block

    def run_before(self, file: _File, number: int) -> int:
        """How many blocks that lie right before a block are here."""
        with self._lock:
            count = 0
            while count < LONGEST // BLOCK and (file, number - count - 1) in self._blocks:
                count += 1
            return count

    def put(self, file: _File, first: int, data: bytes) -> None:
        with self._lock:
            for place in range(0, len(data), BLOCK):
                self._blocks[file, first + place // BLOCK] = data[place : place + BLOCK]
            while len(self._blocks) > CACHE // BLOCK:
                self._blocks.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._blocks.clear()


_blocks = _Blocks()


def forget_blocks() -> None:
    """Free the memory of what was fetched."""
    _blocks.clear()


class RemoteFile:
    """An open file in a store; it is the one that was there when it was opened, or reading is an error.

    What is read in sequence is fetched in ranges that double from `BLOCK` to `LONGEST`, and neighbours that came along
    are served from memory.
    """

    def __init__(self, path: RemotePath, where: str) -> None:
        """Look what is there.

        Args:
            path: the file.
            where: how errors name it.

        Raises:
            CheckpointError: it is missing, is a directory, or can't be reached.
        """
        self._path, self._where = path, where
        self._store, self._key = path.store()
        found = self._store.entry(self._key)
        if found is None:
            raise CheckpointError("can't be read: No such file or directory", where)
        if found.is_dir:
            raise CheckpointError("expected a regular file, this is a directory", where)
        self._blocks_of = (str(path), found)
        self._entry = found
        self.nbytes = found.nbytes

    @property
    def identity(self) -> str:
        """What tells it from its replacement: what the store says of it."""
        known = ", ".join(f"{what} {value}" for what, value in self._entry.identity)
        return f"{self._entry.nbytes} bytes" + (f", {known}" if known else "")

    @property
    def is_local(self) -> bool:
        """Whether reading it costs no transfer."""
        return False

    def read_into(self, position: int, buffer: memoryview) -> None:
        """Fill a buffer of bytes from `position` on; safe to call from several threads.

        Raises:
            CheckpointError: the file ends too early, or reading failed.
        """
        if position + buffer.nbytes > self.nbytes:
            missing = position + buffer.nbytes - self.nbytes
            raise CheckpointError(f"the file ends too early: {missing:,} bytes are missing", self._where)
        if buffer.nbytes >= LONGEST:
            for done in range(0, buffer.nbytes, LONGEST):
                part = buffer[done : done + LONGEST]
                part[:] = self._fetch(position + done, position + done + part.nbytes)
            return
        while buffer.nbytes:
            number, offset = divmod(position, BLOCK)
            block = _blocks.get(self._blocks_of, number)
            if block is None:
                block = self._fetch_blocks(number, position + buffer.nbytes)
            piece = memoryview(block)[offset : offset + buffer.nbytes]
            buffer[: piece.nbytes] = piece
            buffer, position = buffer[piece.nbytes :], position + piece.nbytes

    def change(self) -> str | None:
        """What happened to the file since it was opened; None if nothing did."""
        now = self._store.entry(self._key, fresh=True)
        if now is None or now.is_dir:
            return "the file was removed while it was read"
        return None if now == self._entry else "the file was replaced while it was read"

    def close(self) -> None:
        """Nothing is held but blocks, which another reader of the same file may want: that of its header does."""

    def _fetch_blocks(self, first: int, stop: int) -> bytes:
        """Fetch from a block on, up to `stop` or further where it seems that more will be wanted."""
        wanted = -(-stop // BLOCK) - first
        count = max(wanted, min(_blocks.run_before(self._blocks_of, first), LONGEST // BLOCK))
        data = self._fetch(first * BLOCK, min((first + count) * BLOCK, self.nbytes))
        _blocks.put(self._blocks_of, first, data)
        return data

    def _fetch(self, start: int, stop: int) -> bytes:
        data = self._store.read(self._key, start, stop)
        if len(data) != stop - start:
            raise CheckpointError(
                f"asked for bytes {start:,} to {stop:,} ({stop - start:,} of them), and got {len(data):,}",
                self._where,
                "The file was changed while it was read, or the connection broke off; start again.",
            )
        return data


class RemoteStream(io.RawIOBase):
    """A file in a store as a stream, for what reads a file from its beginning to its end."""

    def __init__(self, path: RemotePath) -> None:
        self._file = RemoteFile(path, str(path))
        self._position = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.nbytes}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read as many bytes as there are, and as fit."""
        view = memoryview(buffer).cast("B")
        view = view[: max(0, self._file.nbytes - self._position)]
        self._file.read_into(self._position, view)
        self._position += view.nbytes
        return view.nbytes
