"""Ranges that several threads copy together: read in order, written once, closed when all of it is there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters import copying
from converters.copying import RangeCopy, run_jobs
from converters.schedule import Job, RangeJob

BUFFER = 16


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "COPY_BUFFER", BUFFER)
    monkeypatch.setattr(copying, "_local", threading.local())


class Range:
    """A range that is being written, and everything that was asked of it."""

    def __init__(self, nbytes: int) -> None:
        self.noted = bytearray()
        self.data, self.written = bytearray(nbytes), bytearray(nbytes)
        self.closed = 0

    def note(self, data: memoryview) -> None:
        self.noted += data

    def write(self, place: int, data: memoryview) -> None:
        assert not any(self.written[place : place + len(data)]), "written twice"
        self.data[place : place + len(data)] = data
        self.written[place : place + len(data)] = b"\1" * len(data)

    def close(self) -> None:
        assert all(self.written), "closed too early"
        self.closed += 1


@dataclass
class Worker:
    """Copies ranges of one source, and notes in which order it was read."""

    source: bytes
    apart: set[int] = field(default_factory=set)
    fails: int = -1
    ranges: dict[int, Range] = field(default_factory=dict)
    reads: list[tuple[int, int]] = field(default_factory=list)
    ran: list[Job] = field(default_factory=list)
    count: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    def progress(self, nbytes: int) -> None:
        self.count += nbytes

    def begin(self, job: RangeJob) -> list[RangeCopy] | None:
        if job.target in self.apart:
            return None
        middle = job.nbytes // 3
        copies = []
        for number, (start, stop) in enumerate(((0, middle), (middle, job.nbytes))):
            if start < stop:
                written = self.ranges[2 * job.target + number] = Range(stop - start)
                copies.append(RangeCopy(self.reading(job), written, start, stop))
        return copies

    def reading(self, job: RangeJob) -> Any:
        def read(place: int, buffer: memoryview) -> None:
            start = job.source_offset + place
            if start <= self.fails < start + len(buffer):
                raise MemoryError
            self.reads.append((start, len(buffer)))
            buffer[:] = self.source[start : start + len(buffer)]

        return read

    def run(self, job: Job) -> None:
        self.ran.append(job)


def jobs_of(sizes: list[int]) -> Iterator[RangeJob]:
    position = 0
    for number, size in enumerate(sizes):
        yield RangeJob(number, 0, position, 0, size)
        position += size


@given(st.lists(st.integers(1, 100), max_size=12), st.integers(1, 4), st.sets(st.integers(0, 11), max_size=2))
def test_each_byte_is_read_in_order_and_written_once(sizes: list[int], threads: int, apart: set[int]) -> None:
    source = bytes(number * 37 % 251 for number in range(sum(sizes)))
    worker = Worker(source, apart)
    with ThreadPoolExecutor(threads) as pool:
        run_jobs(pool, worker, jobs_of(sizes), threads)
    position = 0
    expected_reads = []
    for number, size in enumerate(sizes):
        if number not in apart:
            middle = size // 3
            parts = [bytes(worker.ranges[n].data) for n in (2 * number, 2 * number + 1) if n in worker.ranges]
            assert b"".join(parts) == source[position : position + size]
            for start, stop in ((0, middle), (middle, size)):
                expected_reads += [(position + at, min(BUFFER, stop - at)) for at in range(start, stop, BUFFER)]
        position += size
    assert worker.reads == expected_reads
    assert all(each.closed == 1 and each.noted == each.data for each in worker.ranges.values())
    assert [job.target for job in worker.ran] == sorted(apart & set(range(len(sizes)))) or threads > 1
    assert worker.count == sum(size for number, size in enumerate(sizes) if number not in apart)


def test_all_threads_end_when_one_fails() -> None:
    sizes = [BUFFER * 10] * 10
    worker = Worker(bytes(sum(sizes)), fails=BUFFER * 25)
    with ThreadPoolExecutor(3) as pool, pytest.raises(MemoryError):
        run_jobs(pool, worker, jobs_of(sizes), 3)
    assert worker.stopped.is_set()
    assert sum(nbytes for _, nbytes in worker.reads) <= worker.fails, "read on after the failure"
    assert not any(worker.ranges[number].closed for number in (5, 6) if number in worker.ranges)


def test_nothing_is_begun_after_a_stop() -> None:
    worker = Worker(bytes(100))
    worker.stopped.set()
    with ThreadPoolExecutor(2) as pool:
        run_jobs(pool, worker, jobs_of([100]), 2)
    assert worker.reads == []


def test_a_failure_of_the_jobs_themselves_is_raised() -> None:
    def broken() -> Iterator[Job]:
        yield RangeJob(0, 0, 0, 0, 5)
        raise ValueError("no more")

    with ThreadPoolExecutor(2) as pool, pytest.raises(ValueError, match="no more"):
        run_jobs(pool, Worker(bytes(5)), broken(), 2)
