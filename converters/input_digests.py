"""The digests of all input files: on the way, where their bytes pass by in order; else by a thread of its own."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Final

from converters.digests import MEMORY_SPEED, digest_text, make_hasher
from converters.errors import WeightmapError
from converters.manifest import Input
from converters.reading_order import reading_order
from converters.storage.base import CheckpointReader, OpenFile
from converters.storage.file_digests import CHUNK
from converters.storage.shared_blocks import place_of

if TYPE_CHECKING:
    from converters.plan import Plan

GAP: Final = 1 << 20
"""Bytes that are read in between, so that the order is kept: a header, or small tensors that come later."""


class InputDigests:
    """Makes the digests while a conversion reads the files."""

    def __init__(self, files: Mapping[str, OpenFile], algorithm: str | None, in_order: Collection[str]) -> None:
        """Begin to read those that don't pass by.

        Args:
            files: the open files, by name.
            algorithm: one of `converters.digests.ALGORITHMS`; None for no digests.
            in_order: the names of those whose bytes will pass by in their order, for the most part.
        """
        self._files = files
        self._algorithm = algorithm
        self._stopped = threading.Event()
        self._all_passed = threading.Event()
        read = {name: file for name, file in files.items() if algorithm is not None and file.is_local}
        self._digests = {name: _FileDigest(file, algorithm or "", self._stopped) for name, file in read.items()}
        self._passing = {id(read[name]): self._digests[name] for name in in_order if name in read}
        self._error: WeightmapError | None = None
        # Nobody waits for a thread of a run that failed.
        self._thread = threading.Thread(target=self._run, name="weightmap-inputs", daemon=True)
        self._thread.start()

    def passed(self, file: OpenFile, position: int, data: memoryview) -> None:
        """Take notice of bytes that were just read; by one thread at a time."""
        if (digest := self._passing.get(id(file))) is not None:
            digest.passed(position, data)

    def no_more(self) -> None:
        """Don't wait for bytes to pass by: read what is left of the files."""
        self._all_passed.set()

    def result(self) -> Sequence[Input]:
        """All files with their digests; waits for them.

        Raises:
            CheckpointError: one can't be read.
        """
        self.no_more()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return [self._input(name, file) for name, file in self._files.items()]

    def close(self) -> None:
        """End early, and wait for that: nothing reads the files any more."""
        self._stopped.set()
        self._all_passed.set()
        self._thread.join()

    def _run(self) -> None:
        passing = list(self._passing.values())
        try:
            for digest in self._digests.values():
                if digest not in passing:
                    digest.read_rest()
            self._all_passed.wait()
            for digest in passing:
                digest.read_rest()
        except WeightmapError as error:
            self._error = error

    def _input(self, name: str, file: OpenFile) -> Input:
        if (digest := self._digests.get(name)) is not None:
            return Input(name, file.nbytes, digest.text)
        return Input(name, file.nbytes, None, None if file.is_local else file.identity)


class _FileDigest:
    """The digest of one file, of bytes that pass by or are read, from its beginning on."""

    def __init__(self, file: OpenFile, algorithm: str, stopped: threading.Event) -> None:
        self._file = file
        self._algorithm = algorithm
        self._stopped = stopped
        self._hasher = make_hasher(algorithm)
        self._done = 0
        self._reading = False
        self._lock = threading.Lock()

    @property
    def text(self) -> str:
        return digest_text(self._algorithm, self._hasher)

    def passed(self, position: int, data: memoryview) -> None:
        with self._lock:
            if self._reading:
                return
            if 0 < position - self._done <= GAP:
                self._read_to(position)
            if position == self._done:
                self._hasher.update(data)
                self._done += len(data)

    def read_rest(self) -> None:
        with self._lock:
            self._reading = True
        self._read_to(self._file.nbytes)

    def _read_to(self, end: int) -> None:
        buffer = memoryview(bytearray(min(CHUNK, end - self._done)))
        while self._done < end:
            if self._stopped.is_set():
                raise _StoppedError("stopped")
            part = buffer[: end - self._done]
            self._file.read_into(self._done, part)
            self._hasher.update(part)
            self._done += len(part)


class _StoppedError(WeightmapError):
    """The conversion failed, so nobody asks for the rest."""


@contextmanager
def input_digests(plan: Plan, reader: CheckpointReader, algorithm: str | None) -> Iterator[InputDigests]:
    """Make the digests of all files that a plan reads; ends early if the block fails.

    Files that don't pass by in order are read by a thread, one after the other and each from its beginning: shortly
    before the conversion does or shortly after, so that the disk is asked once for what the file cache can hold. What
    is in a store isn't fetched twice: the store's own word stands for it.
    """
    # A slow digest in the way of all bytes would hold them up.
    digests = InputDigests(reader.files, algorithm, in_order(plan, reader) if algorithm in MEMORY_SPEED else ())
    try:
        yield digests
    finally:
        digests.close()


def in_order(plan: Plan, reader: CheckpointReader) -> set[str]:
    """The files most of whose bytes will pass by in their order when a plan is carried out."""
    names = {id(file): name for name, file in reader.files.items()}
    done: Counter[str] = Counter()
    passing: Counter[str] = Counter()
    for number in chain.from_iterable(reading_order(plan, targets) for targets in plan.shard_targets()):
        target = plan.targets[number]
        if not target.is_plain or target.info.dtype.bits % 8:
            continue
        width = target.info.dtype.bits // 8
        for move in sorted(target.moves, key=lambda move: move.copy.target_start):
            if plan.is_made(move.source) or not move.copy.is_range:
                continue
            place = place_of(reader, plan.sources[move.source].info.name)
            if place is None:
                continue
            name, position = names[id(place[0])], place[1] + move.copy.source_start * width
            nbytes = move.copy.size * width
            if 0 <= position - done[name] <= GAP:
                done[name] = position + nbytes
                passing[name] += nbytes
    return {name for name, nbytes in passing.items() if 2 * nbytes >= reader.files[name].nbytes}
