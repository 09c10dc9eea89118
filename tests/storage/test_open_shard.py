"""A file while it is written: ranges in any order, each counted once it is closed."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converters.errors import OutputError
from converters.sharding import Shard
from converters.storage import open_shard
from converters.storage.base import WriteOptions
from converters.storage.open_shard import OpenShard, Pieces
from converters.tensor_info import DType, TensorInfo

HEADER, TRAILER = b"header--", b"trailer"
SHARD = Shard(
    "s.bin", (TensorInfo("a", (7, 5), DType.U8), TensorInfo("none", (0,), DType.U8), TensorInfo("b", (41,), DType.I8))
)
CONTENT = {"a": bytes(range(1, 36)), "none": b"", "b": bytes(range(101, 142))}
WHOLE = HEADER + CONTENT["a"] + CONTENT["b"] + TRAILER


class Layout:
    """Tensors one after the other, between a header and a trailer that is written last."""

    file_nbytes = len(WHOLE)

    def __init__(self) -> None:
        self.bytes_passed: dict[str, bytearray] = {name: bytearray(len(data)) for name, data in CONTENT.items()}

    def position(self, name: str) -> int:
        return len(HEADER) + (0 if name == "a" else len(CONTENT["a"]))

    def before(self) -> Pieces:
        return [(0, HEADER)]

    def passed(self, name: str, offset: int, data: memoryview) -> None:
        self.bytes_passed[name][offset : offset + len(data)] = data

    def after(self, descriptor: int, where: str) -> Pieces:
        del descriptor, where
        return [(len(WHOLE) - len(TRAILER), TRAILER)]

    def differs(self, header: object) -> bool:
        raise NotImplementedError


def opened(directory: Path, *, digest: str | None = "xxh3", sync: bool = True) -> tuple[OpenShard, Layout]:
    layout = Layout()
    return OpenShard(directory / "s.bin", SHARD, layout, WriteOptions(sync=sync, digest=digest)), layout


def put(shard: OpenShard, name: str, start: int, stop: int, *, step: int = 100) -> None:
    writer = shard.open_range(name, start, stop - start)
    pieces = [(at, memoryview(CONTENT[name])[at : min(at + step, stop)]) for at in range(start, stop, step)]
    for _, piece in pieces:
        writer.note(piece)
    for at, piece in reversed(pieces):
        writer.write(at - start, piece)
    writer.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.dictionaries(st.sampled_from("ab"), st.sets(st.integers(1, 34), max_size=6)),
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from([None, "xxh3", "sha256"]),
)
def test_ranges_of_several_threads(
    tmp_path: Path, cuts: dict[str, set[int]], step: int, threads: int, digest: str | None
) -> None:
    (tmp_path / "s.bin").unlink(missing_ok=True)
    shard, layout = opened(tmp_path, digest=digest, sync=False)
    work: list[tuple[str, int, int]] = []
    for name in "ab":
        borders = [0, *sorted(cuts.get(name, set())), len(CONTENT[name])]
        work += [(name, start, stop) for start, stop in pairwise(borders)]

    def write(first: int) -> None:
        for name, start, stop in work[first::threads]:
            put(shard, name, start, stop, step=step)

    writing = [threading.Thread(target=write, args=(first,)) for first in range(threads)]
    for thread in writing:
        thread.start()
    for thread in writing:
        thread.join()
    found = shard.finish()
    assert (tmp_path / "s.bin").read_bytes() == WHOLE
    assert layout.bytes_passed == CONTENT
    if digest != "xxh3":
        assert (found is None) == (digest is None)
        return
    assert found is not None
    assert found.digest == f"xxh3:{xxhash.xxh3_128_hexdigest(WHOLE)}"
    assert {each.name: each.digest for each in found.tensors} == {
        name: f"xxh3:{xxhash.xxh3_128_hexdigest(data)}" for name, data in CONTENT.items()
    }


@pytest.mark.parametrize(
    ("ranges", "what"),
    [
        ([("a", 0, 35)], r"b: 41 of its 41 bytes were never written"),
        ([("a", 0, 35), ("b", 0, 40)], r"b: 1 of its 41 bytes were never written"),
        ([("a", 0, 35), ("b", 0, 41), ("b", 40, 41)], r"b: 1 of its 41 bytes were written twice"),
    ],
)
def test_what_is_missing_or_too_much_is_counted(tmp_path: Path, ranges: list[tuple[str, int, int]], what: str) -> None:
    before = threading.active_count()
    shard, _ = opened(tmp_path)
    for each in ranges:
        put(shard, *each)
    with pytest.raises(OutputError, match=what):
        shard.finish()
    assert threading.active_count() == before


def test_a_range_that_is_not_closed_counts_for_nothing(tmp_path: Path) -> None:
    shard, _ = opened(tmp_path)
    put(shard, "a", 0, 35)
    writer = shard.open_range("b", 0, 41)
    writer.note(memoryview(CONTENT["b"]))
    writer.write(0, memoryview(CONTENT["b"]))
    with pytest.raises(OutputError, match="b: 41 of its 41 bytes were never written"):
        shard.finish()


@pytest.mark.parametrize(("offset", "nbytes"), [(-1, 2), (0, 36), (35, 1)])
def test_a_range_outside_of_its_tensor_is_refused(tmp_path: Path, offset: int, nbytes: int) -> None:
    shard, _ = opened(tmp_path)
    with pytest.raises(ValueError, match="outside of a, which has 35"):
        shard.open_range("a", offset, nbytes)
    shard.close()


def test_stopping_and_closing_leave_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    shard, _ = opened(tmp_path)
    shard.stop()
    put(shard, "a", 0, 35)
    put(shard, "b", 0, 41)
    with pytest.raises(OutputError, match="stopped before it was complete"):
        shard.finish()
    assert threading.active_count() == before


def test_the_disk_is_set_to_work_often_and_given_the_size_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(open_shard, "_WRITEBACK_NBYTES", 20)
    monkeypatch.setattr(open_shard, "_ALLOCATED_NBYTES", 30)
    monkeypatch.setattr(open_shard, "start_writeback", lambda _, __: told.append("write"))
    monkeypatch.setattr(open_shard, "allocate", lambda _, nbytes, __: told.append(nbytes))
    shard, _ = opened(tmp_path)
    put(shard, "a", 0, 3)
    assert told == []
    put(shard, "a", 3, 35, step=5)
    assert told == [len(WHOLE), "write"]
    put(shard, "b", 0, 41, step=10)
    assert told == [len(WHOLE), "write", "write", "write"]
    shard.finish()
    assert told == [len(WHOLE), "write", "write", "write", "write"]


def test_a_file_that_is_there_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "s.bin").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"s\.bin"):
        opened(tmp_path)
    assert (tmp_path / "s.bin").read_bytes() == b"mine"
