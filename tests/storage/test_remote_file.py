"""Ranges of files in stores: how many requests, how much memory, and what isn't taken for whole."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from converters.errors import CheckpointError
from converters.storage import remote_file
from converters.storage.open_files import OpenFiles
from converters.storage.remote_file import BLOCK, CACHE, LONGEST, RemoteFile
from converters.storage.remote_path import Entry, RemotePath

DATA = random.Random(7).randbytes(9_000_001)  # noqa: S311 - no secret


class Store:
    """One file, and what was read of it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.identity = "first"
        self.reads: list[tuple[int, int]] = []

    def entry(self, key: str, *, fresh: bool = False) -> Entry | None:
        del key, fresh
        return Entry(is_dir=False, nbytes=len(self.data), identity=(("etag", self.identity),))

    def names(self, key: str) -> list[str]:
        raise NotImplementedError(key)

    def read(self, key: str, start: int, stop: int) -> bytes:
        del key
        self.reads.append((start, stop))
        return self.data[start:stop]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    made = Store(DATA)
    monkeypatch.setattr(RemotePath, "store", lambda _: (made, "x"))
    remote_file.forget_blocks()
    yield made
    remote_file.forget_blocks()


def read(file: RemoteFile, start: int, nbytes: int) -> bytes:
    buffer = bytearray(nbytes)
    file.read_into(start, memoryview(buffer))
    return bytes(buffer)


def test_any_range_is_what_is_there(store: Store) -> None:
    file = RemoteFile(RemotePath("s3://b/x"), "x")
    draw = random.Random(1)  # noqa: S311 - no secret
    edges = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, LONGEST, len(DATA) - 1]
    for _ in range(300):
        start = draw.choice(edges) if draw.random() < 0.3 else draw.randrange(len(DATA))
        nbytes = min(draw.choice([0, 1, 13, BLOCK, BLOCK + 1, LONGEST - 1, LONGEST, LONGEST + 5]), len(DATA) - start)
        assert read(file, start, nbytes) == DATA[start : start + nbytes]
    assert all(0 < stop - start <= LONGEST + BLOCK for start, stop in store.reads)


def test_neighbours_come_in_one_request(store: Store) -> None:
    file = RemoteFile(RemotePath("s3://b/x"), "x")
    for place in range(0, BLOCK, BLOCK // 16):
        read(file, place, BLOCK // 16)
    assert store.reads == [(0, BLOCK)]


def test_what_is_read_in_sequence_is_read_ahead(store: Store) -> None:
    file = RemoteFile(RemotePath("s3://b/x"), "x")
    for place in range(0, len(DATA), 10_000):
        read(file, place, min(10_000, len(DATA) - place))
    lengths = [stop - start for start, stop in store.reads]
    assert lengths[:6] == [BLOCK, BLOCK, 2 * BLOCK, 4 * BLOCK, 8 * BLOCK, 16 * BLOCK]
    assert sum(lengths) == len(DATA), "nothing twice"


def test_memory_is_bounded_and_shared(store: Store) -> None:
    store.data = bytes(CACHE + 10 * BLOCK)
    files = [RemoteFile(RemotePath(f"s3://b/{name}"), name) for name in "abc"]
    for place in range(0, len(store.data), 1 << 20):
        for file in files:
            read(file, place, min(1 << 20, len(store.data) - place))
    blocks = remote_file._blocks._blocks
    assert sum(map(len, blocks.values())) <= CACHE
    assert len({key[0] for key in blocks}) == 3


def test_a_replaced_file_has_blocks_of_its_own(store: Store) -> None:
    assert read(RemoteFile(RemotePath("s3://b/x"), "x"), 5, 3) == DATA[5:8]
    store.data, store.identity = DATA[::-1], "second"
    assert read(RemoteFile(RemotePath("s3://b/x"), "x"), 5, 3) == DATA[::-1][5:8]


def test_a_change_is_noticed(store: Store) -> None:
    files = OpenFiles(RemotePath("s3://b"), {"x": RemotePath("s3://b/x")})
    assert files.open("x") == len(DATA)
    files.check_unchanged()
    store.identity = "second"
    with pytest.raises(CheckpointError, match="s3://b/x: the file was replaced while it was read"):
        files.check_unchanged()


def test_a_short_answer_is_an_error(store: Store) -> None:
    file = RemoteFile(RemotePath("s3://b/x"), "where")
    store.data = DATA[:100]
    with pytest.raises(CheckpointError, match=r"where: asked for bytes 0 to 262,144 \(262,144 of them\), and got 100"):
        read(file, 0, 200)
    with pytest.raises(CheckpointError, match="11 bytes are missing"):
        read(file, len(DATA) - 10, 21)


def test_a_stream_of_it(store: Store) -> None:
    with RemotePath("s3://b/x").open("rb") as stream:
        assert stream.seek(0, 2) == len(DATA)
        assert stream.seek(17) == 17
        assert stream.read() == DATA[17:]
    assert store.reads
