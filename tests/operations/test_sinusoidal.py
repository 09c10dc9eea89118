from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.operations.sinusoidal import PAIRS, exact_positions, positions


def each_computed(features: int, start: int, stop: int) -> np.ndarray:
    """A sine or a cosine for each element, in float64, without any of what `positions` does to save them."""
    rows, columns = np.divmod(np.arange(start, stop), features)
    angles = rows * np.exp(-math.log(10_000.0) / features * (columns - columns % 2))
    return np.where(columns % 2, np.cos(angles), np.sin(angles))


# Beyond 2 * PAIRS features there is no room for a table, and 3 * PAIRS / 4 leave room for one position of it.
@pytest.mark.parametrize(
    ("features", "rows"),
    [
        (1, 700),
        (2, 3000),
        (7, 20_000),
        (64, 9_000),
        (2560, 300),
        (2 * PAIRS - 1, 5),
        (2 * PAIRS, 3),
        (2 * PAIRS + 1, 3),
    ],
)
def test_every_bit_is_that_of_a_sine_computed_for_itself(features: int, rows: int) -> None:
    found = positions(features, 0, rows * features)
    assert found.dtype == np.float32
    wanted = each_computed(features, 0, rows * features).astype(np.float32)
    assert np.array_equal(found.view(np.uint32), wanted.view(np.uint32))
    exact = exact_positions(features, 0, rows * features)
    assert exact.dtype == np.float64
    assert np.array_equal(exact.astype(np.float32), wanted)


@given(
    features=st.integers(1, 300),
    start=st.one_of(st.integers(0, 3000), st.integers(0, 1 << 30)),
    size=st.integers(1, 3000),
)
def test_any_part_is_made_for_itself(features: int, start: int, size: int) -> None:
    found = positions(features, start, start + size)
    wanted = each_computed(features, start, start + size).astype(np.float32)
    assert np.array_equal(found.view(np.uint32), wanted.view(np.uint32))
