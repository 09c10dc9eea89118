from __future__ import annotations

import itertools
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.storage import crc
from converters.storage.crc import PiecewiseCrc, combine


@given(st.binary(max_size=3000), st.binary(max_size=3000))
def test_combining_is_what_zlib_computes_of_both(first: bytes, second: bytes) -> None:
    assert combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


def test_combining_takes_lengths_of_checkpoints() -> None:
    zeros, total = bytes(1 << 24), zlib.crc32(b"x")
    for _ in range(20):
        total = zlib.crc32(zeros, total)
    assert combine(zlib.crc32(b"x"), _crc_of_zeros(20 << 24), 20 << 24) == total


def _crc_of_zeros(nbytes: int) -> int:
    total = 0
    for _ in range(nbytes >> 24):
        total = zlib.crc32(bytes(1 << 24), total)
    return total


@given(st.binary(min_size=1, max_size=500), st.sets(st.integers(1, 499), max_size=30), st.randoms())
def test_pieces_in_any_order_give_the_crc_of_all(data: bytes, cuts: set[int], shuffler: random.Random) -> None:
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = list(itertools.pairwise(edges))
    shuffler.shuffle(pieces)
    whole = PiecewiseCrc(len(data))
    totals = [whole.add(start, memoryview(data)[start:stop]) for start, stop in pieces]
    assert totals[:-1] == [None] * (len(pieces) - 1)
    assert totals[-1] == zlib.crc32(data)
    assert not whole.torn


@pytest.mark.parametrize("pieces", [[(0, 6), (0, 6)], [(0, 6), (4, 10)], [(5, 10), (0, 6)], [(2, 8), (0, 10)]])
def test_pieces_that_overlap_give_no_crc(pieces: list[tuple[int, int]]) -> None:
    data = memoryview(b"0123456789")
    whole = PiecewiseCrc(10)
    assert [whole.add(start, data[start:stop]) for start, stop in pieces] == [None] * len(pieces)
    assert whole.add(0, data) is None
    assert whole.torn


def test_what_comes_in_too_many_pieces_is_given_up_rather_than_kept() -> None:
    whole = PiecewiseCrc(10 * crc._MAX_PIECES)
    for start in range(0, 10 * crc._MAX_PIECES, 2):
        assert whole.add(start, memoryview(b"x")) is None
        if whole.torn:
            break
    assert whole.torn
    assert not whole._pieces
