"""The order of making targets: each once, near the output's order, and along the source where that is possible."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters import reading_order as module
from converters.plan import Plan
from converters.reading_order import reading_order
from tests.planning import plan_of

WINDOW = 100


@pytest.fixture(autouse=True, scope="module")
def small_window() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW", WINDOW)
        yield


def renaming(order: list[int], sizes: list[int]) -> Plan:
    """A plan whose target `b.{n}` is made of the source that lies at place `order[n]` of its file."""
    names = {place: f"a.{number}" for number, place in enumerate(order)}
    shapes = {names[place]: (sizes[int(names[place][2:])],) for place in sorted(names)}
    return plan_of("rename: {'a.{i}': 'b.{i}'}", shapes)


@given(st.permutations(list(range(9))), st.lists(st.integers(1, 40), min_size=9, max_size=9))
def test_each_target_once_and_none_far_from_its_place(order: list[int], sizes: list[int]) -> None:
    plan = renaming(order, sizes)
    found = list(reading_order(plan, range(9)))
    assert sorted(found) == list(range(9))
    nbytes = [target.info.nbytes for target in plan.targets]
    done: set[int] = set()
    for number in found:
        first = min(set(range(9)) - done)
        assert number == first or sum(nbytes[first : number + 1]) <= WINDOW
        done.add(number)


@given(st.permutations(list(range(4))))
def test_what_fits_into_the_window_follows_the_source(order: list[int]) -> None:
    plan = renaming(order, [5] * 4)  # float32: 80 bytes
    assert [order[number] for number in reading_order(plan, range(4))] == [0, 1, 2, 3]


def test_layers_with_another_order_within_are_read_from_front_to_back() -> None:
    order = [2, 0, 1, 5, 3, 4, 8, 6, 7]
    plan = renaming(order, [8] * 9)  # 96 bytes a layer
    assert [order[number] for number in reading_order(plan, range(9))] == list(range(9))


def test_a_part_of_the_targets_is_ordered_by_itself() -> None:
    plan = renaming([1, 0, 3, 2], [5] * 4)
    assert list(reading_order(plan, range(2, 4))) == [3, 2]
    assert list(reading_order(plan, range(1, 3))) == [1, 2]
    assert list(reading_order(plan, range(3, 3))) == []
