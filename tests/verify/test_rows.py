from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.operations.numeric import raw_dtype
from converters.tensor_info import DType, TensorInfo
from converters.verify.contents import Take
from converters.verify.rows import MAX_ROWS, describe_rearrangement, fingerprints


class Pieces:
    """A tensor that is given in pieces of some size, which need not be whole elements."""

    def __init__(self, values: np.ndarray, size: int = 1 << 20, dtype: DType = DType.F32) -> None:
        self.tensors = {"x": TensorInfo("x", values.shape, dtype)}
        self.data = values.astype(raw_dtype(dtype)).tobytes()
        self.size = size

    def stream(self, name: str, take: Take, start: int = 0) -> None:
        assert name == "x"
        for position in range(start, len(self.data), self.size):
            if not take(memoryview(self.data)[position : position + self.size]):
                return


def describe(expected: np.ndarray, found: np.ndarray) -> str | None:
    first, second = fingerprints(Pieces(expected), "x"), fingerprints(Pieces(found), "x")
    assert first is not None
    assert second is not None
    return describe_rearrangement(first, second)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 31, shape)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), size=st.integers(1, 70))
def test_hashes_do_not_depend_on_the_pieces(rows: int, columns: int, size: int) -> None:
    values = numbers(rows, columns)
    whole, pieces = fingerprints(Pieces(values), "x"), fingerprints(Pieces(values, size), "x")
    assert whole is not None
    assert pieces is not None
    assert np.array_equal(whole.rows, pieces.rows)
    assert np.array_equal(whole.columns, pieces.columns)
    turned = fingerprints(Pieces(values.T.copy()), "x")
    assert turned is not None
    assert np.array_equal(turned.rows, whole.columns)


def pairs_to_halves(values: np.ndarray, head: int, rotated: int) -> np.ndarray:
    heads = values.reshape(-1, head, *values.shape[1:]).copy()
    part = heads[:, :rotated].reshape(len(heads), rotated // 2, 2, *values.shape[1:])
    heads[:, :rotated] = part.swapaxes(1, 2).reshape(len(heads), rotated, *values.shape[1:])
    return heads.reshape(values.shape)


VALUES = numbers(48, 20)
SHUFFLED = [*np.random.default_rng(1).permutation(24), *np.random.default_rng(2).permutation(range(24, 48))]


HALVES = "laid out as (a b) with a = {}, b = 2"
IN_BLOCKS = f"each block of 16 rows, what is {HALVES} is read as (b a)"


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (VALUES, None),
        (VALUES + 1, None),
        (np.delete(VALUES, 5, 0)[[*range(47), 46]], "42 rows hold what belongs 1 rows later"),
        (np.roll(VALUES, -3, 0), "the rows are rolled by -3"),
        (np.roll(VALUES, 2, 1), "the columns are rolled by 2"),
        (VALUES.reshape(6, 8, 20).swapaxes(0, 1), "48 rows laid out as (a b) with a = 6, b = 8 are read as (b a)"),
        (pairs_to_halves(VALUES, 48, 48), f"48 rows {HALVES.format(24)} are read as (b a)"),
        (pairs_to_halves(VALUES, 16, 16), f"in {IN_BLOCKS.format(8)}"),
        (pairs_to_halves(VALUES, 16, 8), f"in rows 0 to 7 of {IN_BLOCKS.format(4)}"),
        (VALUES.reshape(4, 12, 20)[[0, 2, 1, 3]], "blocks of 12 rows changed places: 1 holds 2, 2 holds 1"),
        (VALUES.reshape(3, 16, 20)[[2, 0, 1]], "the rows are rolled by 16"),
        (VALUES[[*SHUFFLED[:24], *range(24, 48)]], "rows are permuted, each within its block of 24"),
        (VALUES[[*SHUFFLED[24:], *SHUFFLED[:24]]], "rows are permuted"),
    ],
)
def test_rearrangements(found: np.ndarray, text: str | None) -> None:
    got = describe(VALUES, found.reshape(VALUES.shape))
    assert got == text or (text == "rows are permuted" and got is not None and got.endswith(text))


def test_squares_vectors_and_repeated_rows() -> None:
    square = numbers(12, 12)
    assert describe(square, square.T.copy()) == "it is transposed"
    vector = numbers(12)
    assert (
        describe(vector, vector[[1, 0, *range(2, 12)]])
        == "element 0 holds what belongs in element 1, element 1 holds what belongs in element 0"
    )
    same = np.zeros((12, 4), int)
    assert describe(same, same) is None
    assert describe(same, same + 1) is None
    experts = numbers(4, 6, 5)
    assert describe(experts, experts[[1, 0, 2, 3]]) == "blocks of 6 rows changed places: 0 holds 1, 1 holds 0"


def test_what_is_too_much_or_has_no_rows() -> None:
    assert fingerprints(Pieces(np.zeros((0, 4), int)), "x") is None
    assert fingerprints(Pieces(np.zeros((), int)), "x") is None
    assert fingerprints(Pieces(np.zeros((MAX_ROWS + 1, 1), np.uint8), dtype=DType.U8), "x") is None
