"""The bytes of tensors in order, whether they lie in a checkpoint or would be made by a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from msgspec import Struct

from converters.engine import Executor
from converters.operations.numeric import raw_dtype
from converters.plan import Plan
from converters.schedule import Budget, Job, RangeJob, jobs
from converters.storage.base import CheckpointReader
from converters.tensor_info import TensorInfo

CHUNK = 1 << 20
"""Bytes of a stored tensor that are read at once."""

Take = Callable[[memoryview], bool]
"""Is given the next bytes, which it must not keep; returns whether it wants more."""


class Contents(Protocol):
    """The tensors of one side, by name."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Their names, shapes and dtypes."""
        ...

    def stream(self, name: str, take: Take, start: int = 0) -> None:
        """Give the bytes of a tensor from byte `start` on, in order, until `take` wants no more.

        Raises:
            CheckpointError: they can't be read or made.
        """
        ...


class Stored(Struct, frozen=True):
    """Tensors as a checkpoint holds them."""

    reader: CheckpointReader

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """See `Contents`."""
        return self.reader.tensors

    def stream(self, name: str, take: Take, start: int = 0) -> None:
        """See `Contents`."""
        nbytes = self.reader.tensors[name].nbytes
        buffer = memoryview(bytearray(min(CHUNK, max(0, nbytes - start))))
        for position in range(start, nbytes, CHUNK):
            part = buffer[: min(CHUNK, nbytes - position)]
            self.reader.read_into(name, position, part)
            if not take(part):
                return


class Made:
    """Tensors as a plan makes them of a checkpoint."""

    def __init__(self, plan: Plan, reader: CheckpointReader, budget: Budget) -> None:
        self.plan = plan
        self.reader = reader
        self.budget = budget
        self._numbers = {target.info.name: number for number, target in enumerate(plan.targets)}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """See `Contents`."""
        return {target.info.name: target.info for target in self.plan.targets}

    def stream(self, name: str, take: Take, start: int = 0) -> None:
        """See `Contents`."""
        number = self._numbers[name]
        sink = _Sink(take, start)
        executor = Executor(self.plan, self.reader, sink, lambda _: None)
        width = raw_dtype(self.plan.targets[number].info.dtype).itemsize
        try:
            for job in jobs(self.plan, number, self.budget):
                if _end(job, width) > start:
                    executor.run(job)
        except _EnoughError:
            return


class _EnoughError(Exception):
    """Nobody wants the rest."""


class _Sink(Struct):
    take: Take
    start: int

    def write_from(self, name: str, offset: int, data: memoryview) -> None:
        del name  # there is only one
        if offset + len(data) > self.start and not self.take(data[max(0, self.start - offset) :]):
            raise _EnoughError


def _end(job: Job, width: int) -> int:
    return job.target_offset + job.nbytes if isinstance(job, RangeJob) else job.stop * width


def collect(contents: Contents, name: str, start: int, nbytes: int) -> bytes:
    """At most `nbytes` bytes of a tensor, from byte `start` on."""
    found = bytearray()

    def take(data: memoryview) -> bool:
        found.extend(data[: nbytes - len(found)])
        return len(found) < nbytes

    contents.stream(name, take, start)
    return bytes(found)
