"""Runs a plan: the only place where tensor bytes move. Plain ranges pass through a small buffer and no library."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Protocol

from converters.gather import Gatherer, fill_box
from converters.made_reader import reader_of
from converters.plan import Plan
from converters.schedule import (
    COPY_BUFFER,
    Budget,
    GenerateJob,
    Job,
    PanelJob,
    RangeJob,
    jobs,
)
from converters.storage.base import CheckpointReader, CheckpointWriter
from converters.storage.file_digests import FileDigests
from converters.storage.open_files import LocalFile
from converters.storage.reflink import LEAST_NBYTES, SharingWriter
from converters.storage.shared_blocks import place_of

if TYPE_CHECKING:
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


_local = threading.local()


def _buffer() -> memoryview:
    """This thread's copy buffer, made once."""
    buffer: memoryview | None = getattr(_local, "buffer", None)
    if buffer is None:
        buffer = memoryview(bytearray(COPY_BUFFER))
        _local.buffer = buffer
    return buffer


class Executor:
    """Carries out the jobs of a plan, one at a time for each calling thread."""

    def __init__(self, plan: Plan, reader: CheckpointReader, sink: Sink, progress: Progress) -> None:
        self.plan = plan
        self.reader = reader
        self.sink = sink
        self.progress = progress
        self.stopped = threading.Event()
        self._local = threading.local()
        self._sharing = sink if isinstance(sink, SharingWriter) else None

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
            self._copy(job)
        elif isinstance(job, PanelJob):
            self._gather(job)
        else:
            self._generate(job)

    def _copy(self, job: RangeJob) -> None:
        source = self.plan.tensor(job.source).name
        reader = reader_of(self.plan, job.source, self.reader)
        target = self.plan.targets[job.target].info.name
        buffer = _buffer()
        first, last = self._share(job, source, target)
        for start, stop in ((0, first), (last, job.nbytes)):
            for done in range(start, stop, COPY_BUFFER):
                if self.stopped.is_set():
                    return
                part = buffer[: min(COPY_BUFFER, stop - done)]
                reader.read_into(source, job.source_offset + done, part)
                self.sink.write_from(target, job.target_offset + done, part)
                self.progress(len(part))

    def _share(self, job: RangeJob, source: str, target: str) -> tuple[int, int]:
        """Let the output's file share what it can with the source's; returns what of the job's bytes is done."""
        if self._sharing is None or job.nbytes < LEAST_NBYTES or self.plan.is_made(job.source):
            return 0, 0
        place = place_of(self.reader, source)
        if place is None:
            return 0, 0
        file, position = place
        if not isinstance(file, LocalFile):
            return 0, 0
        from_place = (file.descriptor, position + job.source_offset)
        first, last = self._sharing.share_from(target, job.target_offset, job.nbytes, from_place)
        if first < last:
            self.progress(last - first)
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
        self.sink.write_from(target.info.name, job.start * width, memoryview(panel.data).cast("B"))
        self.progress(panel.nbytes)

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
) -> None:
    """Write all shards of a plan, on `budget.threads` threads, in the order of the output's bytes.

    A shard is read back and flushed by a thread of its own, while the next one is written.

    Args:
        plan: what to write.
        reader: the source.
        writer: of the plan's shards.
        budget: memory and threads.
        progress: called with the number of bytes just written, from several threads.
        kept: the numbers of shards that are there already.
        finished: called for each of the others, one after the other, from another thread.

    Raises:
        CheckpointError, OutputError: see `Executor.run`; nothing is finished then.
    """
    executor = Executor(plan, reader, writer, progress)
    with (
        ThreadPoolExecutor(budget.threads, thread_name_prefix="weightmap") as pool,
        ThreadPoolExecutor(1, thread_name_prefix="weightmap-finish") as finisher,
    ):
        finishing: Future[None] | None = None
        try:
            start = 0
            for number, shard in enumerate(plan.shards):
                targets = range(start, start + len(shard.tensors))
                start = targets.stop
                if number in kept:
                    writer.keep_shard(number)
                    progress(sum(info.nbytes for info in shard.tensors))
                    continue
                writer.start_shard(number)
                run_jobs(
                    pool, executor, (job for index in targets for job in jobs(plan, index, budget)), budget.threads
                )
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


def run_jobs(pool: ThreadPoolExecutor, executor: Executor, work: Iterable[Job], threads: int) -> None:
    """Run jobs with as few waiting as keep the threads busy: a queue of panels would be memory nobody counted."""
    running: set[Future[None]] = set()
    for batch in _batches(work):
        if len(running) >= threads + 1:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
        running.add(pool.submit(_run_batch, executor, batch))
    for future in running:
        future.result()


def _run_batch(executor: Executor, batch: list[Job]) -> None:
    for job in batch:
        executor.run(job)


def _batches(work: Iterable[Job]) -> Iterator[list[Job]]:
    """Small jobs travel together, so that a checkpoint of many small tensors isn't bound by the queue."""
    batch: list[Job] = []
    nbytes = 0
    for job in work:
        batch.append(job)
        nbytes += job.nbytes if isinstance(job, RangeJob) else job.memory
        if nbytes >= SMALL_BATCH:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch


SMALL_BATCH = 4 << 20
"""Bytes of plain copying that are worth a trip through the queue."""


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
