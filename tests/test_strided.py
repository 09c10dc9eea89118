"""Strided copies against brute force: merging, narrowing, swapping, and the proof of exact tiling."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.strided import (
    Box,
    StridedCopy,
    indices_within,
    source_box,
    stretches,
    strided_copy,
    target_box,
    tiles_exactly,
)
from tests.oracle import shape_of, tensors_of
from tests.planning import plan_of
from tests.strategies import Case, cases

Axes = list[tuple[int, int, int]]


def moved(axes: Axes, source: int = 0, target: int = 0) -> dict[int, int]:
    """Target element to source element, one at a time."""
    found = {}
    for at in itertools.product(*(range(size) for size, _, _ in axes)):
        read = source + sum(index * axis[1] for index, axis in zip(at, axes, strict=True))
        write = target + sum(index * axis[2] for index, axis in zip(at, axes, strict=True))
        assert write not in found
        found[write] = read
    return found


def moves_of(copy: StridedCopy) -> dict[int, int]:
    axes = list(zip(copy.shape, copy.source_strides, copy.target_strides, strict=True))
    return moved(axes, copy.source_start, copy.target_start)


@st.composite
def permutations(draw: st.DrawFn) -> tuple[Axes, int, int]:
    """A dense box on both sides, its axes in two orders."""
    sizes = draw(st.lists(st.integers(1, 4), max_size=4))
    strides = []
    for order in (draw(st.permutations(range(len(sizes)))) for _ in range(2)):
        stride, found = 1, {}
        for axis in order:
            found[axis] = stride
            stride *= sizes[axis]
        strides.append(found)
    axes = [(size, strides[0][axis], strides[1][axis]) for axis, size in enumerate(sizes)]
    return draw(st.permutations(axes)), draw(st.integers(0, 5)), draw(st.integers(0, 5))


@given(permutations())
def test_normalizing_moves_the_same_elements(case: tuple[Axes, int, int]) -> None:
    axes, source, target = case
    copy = strided_copy(axes, source, target)
    expected = moved(axes, source, target)
    assert moves_of(copy) == expected
    assert copy.size == len(expected)
    assert copy.target_span == max(expected) - min(expected) + 1
    assert copy.source_span == max(expected.values()) - min(expected.values()) + 1
    assert list(copy.target_strides) == sorted(copy.target_strides, reverse=True)
    assert all(size > 1 for size in copy.shape)
    assert copy.is_range == all(read - source == write - target for write, read in expected.items())
    neighbours = itertools.pairwise(zip(copy.shape, copy.source_strides, copy.target_strides, strict=True))
    assert not any(
        outer[1] == inner[1] * inner[0] and outer[2] == inner[2] * inner[0] for outer, inner in neighbours
    ), "an axis could still be merged"


@given(permutations())
def test_swapping_is_its_own_inverse(case: tuple[Axes, int, int]) -> None:
    copy = strided_copy(*case)
    assert moves_of(copy.swap()) == {read: write for write, read in moves_of(copy).items()}
    assert copy.swap().swap() == copy


@given(permutations(), st.data())
def test_narrowing_takes_a_part_of_one_axis(case: tuple[Axes, int, int], data: st.DataObject) -> None:
    copy = strided_copy(*case)
    if not copy.shape:
        return
    axis = data.draw(st.integers(0, len(copy.shape) - 1))
    cuts = sorted({0, copy.shape[axis], *data.draw(st.lists(st.integers(0, copy.shape[axis])))})
    found: dict[int, int] = {}
    for start, stop in itertools.pairwise(cuts):
        part = moves_of(copy.narrow(axis, start, stop))
        assert not found.keys() & part.keys()
        found |= part
    assert found == moves_of(copy)


def test_runs() -> None:
    assert strided_copy([(6, 1, 1)], 0, 0).run == 6
    assert strided_copy([(2, 8, 4), (4, 1, 1)], 0, 0).run == 4
    assert strided_copy([(2, 1, 4), (4, 2, 1)], 0, 0).run == 1
    assert strided_copy([], 3, 4).run == 1


# --- the proof ---------------------------------------------------------------------------------------------------


def elements(box: Box) -> list[int]:
    offsets = itertools.product(*(range(size) for size in box.shape))
    return [box.start + sum(i * stride for i, stride in zip(at, box.strides, strict=True)) for at in offsets]


def covered_once(boxes: list[Box], size: int) -> bool:
    count = [0] * size
    for box in boxes:
        for element in elements(box):
            if element >= size:
                return False
            count[element] += 1
    return all(times == 1 for times in count)


@st.composite
def any_box(draw: st.DrawFn) -> Box:
    """A box that may hold an element twice, as no layout would give it."""
    axes = sorted(draw(st.lists(st.tuples(st.integers(1, 9), st.integers(2, 4)), max_size=3)), reverse=True)
    start = draw(st.integers(0, 8))
    return Box(start, tuple(size for _, size in axes), tuple(stride for stride, _ in axes))


@settings(max_examples=400)
@given(st.lists(any_box(), max_size=5), st.integers(0, 30))
def test_the_proof_is_sound_on_any_boxes(boxes: list[Box], size: int) -> None:
    if tiles_exactly(boxes, size):
        assert covered_once(boxes, size)


@st.composite
def tilings(draw: st.DrawFn, start: int = 0, depth: int = 3) -> tuple[list[list[tuple[int, int]]], int]:
    """Boxes, each as its start and then its axes, that tile a range: a product of axes, or blocks side by side."""
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        length = draw(st.integers(1, 4))
        return [[(start, 0), (length, 1)]], length
    if draw(st.booleans()):
        count = draw(st.integers(1, 3))
        inner, length = draw(tilings(0, depth - 1))
        return [[(start + box[0][0], 0), (count, length), *box[1:]] for box in inner], count * length
    boxes, offset = [], start
    for _ in range(draw(st.integers(1, 3))):
        inner, length = draw(tilings(offset, depth - 1))
        boxes += inner
        offset += length
    return boxes, offset - start


@settings(max_examples=400)
@given(tilings(), st.integers(1, 3), st.data())
def test_the_proof_is_complete_on_nested_blocks(
    tiling: tuple[list[list[tuple[int, int]]], int], inner: int, data: st.DataObject
) -> None:
    raw, size = tiling
    # Each element becomes a row of `inner`; one axis or another stays unmerged until the copies are normalized.
    copies = [
        strided_copy([*((n, 0, s * inner) for n, s in box[1:]), (inner, 0, 1)], 0, box[0][0] * inner) for box in raw
    ]
    boxes = [target_box(copy) for copy in copies]
    assert covered_once(boxes, size * inner)
    assert tiles_exactly(data.draw(st.permutations(boxes)), size * inner)
    assert not tiles_exactly(boxes, size * inner + 1)
    assert not tiles_exactly(boxes[1:], size * inner)
    assert not tiles_exactly([*boxes, boxes[0]], size * inner)


@settings(max_examples=150)
@given(cases())
def test_the_proof_is_complete_on_what_layouts_give(case: Case) -> None:
    shapes = {key: shape_of(term, case.sizes) for term, key, _, _ in tensors_of(case, case.sources)}
    plan = plan_of(case.yaml().split("target: {layout: b}\n")[1], shapes)  # proved, or refused
    for target in plan.targets:
        boxes = [target_box(part.copy) for part in (*target.moves, *target.fills)]
        assert covered_once(boxes, target.info.size)
        for left_out in range(len(boxes)):
            assert not tiles_exactly([*boxes[:left_out], *boxes[left_out + 1 :]], target.info.size)
    for number, source in enumerate(plan.sources):
        reads = {source_box(move.copy) for target in plan.targets for move in target.moves if move.source == number}
        if reads:
            assert covered_once(list(reads), source.info.size)


@pytest.mark.parametrize(
    ("boxes", "size", "holds"),
    [
        ([], 0, True),
        ([], 1, False),
        ([Box(0, (), ())], 1, True),
        ([Box(0, (), ()), Box(0, (), ())], 1, False),
        ([Box(0, (), ()), Box(0, (), ())], 2, False),
        ([Box(1, (3,), (1,))], 3, False),
        ([Box(0, (3,), (2,)), Box(1, (3,), (2,))], 6, True),
        ([Box(0, (3,), (2,)), Box(1, (2,), (2,))], 5, True),
        ([Box(0, (3,), (2,)), Box(3, (2,), (2,))], 6, False),
        ([Box(0, (4,), (1,)), Box(2, (4,), (1,))], 6, False),  # the count is too high
        ([Box(0, (2, 2), (4, 1)), Box(2, (4,), (1,))], 8, False),  # the count is right, the places aren't
        ([Box(0, (10**12,), (2,)), Box(1, (10**12,), (2,))], 2 * 10**12, True),  # without a walk along the tensor
    ],
)
def test_tiles_exactly(boxes: list[Box], size: int, holds: bool) -> None:  # noqa: FBT001
    assert tiles_exactly(boxes, size) is holds


@given(any_box(), st.integers(0, 40), st.integers(1, 20))
def test_indices_within_a_window(box: Box, start: int, length: int) -> None:
    stop = start + length
    count = box.shape[0] if box.shape else 1
    slices = []
    for index in range(count):
        part = Box(box.start + (index * box.strides[0] if box.shape else 0), box.shape[1:], box.strides[1:])
        inside = [start <= element < stop for element in (min(elements(part)), max(elements(part)))]
        apart = max(elements(part)) < start or min(elements(part)) >= stop
        slices.append("in" if all(inside) else "out" if apart else "across")
    found = indices_within(box.shape, box.strides, box.start, start, stop)
    if "across" in slices:
        assert found is None
    else:
        assert found is not None
        assert [index for index in range(count) if slices[index] == "in"] == list(range(*found))


def test_stretches_group_what_overlaps() -> None:
    items = [(5, 2), (0, 3), (2, 1), (6, 3), (9, 1), (3, 1)]
    assert stretches(items, key=lambda item: item) == [[(0, 3), (2, 1)], [(3, 1)], [(5, 2), (6, 3)], [(9, 1)]]


def test_runs_and_what_is_read_at_once() -> None:
    rows = strided_copy([(2, 40, 8), (3, 5, 16), (4, 1, 1)], 7, 100)
    assert sorted(rows.runs()) == sorted((100 + 8 * i + 16 * j, 7 + 40 * i + 5 * j) for i in range(2) for j in range(3))
    assert list(strided_copy([(9, 1, 1)], 3, 5).runs()) == [(5, 3)]
    assert list(strided_copy([], 3, 5).runs()) == [(5, 3)]
    assert strided_copy([(6, 10, 1), (10, 1, 6)], 0, 0).source_run == 60
    assert strided_copy([(6, 20, 1), (10, 1, 6)], 0, 0).source_run == 10
    assert strided_copy([(6, 20, 1)], 0, 0).source_run == 1
