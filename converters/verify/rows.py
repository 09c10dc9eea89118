"""Which row of a matrix holds which row of another: rows and columns are hashed as they stream by, and compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from converters.operations.numeric import raw_dtype
from converters.tensor_info import TensorInfo
from converters.verify.contents import Contents

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

MAX_ROWS: Final = 1 << 20
"""Rows, or columns, beyond which nobody looks for a pattern."""

_LISTED: Final = 3


class Fingerprints(Struct, frozen=True):
    """A hash for each row [rows] and each column [columns] of a tensor taken as a matrix of its last axis."""

    rows: Array
    columns: Array


def fingerprints(contents: Contents, name: str) -> Fingerprints | None:
    """Hash the rows and columns of a tensor in one pass; None where it has too many of them, or no whole bytes.

    A hash is the sum of the elements' bits, each times a fixed random number, modulo 2 to the 64: the same numbers for
    rows as for columns, so that a transposed square has its row hashes as column hashes.
    """
    import numpy as np

    info = contents.tensors[name]
    shape = _matrix(info)
    if shape is None:
        return None
    rows, columns = shape
    factors = np.random.default_rng(0).integers(1, 1 << 63, max(rows, columns), dtype=np.uint64) * np.uint64(
        2
    ) + np.uint64(1)
    of_rows, of_columns = np.zeros(rows, np.uint64), np.zeros(columns, np.uint64)
    pending = bytearray()
    position = 0

    def add(elements: Array) -> None:
        """Add elements from `position` on: whole rows, or a stretch of a single one."""
        nonlocal position
        row, column = divmod(position, columns)
        block = elements.reshape(-1, columns) if column == 0 and elements.size % columns == 0 else elements[None]
        wide = block.astype(np.uint64)
        stop = column + block.shape[1]
        of_rows[row : row + len(block)] += wide @ factors[column:stop]
        of_columns[column:stop] += factors[row : row + len(block)] @ wide
        position += elements.size

    def take(data: memoryview) -> bool:
        pending.extend(data)
        elements = np.frombuffer(bytes(pending[: len(pending) // width * width]), dtype=raw_dtype(info.dtype))
        del pending[: elements.nbytes]
        for part in _whole_rows(position, elements.size, columns):
            add(elements[part])
        return True

    width = raw_dtype(info.dtype).itemsize
    contents.stream(name, take)
    return Fingerprints(of_rows, of_columns)


def _matrix(info: TensorInfo) -> tuple[int, int] | None:
    if not info.shape or info.size == 0 or info.dtype.bits % 8:
        return None
    rows, columns = (info.size // info.shape[-1], info.shape[-1]) if len(info.shape) > 1 else (info.size, 1)
    return (rows, columns) if max(rows, columns) <= MAX_ROWS else None


def _whole_rows(position: int, size: int, columns: int) -> Iterator[slice]:
    """Cut a stretch of elements into the rest of a row, whole rows (not too many at once), and the start of a row."""
    first = 0
    at_once = max(1, (1 << 18) // columns) * columns
    while first < size:
        column = (position + first) % columns
        if column:
            stop = min(size, first + columns - column)
        else:
            stop = first + min(at_once, (size - first) // columns * columns)
            if stop == first:
                stop = size
        yield slice(first, stop)
        first = stop


def describe_rearrangement(expected: Fingerprints, found: Fingerprints) -> str | None:
    """Say how one matrix is a rearrangement of another; None where it isn't one that is known."""
    import numpy as np

    square = expected.rows.shape == expected.columns.shape and expected.rows.size > 1
    if square and np.array_equal(found.rows, expected.columns) and np.array_equal(found.columns, expected.rows):
        return "it is transposed"
    what = "row" if expected.columns.size > 1 else "element"
    return _describe(what, expected.rows, found.rows) or _describe("column", expected.columns, found.columns)


