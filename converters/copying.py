"""Plain ranges: each is read from front to back, once, by whichever thread comes next, and written by all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Protocol

from converters.schedule import COPY_BUFFER, Job, RangeJob

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from converters.storage.base import RangeWriter

Read = Callable[[int, memoryview], None]
"""Fills a buffer with bytes of a range from a position on."""

_local = threading.local()


def _buffer() -> memoryview:
    """This thread's copy buffer, made once."""
    buffer: memoryview | None = getattr(_local, "buffer", None)
    if buffer is None:
        buffer = _local.buffer = memoryview(bytearray(COPY_BUFFER))
    return buffer


class RangeCopy:
    """Copies the bytes of a range from `start` to `stop`, through the buffers of the threads that share the work."""

    def __init__(self, read: Read, writer: RangeWriter, start: int, stop: int) -> None:
        self._read = read
        self._writer = writer
        self._start = self._next = start
        self._stop = stop
        self._lock = threading.Lock()
        self._unwritten = stop - start

    @property
    def all_read(self) -> bool:
        """Whether there is nothing left to take."""
        return self._next == self._stop

    def take(self) -> tuple[int, memoryview]:
        """Read the next bytes into this thread's buffer; for one thread at a time.

        Returns:
            Their place in the range, and themselves: `put` wants them before this thread takes others.
        """
        place = self._next
        part = _buffer()[: self._stop - place]
        self._read(place, part)
        self._writer.note(part)
        self._next += part.nbytes
        return place, part

    def put(self, place: int, part: memoryview) -> int:
        """Write what was taken; gives the number of bytes."""
        self._writer.write(place - self._start, part)
        with self._lock:
            self._unwritten -= part.nbytes
            complete = not self._unwritten
        if complete:
            self._writer.close()
        return part.nbytes


class Worker(Protocol):
    """What carries out jobs.

    Attributes:
        progress: called with the number of bytes that were just written.
        stopped: set when all threads should end early.
    """

    progress: Callable[[int], None]
    stopped: threading.Event

    def begin(self, job: RangeJob) -> list[RangeCopy] | None:
        """What is left to copy of a range; None if it is to be run as one job."""
        ...

    def run(self, job: Job) -> None:
        """Carry out a whole job."""
        ...


def run_jobs(pool: ThreadPoolExecutor, worker: Worker, work: Iterator[Job], threads: int) -> None:
    """Run jobs on so many threads. Each takes the next one when it is free: none waits, with memory nobody counted.

    Raises:
        WeightmapError: what the worker raises; all threads have ended then.
    """
    queue = _Queue(worker, work)
    running = [pool.submit(queue.run) for _ in range(threads)]
    for future in running:
        future.result()


class _Queue:
    """The jobs of a run, and the ranges that are being copied."""

    def __init__(self, worker: Worker, work: Iterator[Job]) -> None:
        self._worker = worker
        self._work = work
        self._copies: list[RangeCopy] = []
        self._turn = threading.Lock()

    def run(self) -> None:
        """Work until there is nothing left, or another thread has failed."""
        try:
            while not self._worker.stopped.is_set():
                with self._turn:
                    step = self._next()
                if step is None:
                    return
                step()
        except BaseException:
            self._worker.stopped.set()
            raise

    def _next(self) -> Callable[[], None] | None:
        """What this thread does next; what has to be in order is done already."""
        worker = self._worker
        while True:
            while self._copies and self._copies[0].all_read:
                del self._copies[0]
            if self._copies:
                copy = self._copies[0]
                place, part = copy.take()
                return lambda: worker.progress(copy.put(place, part))
            job = next(self._work, None)
            if job is None:
                return None
            if not isinstance(job, RangeJob) or (copies := worker.begin(job)) is None:
                return partial(worker.run, job)
            self._copies = copies
