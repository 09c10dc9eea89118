"""Reading a file while it is written: in order whatever the order of writing, and never what isn't there yet."""

from __future__ import annotations

import random
import threading
from itertools import pairwise
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from converters.errors import CheckpointError, OutputError
from converters.storage import file_digests
from converters.storage.file_digests import Extent
from converters.storage.read_back import ReadBack

CHUNK = 16
"""Instead of 256 KiB, so that small files have many borders."""


@pytest.fixture(autouse=True, scope="module")
def small_chunks() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_digests, "CHUNK", CHUNK)
        yield


class Growing:
    """A file that is written in pieces; reading a byte that isn't written is remembered."""

    def __init__(self, content: bytes, extents: list[Extent]) -> None:
        self.content, self.data, self.written = content, bytearray(len(content)), bytearray(len(content))
        self.too_early: list[int] = []
        self.read = 0
        self.pass_ = ReadBack("f", len(content), extents, "xxh3", self.read_into, "out/f")

    def read_into(self, position: int, buffer: memoryview) -> None:
        stop = position + len(buffer)
        if not all(self.written[position:stop]):
            self.too_early.append(position)
        buffer[:] = self.data[position:stop]
        self.read = stop

    def write(self, start: int, stop: int, *, noted: bytes | None = None, compared: bool = True) -> None:
        self.data[start:stop] = self.content[start:stop]
        self.written[start:stop] = b"\1" * (stop - start)
        digest = xxhash.xxh3_64_intdigest(self.content[start:stop] if noted is None else noted)
        self.pass_.wrote(start, stop, digest if compared else None)


def digest(content: bytes) -> str:
    return f"xxh3:{xxhash.xxh3_128_hexdigest(content)}"


@st.composite
def cuts(draw: Any) -> tuple[bytes, list[tuple[int, int]]]:
    content = draw(st.binary(min_size=1, max_size=150))
    borders = sorted({0, len(content), *draw(st.lists(st.integers(0, len(content)), max_size=12))})
    return content, list(pairwise(borders))


@given(cuts(), st.randoms(use_true_random=False), st.integers(1, 3))
def test_pieces_in_any_order_of_several_threads(
    drawn: tuple[bytes, list[tuple[int, int]]], shuffler: random.Random, threads: int
) -> None:
    content, spans = drawn
    file = Growing(content, [Extent(f"t{number}", *span) for number, span in enumerate(spans)])
    shuffled = spans.copy()
    shuffler.shuffle(shuffled)

    def write(first: int) -> None:
        for start, stop in shuffled[first::threads]:
            file.write(start, stop)

    writing = [threading.Thread(target=write, args=(first,)) for first in range(threads)]
    for thread in writing:
        thread.start()
    for thread in writing:
        thread.join()
    found = file.pass_.result()
    assert found.digest == digest(content)
    assert [each.digest for each in found.tensors] == [digest(content[start:stop]) for start, stop in spans]
    assert file.too_early == []


@given(cuts(), st.data())
def test_a_bit_that_does_not_arrive_is_found(drawn: tuple[bytes, list[tuple[int, int]]], more: st.DataObject) -> None:
    content, spans = drawn
    wrong = more.draw(st.sampled_from(spans))
    place = more.draw(st.integers(wrong[0], wrong[1] - 1))
    file = Growing(content, [])
    for start, stop in more.draw(st.permutations(spans)):
        meant = bytearray(content[start:stop])
        if start <= place < stop:
            meant[place - start] ^= 1 << more.draw(st.integers(0, 7))
        file.write(start, stop, noted=bytes(meant))
    with pytest.raises(OutputError, match=f"out/f: holds something else at byte {wrong[0]:,} than was written there"):
        file.pass_.result()


def test_it_reads_what_is_there_before_the_rest_is_written() -> None:
    content = bytes(range(200))
    file = Growing(content, [])
    file.write(100, 200)
    file.write(0, 5 * CHUNK + 3)
    for _ in range(1000):
        if file.read == 5 * CHUNK:
            break
        threading.Event().wait(0.005)
    assert file.read == 5 * CHUNK
    file.write(5 * CHUNK + 3, 100)
    assert file.pass_.result().digest == digest(content)
    assert file.too_early == []


def test_what_the_file_system_shares_is_read_and_not_compared() -> None:
    content = bytes(range(100))
    file = Growing(content, [])
    file.write(0, 50, noted=b"something else", compared=False)
    file.write(50, 100)
    assert file.pass_.result().digest == digest(content)


def test_gaps_that_nobody_writes_are_part_of_the_file() -> None:
    content = bytes(50) + b"x" * 50
    file = Growing(content, [])
    file.write(50, 100)
    assert file.pass_.result().digest == digest(content)


def test_stopping_ends_it_wherever_it_is() -> None:
    file = Growing(bytes(100), [])
    file.write(0, 50)
    file.pass_.stop()
    with pytest.raises(OutputError, match="out/f: stopped before it was complete"):
        file.pass_.result()


def test_closing_waits_until_nothing_reads_any_more() -> None:
    before = threading.active_count()
    file = Growing(bytes(100), [])
    file.write(0, 50)
    file.pass_.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("raised", "expected"), [(CheckpointError("can't be read", "out/f"), OutputError), (MemoryError(), MemoryError)]
)
def test_an_error_of_reading_is_raised_where_the_result_is_asked_for(
    raised: Exception, expected: type[Exception]
) -> None:
    def fail(_: int, __: memoryview) -> None:
        raise raised

    reading = ReadBack("f", 10, [], "xxh3", fail, "out/f")
    with pytest.raises(expected):
        reading.result()


def test_an_empty_file() -> None:
    assert Growing(b"", []).pass_.result().digest == digest(b"")
