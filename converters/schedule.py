"""How the engine cuts a plan into jobs that fit the memory budget; pure, so that `plan` can tell the peak."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Self

from converters.errors import MemoryBudgetError
from converters.operations import Elementwise
from converters.operations.cast import Cast
from converters.plan import BlockFill, GeneratedCheck, Move, Plan, Target
from converters.strided import StridedCopy, indices_within, stretches

COPY_BUFFER = 1 << 20
"""Bytes of the buffer through which a plain range goes: small enough to stay in cache."""

RANGE_PART = 64 << 20
"""Bytes of a plain range that one thread copies at a time, so that a single huge tensor keeps all of them busy."""

LARGE_PANEL = 64 << 20
"""Largest panel in bytes, where a rearrangement gains from more (a transpose reads longer runs)."""

SMALL_PANEL = 4 << 20
"""Panel in bytes where the runs are long anyway."""

LONG_RUN = 16 << 10
"""Runs of so many bytes are read one by one at full speed."""

SLAB = 2 << 20
"""Bytes read at once where runs are short: a stretch of the source that is then taken apart in memory."""

COMPUTED_CHUNK = 256 << 10
"""Elements that an operation works on at once."""

OPERATION_CHUNK = 64 << 10
"""The same for operations other than a cast, which have more temporaries."""

OPERATION_NBYTES = 80
"""Bytes that those take for an element: what is read, its order, and up to five arrays in float64."""

COMPUTED_OVERHEAD = 28 * COMPUTED_CHUNK
"""Most bytes that an operation's input, output and temporaries take; see `_computed_memory`."""

LIBRARIES = 16 << 20
"""Bytes of the budget that numpy and ml_dtypes take once they are imported (15 MB), and threads for their stacks."""

LEAST_SHARE = (1 << 20) + COPY_BUFFER + SLAB + COMPUTED_OVERHEAD
"""Bytes without which a thread can't do any job."""

MINIMUM_BUDGET = 32_000_000
"""Bytes: room for the libraries, and for one thread."""

MADE_CHUNK = 32 << 10
"""Elements of a tensor that an operation makes of others which are made at once."""

MAKING_MEMORY = 64 * MADE_CHUNK
"""Most bytes that making them takes."""

GENERATED_CHUNK = 1 << 16
"""Elements of a tensor without a source that are made at once; they take up to 64 bytes each, in float64 and int64."""


@dataclass(frozen=True, slots=True)
class RangeJob:
    """Copy `nbytes` plain bytes from a source to the target, through a small buffer."""

    target: int
    source: int
    source_offset: int
    target_offset: int
    nbytes: int
    making: int = 0

    @property
    def memory(self) -> int:
        """Bytes that it needs at its peak; `making` are those that an operation takes to make the source."""
        return min(self.nbytes, COPY_BUFFER) + self.making


