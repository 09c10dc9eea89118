"""Runs a plan: the only place where tensor bytes move. Plain ranges pass through a small buffer and no library."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Protocol

from converters.copying import RangeCopy, Read, run_jobs
from converters.gather import Gatherer, fill_box
from converters.made_reader import reader_of
from converters.plan import Plan
from converters.reading_order import reading_order
from converters.schedule import (
    COPY_BUFFER,
    Budget,
    GenerateJob,
    Job,
    PanelJob,
    RangeJob,
    jobs,
)
from converters.storage.base import CheckpointReader, CheckpointWriter, OpenFile, RangesWriter, RangeWriter
from converters.storage.file_digests import FileDigests
from converters.storage.open_files import LocalFile
from converters.storage.reflink import LEAST_NBYTES, SharingWriter
from converters.storage.shared_blocks import place_of

if TYPE_CHECKING:
    from concurrent.futures import Future

    from converters.operations import Array

DEFAULT_MAX_MEMORY = 512_000_000
"""Bytes of resident memory that a conversion may use beyond Python's own, for whatever checkpoint."""

Progress = Callable[[int], None]
"""Called with the number of bytes that were just written (or compared); may be called from several threads."""


def default_threads() -> int:
    """Threads that copying gains from: two are enough to keep a disk busy, and a few more transposing."""
    return max(1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


class Sink(Protocol):
    """Where the bytes of targets go: a `CheckpointWriter`, or memory."""

    def write_from(self, name: str, offset: int, data: memoryview) -> None:
        """Take the bytes of a target from `offset` on."""
        ...


class Watcher(Protocol):
    """Whoever wants to know what is read of files."""

    def passed(self, file: OpenFile, position: int, data: memoryview) -> None:
        """Take notice of bytes of a file that were just read; called by one thread at a time."""
        ...

    def no_more(self) -> None:
        """Hear that bytes are copied without being read."""
        ...


class _Writes:
    """A range of a target, for what takes its bytes by name."""

    def __init__(self, sink: Sink, name: str, offset: int) -> None:
        self._sink, self._name, self._offset = sink, name, offset

    def note(self, data: memoryview) -> None:
        """Nothing is made of bytes that are about to be written."""

    def write(self, place: int, data: memoryview) -> None:
        self._sink.write_from(self._name, self._offset + place, data)

    def close(self) -> None:
        """All of it was taken."""


class Executor:
    """Carries out the jobs of a plan, one at a time for each calling thread."""

    def __init__(
        self, plan: Plan, reader: CheckpointReader, sink: Sink, progress: Progress, watcher: Watcher | None = None
    ) -> None:
        self.plan = plan
        self.reader = reader
        self.sink = sink
        self.progress = progress
        self.watcher = watcher
        self.stopped = threading.Event()
        self._local = threading.local()
        self._sharing = sink if isinstance(sink, SharingWriter) else None
        self._ranges = sink if isinstance(sink, RangesWriter) else None
        self._reads_here = all(file.is_local for file in reader.files.values())

    def stop(self) -> None:
        """Let the jobs that run end early; what they have written is thrown away."""
        self.stopped.set()

    def run(self, job: Job) -> None:
        """Carry out one job.

        Raises:
            CheckpointError: the source can't be read, or a value can't be converted.
            OutputError: the target can't be written.
        """
        if isinstance(job, RangeJob):
            for copy in self._copies(job):
                while not copy.all_read and not self.stopped.is_set():
                    self.progress(copy.put(*copy.take()))
        elif isinstance(job, PanelJob):
            self._gather(job)
        else:
            self._generate(job)

    def begin(self, job: RangeJob) -> list[RangeCopy] | None:
        """See `Worker`: all threads copy together, so that each range is read from front to back.

        From a store each reads a range of its own: an answer takes long, and several can be on their way.
        """
        return self._copies(job) if self._reads_here else None

    def _copies(self, job: RangeJob) -> list[RangeCopy]:
        source = self.plan.tensor(job.source).name
        target = self.plan.targets[job.target].info.name
        place = None if self.plan.is_made(job.source) else place_of(self.reader, source)
        first, last = self._share(job, place, target)
        rest = [(start, stop) for start, stop in ((0, first), (last, job.nbytes)) if start < stop]
        if not rest:
            return []
        read = self._reading(job, source, place)
        return [
            RangeCopy(read, self._writing(target, job.target_offset + start, stop - start), start, stop)
            for start, stop in rest
        ]

    def _reading(self, job: RangeJob, source: str, place: tuple[OpenFile, int] | None) -> Read:
        """Reads the job's bytes, from its beginning on; what is the same for all of them is looked up once."""
        offset, watcher = job.source_offset, self.watcher
        if place is None:
            reader = reader_of(self.plan, job.source, self.reader)
            return lambda done, buffer: reader.read_into(source, offset + done, buffer)
        file, position = place[0], place[1] + offset
        if watcher is None:
            return lambda done, buffer: file.read_into(position + done, buffer)

        def read(done: int, buffer: memoryview) -> None:
            file.read_into(position + done, buffer)
            watcher.passed(file, position + done, buffer)

        return read

    def _writing(self, target: str, offset: int, nbytes: int) -> RangeWriter:
        if self._ranges is not None:
            return self._ranges.open_range(target, offset, nbytes)
        return _Writes(self.sink, target, offset)

    def _share(self, job: RangeJob, place: tuple[OpenFile, int] | None, target: str) -> tuple[int, int]:
        """Let the output's file share what it can with the source's; returns what of the job's bytes is done."""
        if self._sharing is None or job.nbytes < LEAST_NBYTES or place is None:
            return 0, 0
        file, position = place
        if not isinstance(file, LocalFile):
            return 0, 0
        from_place = (file.descriptor, position + job.source_offset)
        first, last = self._sharing.share_from(target, job.target_offset, job.nbytes, from_place)
        if first < last:
            self.progress(last - first)
            if self.watcher is not None:
                self.watcher.no_more()
        return first, last

    def _panel(self, nbytes: int) -> Array:
        """This thread's panel, kept from job to job: memory freed and taken again piles up in the allocator."""
        import numpy as np

        panel: Array | None = getattr(self._local, "panel", None)
        if panel is None or panel.nbytes < nbytes:
            self._local.panel = panel = None  # the old one goes before the new one comes
            self._local.panel = panel = np.empty(nbytes, dtype="u1")
        return panel[:nbytes]

    def _gather(self, job: PanelJob) -> None:
        target = self.plan.targets[job.target]
        width = max(target.info.dtype.bits, 8) // 8
        panel = self._panel((job.stop - job.start) * width).view(f"u{width}")
        for move in job.moves:
            source = self.plan.tensor(move.source)
            reader = reader_of(self.plan, move.source, self.reader)
            source_width = max(source.dtype.bits, 8) // 8
            Gatherer(reader, source, target.operations, source_width).fill(panel, job.start, move)
        for fill in job.fills:
            fill_box(panel, job.start, fill.copy, fill.generator.generate(target.info, 0, 1))
        data = memoryview(panel.data).cast("B")
        writer = self._writing(target.info.name, job.start * width, len(data))
        # In pieces: a file system gives a large write large folios, of memory that nobody has touched for long.
        for done in range(0, len(data), COPY_BUFFER):
            part = data[done : done + COPY_BUFFER]
            writer.note(part)
            writer.write(done, part)
            self.progress(len(part))
        writer.close()

    def _generate(self, job: GenerateJob) -> None:
        target = self.plan.targets[job.target]
        if target.generator is None:
            raise AssertionError("a target without a generator has no generate job")
        raw = target.generator.generate(target.info, job.start, job.stop)
        self.sink.write_from(target.info.name, job.start * raw.itemsize, memoryview(raw.data).cast("B"))
        self.progress(raw.nbytes)


Finished = Callable[[int, FileDigests | None], None]
"""Called with the number of a shard that is finished, and what its file holds if digests are wanted."""


def execute(
    plan: Plan,
    reader: CheckpointReader,
    writer: CheckpointWriter,
    budget: Budget,
    progress: Progress = lambda _: None,
    *,
    kept: Collection[int] = (),
    finished: Finished = lambda _, __: None,
    watcher: Watcher | None = None,
) -> None:
    """Write all shards of a plan, on `budget.threads` threads, each in about the order of its bytes.

    A shard is read back and flushed by a thread of its own, while the next one is written.

    Args:
        plan: what to write.
        reader: the source.
        writer: of the plan's shards.
        budget: memory and threads.
        progress: called with the number of bytes just written, from several threads.
        kept: the numbers of shards that are there already.
        finished: called for each of the others, one after the other, from another thread.
        watcher: hears of what is read of plain ranges.

    Raises:
        CheckpointError, OutputError: see `Executor.run`; nothing is finished then.
    """
    from concurrent.futures import ThreadPoolExecutor

    executor = Executor(plan, reader, writer, progress, watcher)
    with (
        ThreadPoolExecutor(budget.threads, thread_name_prefix="weightmap") as pool,
        ThreadPoolExecutor(1, thread_name_prefix="weightmap-finish") as finisher,
    ):
        finishing: Future[None] | None = None
        try:
            for number, targets in enumerate(plan.shard_targets()):
                if number in kept:
                    writer.keep_shard(number)
                    progress(sum(plan.targets[index].info.nbytes for index in targets))
                    continue
                writer.start_shard(number)
                work = (job for index in reading_order(plan, targets) for job in jobs(plan, index, budget))
                run_jobs(pool, executor, work, budget.threads)
                if finishing is not None:
                    finishing.result()
                finishing = finisher.submit(_finish, writer, number, finished)
            if finishing is not None:
                finishing.result()
        except BaseException:
            executor.stop()
            writer.stop()
            for threads in (pool, finisher):
                threads.shutdown(wait=True, cancel_futures=True)
            raise


def _finish(writer: CheckpointWriter, shard: int, finished: Finished) -> None:
    finished(shard, writer.finish_shard(shard))


def materialize(plan: Plan, target: int, reader: CheckpointReader, budget: Budget) -> bytearray:
    """The bytes of one target, in memory."""
    sink = _MemorySink(plan.targets[target].info.nbytes)
    executor = Executor(plan, reader, sink, lambda _: None)
    for job in jobs(plan, target, budget):
        executor.run(job)
    return sink.data


class _MemorySink:
    def __init__(self, nbytes: int) -> None:
        self.data = bytearray(nbytes)

    def write_from(self, name: str, offset: int, data: memoryview) -> None:
        del name  # there is only one
        self.data[offset : offset + len(data)] = data
