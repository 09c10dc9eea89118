from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from converters.operations.numeric import decode, float_dtype, raw_dtype
from converters.tensor_info import DType, TensorInfo
from converters.verify.compare import CHUNK, CLOSE_LOOK, Comparison, Difference, Pair
from converters.verify.distances import measure
from converters.verify.settled import Equal

FLOATS = (DType.F16, DType.BF16, DType.F32, DType.F64, DType.F8_E4M3, DType.F8_E5M2)


class Held:
    """A reader of one tensor that lies in memory."""

    def __init__(self, raw: np.ndarray, name: str = "stored") -> None:
        self.data = raw.tobytes()
        self.name = name

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        assert name == self.name
        assert offset + len(buffer) <= len(self.data)
        buffer[:] = self.data[offset : offset + len(buffer)]


def compare(
    made: np.ndarray, stored: np.ndarray, pair: Pair, *, made_is_expected: bool = True, cut: int = 0
) -> Difference | None:
    comparison = Comparison(Held(stored), {"made": pair}, made_is_expected=made_is_expected)  # type: ignore[arg-type]
    raw = memoryview(made.tobytes())
    width = made.itemsize
    for start, stop in ((0, cut * width), (cut * width, len(raw))):
        if stop > start:
            comparison.write_from("made", start, raw[start:stop])
    return comparison.found.get("made")


def pair_of(made: DType, stored: DType | None = None, size: int = 8, **more: object) -> Pair:
    return Pair(TensorInfo("made", (size,), made), TensorInfo("stored", (size,), stored or made), **more)  # type: ignore[arg-type]


def raw_arrays(dtype: DType) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    shape = st.shared(st.integers(1, 50), key="size")
    return st.tuples(*(shape.flatmap(lambda size: arrays.arrays(raw_dtype(dtype), size)) for _ in range(2)))


@pytest.mark.parametrize("dtype", FLOATS)
@given(data=st.data())
def test_it_agrees_with_one_element_at_a_time(dtype: DType, data: st.DataObject) -> None:
    expected, found = data.draw(raw_arrays(dtype))
    ulps = data.draw(st.sampled_from([0, 1, 3]))
    cut = data.draw(st.integers(0, expected.size))
    difference = compare(expected, found, pair_of(dtype, size=expected.size, ulps=ulps), cut=cut)
    wanted, got = (decode(raw, dtype).astype(np.float64) for raw in (expected, found))
    differing = [index for index in range(expected.size) if expected[index] != found[index]]
    distances = {index: distance(expected[index : index + 1], found[index : index + 1], dtype) for index in differing}
    beyond = [index for index in differing if not ulps or distances[index] > ulps]
    if not differing:
        assert difference is None
        return
    assert difference is not None
    assert (difference.differing, difference.beyond) == (len(differing), len(beyond))
    assert difference.first == (beyond[0] if beyond else None)
    assert difference.last == (beyond[-1] if beyond else None)
    assert difference.nans == sum(math.isnan(got[index]) and not math.isnan(wanted[index]) for index in differing)
    with np.errstate(all="ignore"):
        apart = [abs(wanted[index] - got[index]) for index in differing]
    largest = max((value for value in apart if not math.isnan(value)), default=0.0)
    assert difference.max_abs == pytest.approx(largest, rel=1e-5)


def distance(first: np.ndarray, second: np.ndarray, dtype: DType) -> float:
    """Units in the last place between two raw elements, by walking along the order of floats."""
    values = [decode(raw, dtype).astype(np.float64)[0] for raw in (first, second)]
    if any(map(math.isnan, values)):
        return 0 if all(map(math.isnan, values)) else math.inf
    places = []
    for raw in (first, second):
        bits = int(raw[0])
        sign = 1 << (dtype.bits - 1)
        places.append(-(bits - sign) if bits & sign else bits)
    return abs(places[0] - places[1])


def test_zeros_of_either_sign_are_no_ulps_apart() -> None:
    raw = np.array([0x0000, 0x3C00], np.uint16), np.array([0x8000, 0x3C01], np.uint16)
    assert measure(*raw, DType.F16).max_ulps == 1


def test_the_distance_of_doubles_does_not_overflow() -> None:
    raw = [np.array([value]).view(np.uint64) for value in (-1e308, 1e308)]
    found = measure(*raw, DType.F64)
    assert found.max_ulps is not None
    assert found.max_ulps > 1 << 63


def test_whole_numbers_and_masks() -> None:
    signed = [np.array([value], np.int8).view(np.uint8) for value in (-100, 100)]
    assert measure(*signed, DType.I8).max_abs == 200
    assert measure(*signed, DType.U8).max_abs == 56
    difference = compare(np.array([1, 0], np.uint8), np.array([0, 0], np.uint8), pair_of(DType.BOOL, size=2))
    assert difference is not None
    assert (difference.differing, difference.max_ulps, difference.expected_first) == (1, None, 1)