@dataclass(frozen=True, slots=True)
class PanelJob:
    """Gather a contiguous stretch of a target in memory, element `start` to `stop`, and write it once."""

    target: int
    start: int
    stop: int
    moves: tuple[Move, ...]
    memory: int
    fills: tuple[BlockFill, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerateJob:
    """Make the elements `start` to `stop` of a target that has no source."""

    target: int
    start: int
    stop: int

    @property
    def memory(self) -> int:
        """Bytes that it needs at its peak."""
        return 64 * (self.stop - self.start)


Job = RangeJob | PanelJob | GenerateJob

Part = Move | BlockFill
"""What fills a part of a target."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Memory in bytes for tensor data in flight, and the threads that share it."""

    max_memory: int
    threads: int

    @classmethod
    def fitting(cls, max_memory: int, threads: int) -> Self:
        """A budget for so many threads, or for as many of them as it has room for.

        Raises:
            MemoryBudgetError: there is no room for a single one.
        """
        _check_budget(max_memory)
        return cls(max_memory, max(1, min(threads, (max_memory - LIBRARIES) // LEAST_SHARE)))

    @property
    def panel(self) -> int:
        """Bytes of the largest panel that one thread may hold, beside what it reads it through."""
        _check_budget(self.max_memory)
        share = (self.max_memory - LIBRARIES) // self.threads - COPY_BUFFER - SLAB - COMPUTED_OVERHEAD
        return max(1 << 20, min(LARGE_PANEL, share))


def _check_budget(max_memory: int) -> None:
    if max_memory < MINIMUM_BUDGET:
        raise MemoryBudgetError(
            f"a memory budget of {max_memory:,} bytes is too small",
            hint=f"--max-memory must be at least {MINIMUM_BUDGET // 1_000_000} MB",
        )


def byte_copy(copy: StridedCopy, bits: int) -> StridedCopy | None:
    """The same copy of elements narrower than a byte in bytes; None where it would cut a byte in two."""
    if not copy.shape:
        return None
    counts = (*copy.source_strides[:-1], *copy.target_strides[:-1], copy.source_start, copy.target_start, copy.run)
    if copy.run == 1 or any(count * bits % 8 for count in counts):
        return None
    return StridedCopy(
        (*copy.shape[:-1], copy.run * bits // 8),
        copy.source_start * bits // 8,
        (*(stride * bits // 8 for stride in copy.source_strides[:-1]), 1),
        copy.target_start * bits // 8,
        (*(stride * bits // 8 for stride in copy.target_strides[:-1]), 1),
    )


def jobs(plan: Plan, target_index: int, budget: Budget) -> Iterator[Job]:
    """The jobs that write one target, in order of its bytes; together they write each byte once."""
    target = plan.targets[target_index]
    if target.generator is not None:
        for start in range(0, target.info.size, GENERATED_CHUNK):
            yield GenerateJob(target_index, start, min(start + GENERATED_CHUNK, target.info.size))
        return
    bits = target.info.dtype.bits
    parts: tuple[Part, ...] = (*target.moves, *target.fills)
    if bits % 8:
        # The planner has refused whatever would cut a byte in two, and to fill a part of such a tensor.
        parts = tuple(Move(move.source, copy) for move in target.moves if (copy := byte_copy(move.copy, bits)))
    width = max(bits, 8) // 8
    for stretch in stretches(parts, key=_extent):
        first = stretch[0]
        if len(stretch) == 1 and isinstance(first, Move) and first.copy.is_range and not target.operations:
            yield from _range_jobs(target_index, first, width, MAKING_MEMORY if plan.is_made(first.source) else 0)
            continue
        moves = [part for part in stretch if isinstance(part, Move)]
        limit = _panel_limit(moves, target, width, budget)
        for start, stop, panel in _panels(stretch, max(1, limit // width)):
            moves = [part for part in panel if isinstance(part, Move)]
            memory = (stop - start) * width + _reading_memory(plan, target, moves, width)
            fills = tuple(part for part in panel if isinstance(part, BlockFill))
            yield PanelJob(target_index, start, stop, tuple(moves), memory, fills)


def _extent(part: Part) -> tuple[int, int]:
    return part.copy.target_start, part.copy.target_span


def _range_jobs(target: int, move: Move, width: int, making: int) -> Iterator[RangeJob]:
    nbytes = move.copy.size * width
    for start in range(0, nbytes, RANGE_PART):
        yield RangeJob(
            target,
            move.source,
            move.copy.source_start * width + start,
            move.copy.target_start * width + start,
            min(RANGE_PART, nbytes - start),
            making,
        )


def _panel_limit(stretch: Sequence[Move], target: Target, width: int, budget: Budget) -> int:
    """A larger panel pays only where short runs would grow with it."""
    if target.operations and all(move.copy.is_range for move in stretch):
        return min(SMALL_PANEL, budget.panel)
    long_runs = all(move.copy.run * width >= LONG_RUN for move in stretch)
    return min(SMALL_PANEL, budget.panel) if long_runs else budget.panel


def _reading_memory(plan: Plan, target: Target, panel: Sequence[Move], width: int) -> int:
    """Bytes that filling a panel takes beside the panel itself."""
    making = MAKING_MEMORY if any(plan.is_made(move.source) for move in panel) else 0
    if target.operations and panel:
        return making + _computed_memory(plan, target, panel, width)
    if any(move.copy.run * width < LONG_RUN for move in panel):
        return making + min(SLAB, max(move.copy.source_span for move in panel) * width)
    return making


def computed_chunk(operations: tuple[Elementwise, ...]) -> int:
    """Elements that these operations work on at once."""
    return COMPUTED_CHUNK if _only_casts(operations) else OPERATION_CHUNK


def _only_casts(operations: tuple[Elementwise, ...]) -> bool:
    return all(isinstance(operation, Cast) for operation in operations)


def _computed_memory(plan: Plan, target: Target, panel: Sequence[Move], width: int) -> int:
    """A chunk as it is read, in the panel's order, as float32 on the way from float64, rounded, and three masks."""
    if not _only_casts(target.operations):
        return OPERATION_NBYTES * min(OPERATION_CHUNK, max(move.copy.source_span for move in panel))
    read = max(plan.tensor(move.source).dtype.bits // 8 for move in panel)
    reordered = 0 if all(move.copy.is_range for move in panel) else read
    elements = min(COMPUTED_CHUNK, max(move.copy.source_span for move in panel))
    return elements * (read + reordered + (4 if read > 4 else 0) + width + 3)  # noqa: PLR2004 - bytes of a float32


def _panels(stretch: Sequence[Part], limit: int) -> Iterator[tuple[int, int, tuple[Part, ...]]]:
    """Cut a stretch into contiguous panels of at most `limit` elements, along the axes that its copies share."""
    start = min(move.copy.target_start for move in stretch)
    stop = max(move.copy.target_start + move.copy.target_span for move in stretch)
    if stop - start <= limit:
        yield start, stop, tuple(stretch)
        return
    outer = {(move.copy.shape[0], move.copy.target_strides[0]) if move.copy.shape else (1, 0) for move in stretch}
    count, stride = max(outer, key=lambda axis: axis[1])
    if len(outer) > 1:
        yield from _window_panels(stretch, start, stop, stride, limit)
        return
    step = max(1, limit // stride)
    for first in range(0, count, step):
        last = min(first + step, count)
        narrowed = [replace(move, copy=move.copy.narrow(0, first, last)) for move in stretch]
        if stride <= limit:
            yield start + first * stride, start + last * stride, tuple(narrowed)
            continue
        inner = [replace(move, copy=_drop_outer(move.copy)) for move in narrowed]
        for group in stretches(inner, key=_extent):
            yield from _panels(group, limit)


def _window_panels(
    stretch: Sequence[Part], start: int, stop: int, length: int, limit: int
) -> Iterator[tuple[int, int, tuple[Part, ...]]]:
    """The panels of a stretch whose copies don't share an outermost axis, window by window as it was proved."""
    for window in range(start, stop, length):
        inside: list[Part] = []
        for move in stretch:
            copy = move.copy
            indices = indices_within(
                copy.shape, copy.target_strides, copy.target_start, window, min(window + length, stop)
            )
            if indices is None:
                raise AssertionError("coverage was proved, so no copy straddles a window")
            first, last = indices
            if first < last:
                inside.append(replace(move, copy=_narrow_outer(copy, first, last)))
        for group in stretches(inside, key=_extent):
            yield from _panels(group, limit)


def _narrow_outer(copy: StridedCopy, first: int, last: int) -> StridedCopy:
    if not copy.shape:
        return copy
    narrowed = copy.narrow(0, first, last)
    return _drop_outer(narrowed) if last - first == 1 else narrowed


def _drop_outer(copy: StridedCopy) -> StridedCopy:
    return StridedCopy(
        copy.shape[1:], copy.source_start, copy.source_strides[1:], copy.target_start, copy.target_strides[1:]
    )


def peak_memory(plan: Plan, budget: Budget) -> int:
    """Bytes of tensor data that the engine will hold at most: the largest jobs, as many as there are threads."""
    largest: list[int] = []
    seen: dict[object, list[int]] = {}
    for index, target in enumerate(plan.targets):
        # Layers share their geometry, and with it their largest jobs.
        key = (
            target.info.dtype,
            target.operations,
            target.generator,
            target.info.size,
            tuple((move.copy, plan.is_made(move.source)) for move in target.moves),
            target.fills,
        )
        if key not in seen:
            memory = (job.memory for job in jobs(plan, index, budget))
            # What is generated comes in equal parts, of which the first is as large as any.
            seen[key] = heapq.nlargest(budget.threads, islice(memory, budget.threads) if target.generator else memory)
        if len(largest) < budget.threads or any(memory > largest[-1] for memory in seen[key]):
            largest = heapq.nlargest(budget.threads, [*largest, *seen[key]])
    # Checks are made before anything is written, by one thread.
    checks = [2 * COPY_BUFFER] if plan.equality_checks else []
    checks += [80 * CHECK_ELEMENTS + SLAB] if plan.generated_checks else []
    return max(sum(largest), *checks, 0)


CHECK_ELEMENTS = 1 << 16
"""Elements of a generated tensor that are made and compared at once."""


def check_panels(check: GeneratedCheck) -> Iterator[tuple[int, int, tuple[Move, ...]]]:
    """What is checked, part by part: its first element and its last plus one, and the moves that bring it."""
    if check.copy.size:
        for start, stop, parts in _panels([Move(check.source, check.copy)], CHECK_ELEMENTS):
            yield start, stop, tuple(part for part in parts if isinstance(part, Move))
