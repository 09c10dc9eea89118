"""Jobs tile each target, in panels within their limit, and what they hold together never exceeds the budget."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.errors import MemoryBudgetError
from converters.plan import Plan
from converters.schedule import (
    MINIMUM_BUDGET,
    Budget,
    GenerateJob,
    PanelJob,
    RangeJob,
    byte_copy,
    jobs,
    needs_arrays,
    peak_memory,
)
from converters.strided import strided_copy
from converters.tensor_info import DType
from tests.oracle import shape_of, tensors_of
from tests.planning import plan_of
from tests.strategies import Case, cases

BIG = """
dims: {H: 32}
rules:
  - {from: t, to: t2, layout: i o -> o i}
  - {from: r, to: r2, layout: (H d 2) i -> (H 2 d) i}
  - {from: p, to: p2}
  - {from: "e.{e}", to: e2, layout: f i -> i e f}
  - {fill: sinusoidal, to: pe, shape: [100000, 512], dtype: F32}
"""
SHAPES = {"t": (32_000, 8192), "r": (8192, 8192), "p": (32_000, 8192), "e.0": (4096, 2048), "e.1": (4096, 2048)}


def big(dtype: DType, cast: DType | None = None) -> Plan:
    return plan_of(BIG, SHAPES, dtype=dtype, cast=cast)


PLANS = [big(DType.BF16), big(DType.F64, DType.F16), big(DType.F32, DType.F64), big(DType.I8)]


@pytest.mark.parametrize("threads", [1, 2, 4, 16])
@pytest.mark.parametrize(
    "max_memory", [MINIMUM_BUDGET, 48_000_000, 64_000_000, 128_000_000, 512_000_000, 4_000_000_000]
)
@pytest.mark.parametrize("plan", PLANS, ids=["BF16", "F64 to F16", "F32 to F64", "I8"])
def test_the_jobs_in_flight_never_exceed_the_budget(plan: Plan, max_memory: int, threads: int) -> None:
    budget = Budget.fitting(max_memory, threads)
    assert 1 <= budget.threads <= threads
    largest = max(job.memory for number in range(len(plan.targets)) for job in jobs(plan, number, budget))
    assert largest * budget.threads <= max_memory
    assert largest <= peak_memory(plan, budget) <= largest * budget.threads


def test_a_budget_below_the_least() -> None:
    with pytest.raises(MemoryBudgetError, match=f"a memory budget of {MINIMUM_BUDGET - 1:,} bytes is too small"):
        Budget.fitting(MINIMUM_BUDGET - 1, 1)
    assert Budget.fitting(MINIMUM_BUDGET, 64).threads < 64


class Panels:
    """A budget whose panels have so many bytes."""

    threads = 2

    def __init__(self, panel: int) -> None:
        self.panel = panel


def covered(plan: Plan, number: int, budget: object) -> list[int]:
    """How often each byte of a target is written, and that panels hold what they gather."""
    info = plan.targets[number].info
    width = max(info.dtype.bits, 8) // 8
    written = [0] * info.nbytes
    for job in jobs(plan, number, budget):  # type: ignore[arg-type]
        assert job.target == number
        if isinstance(job, RangeJob):
            span = range(job.target_offset, job.target_offset + job.nbytes)
            assert job.source_offset + job.nbytes <= plan.sources[job.source].info.nbytes
        else:
            span = range(job.start * width, job.stop * width)
        if isinstance(job, PanelJob):
            assert job.memory >= (job.stop - job.start) * width
            copies = [move.copy for move in job.moves] + [fill.copy for fill in job.fills]
            assert sum(copy.size for copy in copies) == job.stop - job.start
            for copy in copies:
                assert job.start <= copy.target_start
                assert copy.target_start + copy.target_span <= job.stop
        for byte in span:
            written[byte] += 1
    return written


@settings(max_examples=150)
@given(cases(), st.sampled_from([1, 8, 24, 64, 1 << 20]))
def test_jobs_tile_their_target(case: Case, panel: int) -> None:
    shapes = {key: shape_of(term, case.sizes) for term, key, _, _ in tensors_of(case, case.sources)}
    plan = plan_of(case.yaml().split("target: {layout: b}\n")[1], shapes, dtype=case.dtype)
    width = case.dtype.bits // 8
    for number in range(len(plan.targets)):
        assert set(covered(plan, number, Panels(panel))) <= {1}
        for job in jobs(plan, number, Panels(panel)):  # type: ignore[arg-type]
            if isinstance(job, PanelJob):
                assert (job.stop - job.start) * width <= max(panel, width)


def test_what_is_made_is_made_in_chunks() -> None:
    plan = plan_of("rename: {a: b}\nrules: [{fill: ones, to: c, shape: [200, 1000], dtype: F16}]", {"a": (1,)})
    assert set(covered(plan, 1, Budget(512_000_000, 2))) == {1}
    assert len([job for job in jobs(plan, 1, Budget(512_000_000, 2)) if isinstance(job, GenerateJob)]) > 1


def test_large_ranges_are_shared_by_threads() -> None:
    plan = plan_of("rename: {a: b}", {"a": (1 << 28,)}, dtype=DType.U8)
    found = list(jobs(plan, 0, Budget(512_000_000, 2)))
    assert len(found) > 1
    assert sum(job.nbytes for job in found if isinstance(job, RangeJob)) == 1 << 28


def test_jobs_of_huge_tensors_are_made_one_by_one() -> None:
    plan = plan_of("rules: [{from: a, to: b, layout: i o -> o i}]", {"a": (1 << 21, 1 << 20)})
    first = next(iter(jobs(plan, 0, Budget(512_000_000, 2))))
    assert isinstance(first, PanelJob)
    assert first.start == 0


def test_narrow_elements_move_as_bytes() -> None:
    copy = strided_copy([(3, 8, 16), (8, 1, 1)], 16, 32)
    assert byte_copy(copy, 4) == strided_copy([(3, 4, 8), (4, 1, 1)], 8, 16)
    assert byte_copy(copy, 6) == strided_copy([(3, 6, 12), (6, 1, 1)], 12, 24)
    assert byte_copy(strided_copy([(3, 1, 1)], 0, 0), 4) is None
    assert byte_copy(strided_copy([(4, 1, 1)], 1, 0), 4) is None
    assert byte_copy(strided_copy([(4, 2, 1)], 0, 0), 4) is None
    assert byte_copy(strided_copy([], 0, 0), 4) is None


def test_long_runs_are_copied_without_a_panel() -> None:
    plan = plan_of(
        'rules: [{from: {a: a, b: b}, to: c, layout: {a: "g i", b: "g i", to: "g (a: i | b: i)"}}]',
        {"a": (3, 1 << 17), "b": (3, 1 << 17)},
        dtype=DType.F32,
    )
    found = list(jobs(plan, 0, Budget(512_000_000, 2)))
    assert [job.target_offset for job in found if isinstance(job, RangeJob)] == [n << 19 for n in range(6)]
    assert [job.source for job in found if isinstance(job, RangeJob)] == [0, 1] * 3
    assert [job.source_offset for job in found if isinstance(job, RangeJob)] == [n // 2 << 19 for n in range(6)]
    assert set(covered(plan, 0, Budget(512_000_000, 2))) == {1}
    assert not needs_arrays(plan)


def test_what_is_not_copied_takes_arrays() -> None:
    assert needs_arrays(big(DType.BF16))
    assert needs_arrays(plan_of("rules: [{from: a, to: b, layout: i o -> o i}]", {"a": (3, 5)}))
    assert needs_arrays(plan_of("rename: {a: b}", {"a": (8,)}, dtype=DType.F32, cast=DType.F16))
    assert not needs_arrays(plan_of("rename: {a: b}", {"a": (8,)}))


def test_rows_that_stay_nearby_take_a_small_panel() -> None:
    plan = big(DType.BF16)
    sizes = {number: max(job.memory for job in jobs(plan, number, Budget(512_000_000, 2))) for number in (0, 1)}
    assert sizes[1] < 8 << 20 < 32 << 20 < sizes[0]


def test_a_panel_is_filled_in_the_order_of_the_files() -> None:
    plan = plan_of(
        'rules: [{from: {b: b, a: a}, to: c, layout: {b: "i j", a: "i j", to: "j (b: i | a: i)"}}]',
        {"a": (30, 50), "b": (30, 50)},
    )
    for job in jobs(plan, 0, Budget(512_000_000, 2)):
        assert isinstance(job, PanelJob)
        assert [move.source for move in job.moves] == [0, 1]
