"""Sinusoidal positions: sines at even features and cosines at odd ones, of angles that grow with the position.

Source: Vaswani et al. 2017, section 3.5. Angles are computed in float64, and each value is rounded once.

Few sines are computed: those of `a + b` follow from those of `a` and `b`, by one complex product for a sine and a
cosine. It is off by so much less than half a unit of float32 that it nearly always tells to which float32 the sine
is rounded. Where it doesn't, the sine is computed. So the bits are those that computing all of them gives.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from converters.operations import Array

PAIRS: Final = 1 << 14
"""Sines with their cosines, 16 bytes, in the table of `b`, and in what is worked on at once: both stay in cache."""

_PRODUCT_ERROR: Final = 2.0**-48
"""Far above what comes of four sines that are off by 4 units in the last place each, and of rounding their product."""

_ANGLE_ERROR: Final = 2.0**-51
"""By the angle: twice what comes of rounding `a`, `b` and the angle itself."""


def positions(features: int, start: int, stop: int) -> Array:
    """Elements `start` to `stop` of the flattened table [positions, features], rounded to float32."""
    import numpy as np

    turns = _turns(features)
    if not len(turns):
        return exact_positions(features, start, stop).astype(np.float32)
    first, last = start // features, -(-stop // features)
    frequencies = _frequencies(features)
    table = np.empty((last - first, 2 * frequencies.size), np.float32)
    highest = np.empty((len(turns), 2 * frequencies.size), np.float32)
    products = np.empty(turns.shape, np.complex128)
    error = np.repeat(_PRODUCT_ERROR + last * frequencies * _ANGLE_ERROR, 2)
    row = first
    while row < last:
        block, inside = divmod(row, len(turns))
        count = min(len(turns) - inside, last - row)
        about = np.multiply(_start(features, block), turns[inside : inside + count], out=products[:count])
        low, high = table[row - first : row - first + count], highest[:count]
        np.subtract(about.view(np.float64), error, out=low, casting="same_kind")
        np.add(about.view(np.float64), error, out=high, casting="same_kind")
        unclear = low != high
        if unclear.any():
            rows, columns = np.nonzero(unclear)
            low[rows, columns] = _values((row + rows) * frequencies[columns // 2], columns)
        row += count
    found: Array = table[:, :features].reshape(-1)[start - first * features : stop - first * features]
    return found


def exact_positions(features: int, start: int, stop: int) -> Array:
    """The same in float64."""
    import numpy as np

    rows, columns = np.divmod(np.arange(start, stop), features)
    return _values(rows * _frequencies(features)[columns // 2], columns)


def _values(angles: Array, columns: Array) -> Array:
    import numpy as np

    values: Array = np.where(columns % 2, np.cos(angles), np.sin(angles))
    return values


@lru_cache(maxsize=1)
def _frequencies(features: int) -> Array:
    """The angle by which each pair of features turns from one position to the next."""
    import numpy as np

    frequencies: Array = np.exp(-math.log(10_000.0) / features * np.arange(0, features, 2))
    return frequencies


@lru_cache(maxsize=1)
def _turns(features: int) -> Array:
    """`cos b - i sin b` for the angles of the first positions [positions, pairs], as many as there is room for."""
    import numpy as np

    frequencies = _frequencies(features)
    angles = np.multiply.outer(np.arange(PAIRS // frequencies.size), frequencies)
    turns: Array = np.cos(angles) - 1j * np.sin(angles)
    return turns


@lru_cache(maxsize=4)
def _start(features: int, block: int) -> Array:
    """`sin a + i cos a` for the angles of the position that a block of the size of `_turns` starts with."""
    import numpy as np

    angles = block * len(_turns(features)) * _frequencies(features)
    start: Array = np.sin(angles) + 1j * np.cos(angles)
    return start