def _describe(what: str, expected: Array, found: Array) -> str | None:
    import numpy as np

    count = expected.size
    moved = np.flatnonzero(expected != found)
    if moved.size == 0 or count < 2:  # noqa: PLR2004 - a single row can't be moved
        return None
    origin = _origin(expected, found[moved])
    if origin is None:
        return None
    shift = int(moved[0]) - int(origin[0])
    turn = (shift + count // 2) % count - count // 2
    text: str | None = None
    if moved.size <= _LISTED:
        text = ", ".join(f"{what} {to} holds what belongs in {what} {at}" for to, at in zip(moved, origin, strict=True))
    elif np.array_equal(np.roll(expected, turn), found):
        text = f"the {what}s are rolled by {turn}"
    elif np.array_equal(origin, moved - shift):
        text = f"{moved.size} {what}s hold what belongs {abs(shift)} {what}s {'earlier' if shift > 0 else 'later'}"
    elif axes := _transposition(expected, found):
        text = f"{count} {what}s laid out as (a b) with a = {axes[0]}, b = {axes[1]} are read as (b a)"
    return (
        text
        or _in_blocks(what, expected, found)
        or _of_blocks(what, expected, found)
        or _within_blocks(what, expected, found)
        or f"{moved.size} of {count} {what}s are permuted"
    )


def _origin(expected: Array, found: Array) -> Array | None:
    """Where each of the hashes found is expected; None if one of them is nowhere."""
    import numpy as np

    order = np.argsort(expected, kind="stable")
    origin = order[np.minimum(np.searchsorted(expected[order], found), expected.size - 1)]
    return origin if np.array_equal(expected[origin], found) else None


def _divisors(number: int) -> list[int]:
    return [one for one in range(2, number // 2 + 1) if number % one == 0]


def _transposition(expected: Array, found: Array) -> tuple[int, int] | None:
    """The `(a, b)` for which `found` is `expected` reshaped to [a, b], transposed, flattened; along the last axis."""
    import numpy as np

    count = expected.shape[-1]
    for outer in _divisors(count):
        folded = expected.reshape(*expected.shape[:-1], outer, count // outer)
        if np.array_equal(np.swapaxes(folded, -1, -2).reshape(expected.shape), found):
            return outer, count // outer
    return None


def _in_blocks(what: str, expected: Array, found: Array) -> str | None:
    """The same rearrangement within each block, of a part of it: what rotary embeddings do to the rows of each head."""
    import numpy as np

    for size in _divisors(expected.size):
        wanted, got = expected.reshape(-1, size), found.reshape(-1, size)
        moved = np.flatnonzero((wanted != got).any(axis=0))
        # Reading pairs as halves leaves the first and the last of them where they are.
        for start, stop in ((0, size), (0, int(moved[-1]) + 2), (int(moved[0]) - 1, size)):
            if not 0 <= start < stop <= size:
                continue
            outside = np.r_[0:start, stop:size]
            if not np.array_equal(wanted[:, outside], got[:, outside]):
                continue
            if text := _transposition(wanted[:, start:stop], got[:, start:stop]):
                part = "" if (start, stop) == (0, size) else f" {what}s {start} to {stop - 1} of"
                axes = f"laid out as (a b) with a = {text[0]}, b = {text[1]}"
                return f"in{part} each block of {size} {what}s, what is {axes} is read as (b a)"
    return None


def _within_blocks(what: str, expected: Array, found: Array) -> str | None:
    import numpy as np

    for size in _divisors(expected.size):
        wanted, got = expected.reshape(-1, size), found.reshape(-1, size)
        if np.array_equal(np.sort(wanted, axis=1), np.sort(got, axis=1)):
            return f"{what}s are permuted, each within its block of {size}"
    return None


def _of_blocks(what: str, expected: Array, found: Array) -> str | None:
    """Blocks that changed places as a whole: heads, experts, or the parts of a fused tensor."""
    import numpy as np

    for size in reversed(_divisors(expected.size)):
        wanted, got = expected.reshape(-1, size), found.reshape(-1, size)
        by_content = {block.tobytes(): number for number, block in enumerate(wanted)}
        order = [by_content.get(block.tobytes()) for block in got]
        if all(number is not None for number in order):
            moved = [(to, at) for to, at in enumerate(order) if not np.array_equal(wanted[to], got[to])]
            shown = ", ".join(f"{to} holds {at}" for to, at in moved[:_LISTED])
            more = f" and {len(moved) - _LISTED} more" if len(moved) > _LISTED else ""
            return f"blocks of {size} {what}s changed places: {shown}{more}"
    return None
