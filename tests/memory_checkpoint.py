"""A checkpoint in memory that speaks the storage protocols, so that properties can be tried thousands of times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from converters.errors import Problem
from converters.sharding import Shard
from converters.storage.base import OpenFile
from converters.tensor_info import TensorInfo


class MemoryReader:
    """Tensors as bytes, by name."""

    def __init__(self, tensors: Mapping[str, TensorInfo], data: Mapping[str, bytes]) -> None:
        self.path = Path("memory")
        self.tensors = tensors
        self.data = data
        self.file_of = dict.fromkeys(tensors, "memory")
        self.files: dict[str, OpenFile] = {}
        self.notes: list[Problem] = []

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        part = self.data[name][offset : offset + len(buffer)]
        assert len(part) == len(buffer), f"read past the end of {name}"
        buffer[:] = part

    def check_unchanged(self) -> None:
        pass

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class MemoryWriter:
    """Collects what is written, and refuses to take a byte twice."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.tensors = {info.name: info for shard in shards for info in shard.tensors}
        self.data = {name: bytearray(info.nbytes) for name, info in self.tensors.items()}
        self.written = {name: bytearray(info.nbytes) for name, info in self.tensors.items()}

    def start_shard(self, shard: int) -> None:
        pass

    def open_range(self, name: str, offset: int, nbytes: int) -> MemoryRange:
        assert offset + nbytes <= len(self.data[name]), f"a range goes past the end of {name}"
        return MemoryRange(self, name, offset, offset + nbytes)

    def write_from(self, name: str, offset: int, data: memoryview) -> None:
        stop = offset + len(data)
        assert stop <= len(self.data[name]), f"written past the end of {name}"
        assert not any(self.written[name][offset:stop]), f"a byte of {name} is written twice"
        self.data[name][offset:stop] = data
        self.written[name][offset:stop] = b"\1" * len(data)

    def finish_shard(self, shard: int) -> None:
        pass

    def keep_shard(self, shard: int) -> None:
        raise AssertionError(f"there is no shard {shard} to keep")

    def finish(self) -> Sequence[Path]:
        for name, written in self.written.items():
            assert all(written), f"a byte of {name} is never written"
        return []

    def stop(self) -> None:
        pass

    def abort(self) -> None:
        pass

    def reader(self) -> MemoryReader:
        """What was written, to be read."""
        return MemoryReader(self.tensors, {name: bytes(data) for name, data in self.data.items()})


class MemoryRange:
    """Takes the bytes of a range, each of them once, and after it was noted in its turn."""

    def __init__(self, writer: MemoryWriter, name: str, start: int, stop: int) -> None:
        self.writer, self.name, self.start, self.stop = writer, name, start, stop
        self.noted = bytearray()

    def note(self, data: memoryview) -> None:
        self.noted += data

    def write(self, place: int, data: memoryview) -> None:
        assert self.noted[place : place + len(data)] == data, f"{self.name}: bytes that weren't noted at {place}"
        self.writer.write_from(self.name, self.start + place, data)

    def close(self) -> None:
        assert len(self.noted) == self.stop - self.start, f"a range of {self.name} has {len(self.noted)} bytes"
        assert all(self.writer.written[self.name][self.start : self.stop]), f"{self.name} isn't written, and closed"
