"""One pass over a file, against the digests of slices of its bytes; and that every flipped byte is found."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from converters.errors import CheckpointError
from converters.storage import file_digests
from converters.storage.file_digests import Extent, FileDigests, Piece, digest_file

CHUNK = 16
"""Instead of a mebibyte, so that small files have many borders."""


@pytest.fixture(autouse=True, scope="module")
def small_chunks() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_digests, "CHUNK", CHUNK)
        yield


def whole(algorithm: str, data: bytes) -> str:
    made = xxhash.xxh3_128(data) if algorithm == "xxh3" else hashlib.sha256(data)
    return f"{algorithm}:{made.hexdigest()}"


def look(data: bytes, extents: list[Extent], pieces: Any = (), algorithm: str = "xxh3") -> Any:
    def read_into(position: int, buffer: memoryview) -> None:
        buffer[:] = data[position : position + len(buffer)]

    return digest_file("f", len(data), read_into, extents, algorithm, pieces=pieces)


def pieces_of(data: bytes, spans: list[tuple[int, int]]) -> list[Piece]:
    return [(start, end, xxhash.xxh3_64_intdigest(data[start:end])) for start, end in spans if start < end]


@st.composite
def files(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, int]]]:
    """A file, and spans in it that don't overlap: some are empty, some adjoin, some have a gap before them."""
    data = draw(st.binary(max_size=5 * CHUNK))
    borders = st.one_of(st.integers(0, len(data)), st.integers(0, len(data) // CHUNK).map(lambda n: n * CHUNK))
    cuts = sorted(draw(st.lists(borders, max_size=12)))
    spans = [(cuts[number], cuts[number + 1]) for number in range(len(cuts) - 1) if draw(st.booleans())]
    return data, spans


@given(files(), st.sampled_from(["xxh3", "sha256"]), st.randoms(use_true_random=False))
def test_digests_are_those_of_the_slices(drawn: Any, algorithm: str, chance: Any) -> None:
    data, spans = drawn
    extents = [Extent(f"t{number}", start, end) for number, (start, end) in enumerate(spans)]
    chance.shuffle(extents)
    found, wrong = look(data, extents, algorithm=algorithm)
    assert wrong is None
    assert (found.file, found.nbytes, found.digest) == ("f", len(data), whole(algorithm, data))
    assert {(each.name, each.start, each.end, each.digest) for each in found.tensors} == {
        (f"t{number}", start, end, whole(algorithm, data[start:end])) for number, (start, end) in enumerate(spans)
    }
    starts = [(each.start, each.end) for each in found.tensors]
    assert starts == sorted(starts), "in the order of their bytes"


@given(files(), st.data())
def test_a_flipped_byte_is_found_in_its_piece(drawn: Any, more: st.DataObject) -> None:
    data, spans = drawn
    pieces = pieces_of(data, spans)
    assert look(data, [], pieces)[1] is None
    if not data:
        return
    place = more.draw(st.integers(0, len(data) - 1))
    bit = 1 << more.draw(st.integers(0, 7))
    damaged = data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]
    expected = next((start for start, end in spans if start <= place < end), None)
    assert look(damaged, [], pieces)[1] == expected


def test_the_first_wrong_piece_is_named() -> None:
    data = bytes(range(60))
    pieces = pieces_of(data, [(0, 20), (20, 40), (40, 60)])
    damaged = data[:25] + b"\xff" + data[26:45] + b"\xff" + data[46:]
    assert look(damaged, [], pieces)[1] == 20


def test_bytes_count_by_their_place_and_not_by_their_order() -> None:
    data = b"a" * 20 + b"b" * 20
    assert look(data[20:] + data[:20], [], pieces_of(data, [(0, 20), (20, 40)]))[1] == 0


@pytest.mark.parametrize("nbytes", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_empty_tensors_have_digests_wherever_they_are(nbytes: int) -> None:
    extents = [Extent(f"t{place}", place, place) for place in range(nbytes + 1)]
    found, _ = look(b"x" * nbytes, extents)
    assert [each.name for each in found.tensors] == [each.name for each in extents]
    assert {each.digest for each in found.tensors} == {whole("xxh3", b"")}


def test_empty_tensors_between_others() -> None:
    extents = [Extent("a", 0, CHUNK), Extent("none", CHUNK, CHUNK), Extent("b", CHUNK, CHUNK + 3)]
    found, _ = look(b"x" * (CHUNK + 3), extents)
    assert [each.name for each in found.tensors] == ["a", "none", "b"]
    assert [each.digest for each in found.tensors] == [whole("xxh3", b"x" * n) for n in (CHUNK, 0, 3)]


def test_what_lies_outside_of_the_file_has_no_digest() -> None:
    found, wrong = look(b"x" * 20, [Extent("in", 0, 20), Extent("out", 20, 21)], [(20, 30, 7)])
    assert [each.name for each in found.tensors] == ["in"]
    assert wrong is None


def test_reading_is_in_order_and_reported() -> None:
    positions: list[int] = []
    passed: list[int] = []

    def read_into(position: int, buffer: memoryview) -> None:
        positions.append(position)
        buffer[:] = bytes(len(buffer))

    digest_file("f", 2 * CHUNK + 5, read_into, [], "xxh3", passed=passed.append)
    assert positions == [0, CHUNK, 2 * CHUNK]
    assert passed == [CHUNK, CHUNK, 5]


def test_what_the_reader_raises_comes_out() -> None:
    def fail(position: int, buffer: memoryview) -> None:
        raise CheckpointError(f"no byte {position} of {len(buffer)}")

    with pytest.raises(CheckpointError, match=f"no byte 0 of {CHUNK}"):
        digest_file("f", 100, fail, [], "xxh3")


@given(files())
def test_json_there_and_back(drawn: Any) -> None:
    data, spans = drawn
    found, _ = look(data, [Extent(f"t\n{n}", *span) for n, span in enumerate(spans)])
    assert FileDigests.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"file": "f"},
        {"file": "f", "nbytes": 1, "digest": "d"},
        {"file": "f", "nbytes": 1, "digest": "", "tensors": {"a": [1]}},
    ],
)
def test_json_that_is_something_else(wrong: dict[str, Any]) -> None:
    with pytest.raises((KeyError, ValueError, TypeError)):
        FileDigests.from_json(wrong)
