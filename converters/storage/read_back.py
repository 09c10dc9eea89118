"""Reads a file while it is written, right behind what is there without a gap: digests of what it holds.

See docs/adr/0013-read-back.md.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

from converters.errors import CheckpointError, OutputError
from converters.storage.file_digests import Extent, FileDigests, Piece, ReadInto, digest_file

_HINT: Final = "The disk, the memory or another program is at fault; start again."


class ReadBack:
    """Makes the digests of one file in a thread of its own, from when it is created until `result` gives them."""

    def __init__(
        self, file: str, nbytes: int, extents: Sequence[Extent], algorithm: str, read_into: ReadInto, where: str
    ) -> None:
        """Begin.

        Args:
            file: its name, as the result has it.
            nbytes: its size in the end.
            extents: the tensors in it, which don't overlap.
            algorithm: one of `converters.digests.ALGORITHMS`.
            read_into: reads it.
            where: how errors name it.
        """
        self._nbytes = nbytes
        self._read_into = read_into
        self._where = where
        self._changed = threading.Condition()
        self._stopped = False
        self._readable = 0
        self._pieces: list[Piece] = []  # in order and without a gap, so that they can be compared while they grow
        self._waiting: dict[int, Piece] = {}  # by their first byte: those behind a gap
        self._found: FileDigests | None = None
        self._wrong: int | None = None
        self._error: Exception | None = None
        # Nobody waits for a thread of a run that failed.
        self._thread = threading.Thread(
            target=self._run, args=(file, extents, algorithm), name="weightmap-read-back", daemon=True
        )
        self._thread.start()

    def wrote(self, start: int, end: int, digest: int | None) -> None:
        """Note that a piece was written, with its `piece_digest`; safe to call from several threads.

        What never passed through memory, such as a range that the file system shares, has none, and isn't compared.
        """
        if start == end:
            return
        with self._changed:
            self._waiting[start] = (start, end, digest)
            if start != self._readable:
                return
            while (piece := self._waiting.pop(self._readable, None)) is not None:
                self._pieces.append(piece)
                self._readable = piece[1]
            self._changed.notify()

    def result(self) -> FileDigests:
        """What the file holds, now that all of it is written: wait for the rest to be read.

        Raises:
            OutputError: it holds something else than was written, can't be read, or `stop` was called.
        """
        with self._changed:
            self._pieces += sorted(self._waiting.values())
            self._waiting.clear()
            self._readable = self._nbytes
            self._changed.notify()
        self._thread.join()
        if isinstance(self._error, CheckpointError):
            raise OutputError(self._error.problems) from self._error
        if self._error is not None:
            raise self._error
        if self._found is None:
            raise AssertionError("a pass over a file ends with digests or with an error")
        if self._wrong is not None:
            raise OutputError(
                f"holds something else at byte {self._wrong:,} than was written there", self._where, _HINT
            )
        return self._found

    def stop(self) -> None:
        """End early; `result` is an error then."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def close(self) -> None:
        """End early, and wait for that: nothing reads the file any more."""
        self.stop()
        self._thread.join()

    def _run(self, file: str, extents: Sequence[Extent], algorithm: str) -> None:
        try:
            self._found, self._wrong = digest_file(
                file, self._nbytes, self._read, extents, algorithm, pieces=self._pieces
            )
        except Exception as error:  # noqa: BLE001 - `result` raises it, in the thread that asks
            self._error = error

    def _read(self, position: int, buffer: memoryview) -> None:
        with self._changed:
            while self._readable < position + len(buffer) and not self._stopped:
                self._changed.wait()
            if self._stopped:
                raise OutputError("stopped before it was complete", self._where)
        self._read_into(position, buffer)