@pytest.mark.parametrize("size", [CHUNK // 4 + 5, 3 * CLOSE_LOOK + 1])
def test_positions_across_chunks(size: int) -> None:
    expected = np.zeros(size, np.uint32)
    found = expected.copy()
    found[[7, size - 2]] = np.float32(2).view(np.uint32)
    difference = compare(expected, found, pair_of(DType.F32, size=size), cut=1000)
    assert difference is not None
    assert (difference.first, difference.last, difference.beyond, difference.max_abs) == (7, size - 2, 2, 2.0)
    assert (difference.expected_first, difference.found_first) == (0.0, 2.0)
    difference = compare(expected, found, pair_of(DType.F32, size=size), made_is_expected=False)
    assert difference is not None
    assert (difference.expected_first, difference.found_first) == (2.0, 0.0)


def test_different_dtypes_are_compared_in_the_narrower() -> None:
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    rounded = values.astype(float_dtype(DType.BF16))
    pair = pair_of(DType.BF16, DType.F32, size=values.size, via=DType.BF16)
    assert compare(rounded.view(np.uint16), values.view(np.uint32), pair, made_is_expected=False, cut=33) is None
    values[70_000] *= 1.5
    difference = compare(rounded.view(np.uint16), values.view(np.uint32), pair, made_is_expected=False)
    assert difference is not None
    assert (difference.beyond, difference.first) == (1, 70_000)


def test_no_bound_measures_and_fails_nothing() -> None:
    raw = np.arange(8, dtype=np.uint32)
    difference = compare(raw, raw + 1, pair_of(DType.F32, ulps=None))
    assert difference is not None
    assert (difference.differing, difference.beyond, difference.first, difference.max_ulps) == (8, 0, None, 1)


@pytest.mark.parametrize("dtype", [DType.F16, DType.F32, DType.F4])
@given(data=st.data())
def test_a_plain_copy_is_compared_as_it_would_be_if_it_were_made(dtype: DType, data: st.DataObject) -> None:
    width = max(dtype.bits, 8) // 8
    chunk = CHUNK // width
    size = data.draw(st.sampled_from([1, 9, chunk - 1, chunk, chunk + 1, 2 * chunk + 3]))
    ahead, behind = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    rng = np.random.default_rng(0)
    made = rng.integers(0, 1 << 8 * width, size, dtype=raw_dtype(dtype))
    stored = made.copy()
    for place in data.draw(st.lists(st.sampled_from([0, size // 2, size - 1, min(size, chunk) - 1]), max_size=3)):
        stored[place] ^= 1
    pair = pair_of(dtype, size=size * 8 * width // dtype.bits)
    origin = Held(
        np.concatenate([rng.integers(0, 9, ahead), made, rng.integers(0, 9, behind)]).astype(made.dtype), "of"
    )
    start, stop = sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size))))
    passed: list[int] = []
    comparison = Comparison(Held(stored), {"made": pair}, made_is_expected=True)  # type: ignore[arg-type]
    for first, last in ((start, stop), (0, start), (stop, size)):  # in whatever order
        same = Equal("made", first * width, "of", (ahead + first) * width, (last - first) * width)
        comparison.compare_copied(origin, same, passed.append)  # type: ignore[arg-type]
    found, wanted = comparison.found.get("made"), compare(made, stored, pair)
    for each in (found, wanted):
        if each is not None:
            each.max_expected = 0.0  # depends on how many elements are looked at together
    assert repr(found) == repr(wanted)  # NaN is not itself
    assert sum(passed) == comparison.compared["made"] == size * width


@pytest.mark.parametrize(
    ("dtype", "via"), [(DType.F16, DType.BF16), (DType.F16, DType.F8_E4M3), (DType.BF16, DType.F16)]
)
def test_every_value_of_16_bits_is_rounded_before_it_is_compared(dtype: DType, via: DType) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    every = every[~np.isnan(decode(every, dtype).astype(np.float32))]
    with np.errstate(all="ignore"):
        through = decode(every, dtype).astype(np.float32).astype(float_dtype(via)).view(raw_dtype(via))
    pair = Pair(TensorInfo("made", (every.size,), via), TensorInfo("stored", (every.size,), dtype), via)
    assert compare(through, every, pair) is None
    through[1 << 14] ^= 1
    difference = compare(through, every, pair)
    assert difference is not None
    assert (difference.beyond, difference.first) == (1, 1 << 14)
