"""How the engine cuts a plan into jobs that fit the memory budget; pure, so that `plan` can tell the peak."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Self

from msgspec import Struct

from converters.errors import MemoryBudgetError
from converters.operations import Elementwise
from converters.operations.cast import TABLE_BITS, Cast
from converters.panels import Part, extent, panels
from converters.plan import BlockFill, Move, Plan, Target
from converters.strided import StridedCopy, stretches

COPY_BUFFER = 256 << 10
"""Bytes of the buffer through which a plain range goes: small enough to stay in cache."""

COPIED_RUN = 256 << 10
"""Runs of so many bytes are copied one by one, as plain ranges: no panel could make them cheaper."""

RANGE_PART = 64 << 20
"""Bytes of a plain range that one thread copies at a time, so that a single huge tensor keeps all of them busy."""

LARGEST_PANEL = 96 << 20
"""Largest panel in bytes, where a smaller one would be filled in short runs."""

LARGE_PANEL = 64 << 20
"""Panel in bytes where a rearrangement reads longer runs for a larger one, as a transpose does."""

SHORT_RUN = 8 << 10
"""Runs of fewer bytes are what makes reading slow."""

SMALL_PANEL = 4 << 20
"""Panel in bytes where the runs are long anyway."""

LONG_RUN = 16 << 10
"""Runs of so many bytes are read one by one at full speed."""

NEARBY = 2
"""A panel may be filled from a stretch of the source so many times its size before a larger panel is tried."""

SLAB = 2 << 20
"""Bytes read at once where runs are short: a stretch of the source that is then taken apart in memory."""

TILE = 256
"""Side of the square tiles, in elements, in which two memory orders are reconciled; one fits in the L2 cache."""

TILE_GAP = 64
"""Bytes between the rows of a tile: a cache line."""

COMPUTED_CHUNK = 128 << 10
"""Elements that a cast works on at once: what it takes for them stays in the L2 cache."""

OPERATION_CHUNK = 16 << 10
"""The same for other operations, which have more temporaries."""

OPERATION_NBYTES = 80
"""Bytes that those take for an element: what is read, its order, and up to five arrays in float64."""

COMPUTED_OVERHEAD = max(28 * COMPUTED_CHUNK, OPERATION_NBYTES * OPERATION_CHUNK)
"""Most bytes that an operation's input, output and temporaries take; see `_computed_memory`."""

LIBRARIES = 16 << 20
"""Bytes of the budget that numpy and ml_dtypes take once they are imported (15 MB), and threads for their stacks."""

TILE_OVERHEAD = TILE * (TILE * 8 + TILE_GAP)
"""Bytes of the tile of the widest elements."""

JOB_OVERHEAD = COPY_BUFFER + SLAB + COMPUTED_OVERHEAD + TILE_OVERHEAD
"""Most bytes that a thread holds beside its panel."""

LEAST_SHARE = (1 << 20) + JOB_OVERHEAD
"""Bytes without which a thread can't do any job."""

MINIMUM_BUDGET = 32_000_000
"""Bytes: room for the libraries, and for one thread."""

MADE_CHUNK = 32 << 10
"""Elements of a tensor that an operation makes of others which are made at once."""

MAKING_MEMORY = 64 * MADE_CHUNK
"""Most bytes that making them takes."""

GENERATED_CHUNK = 1 << 16
"""Elements of a tensor without a source that are made at once; they take up to 64 bytes each, in float64 and int64."""


class RangeJob(Struct, frozen=True, gc=False):
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


class PanelJob(Struct, frozen=True, gc=False):
    """Gather a contiguous stretch of a target in memory, element `start` to `stop`, and write it once."""

    target: int
    start: int
    stop: int
    moves: tuple[Move, ...]
    memory: int
    fills: tuple[BlockFill, ...] = ()


class GenerateJob(Struct, frozen=True, gc=False):
    """Make the elements `start` to `stop` of a target that has no source."""

    target: int
    start: int
    stop: int

    @property
    def memory(self) -> int:
        """Bytes that it needs at its peak."""
        return 64 * (self.stop - self.start)


Job = RangeJob | PanelJob | GenerateJob


class Budget(Struct, frozen=True):
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
        share = (self.max_memory - LIBRARIES) // self.threads - JOB_OVERHEAD
        return max(1 << 20, min(LARGEST_PANEL, share))


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
    parts, width = _parts(target)
    if len(parts) == 1 and not target.operations and (job := _short_range(plan, target_index, parts[0], width)):
        yield job  # as of most tensors, so it is worth a look
        return
    for stretch in stretches(parts, key=extent):
        if not target.operations and all(_is_copied(part, width) for part in stretch):
            yield from _range_jobs(plan, target_index, stretch, width)
            continue
        limit = _panel_limit(stretch, target, width, budget)
        for start, stop, panel in panels(stretch, max(1, limit // width)):
            moves = sorted((part for part in panel if isinstance(part, Move)), key=_source_order)
            memory = (stop - start) * width + _reading_memory(plan, target, moves, width)
            fills = tuple(part for part in panel if isinstance(part, BlockFill))
            yield PanelJob(target_index, start, stop, tuple(moves), memory, fills)


def _parts(target: Target) -> tuple[tuple[Part, ...], int]:
    """What fills a target, in units of so many bytes."""
    bits = target.info.dtype.bits
    if bits % 8 == 0:
        return (*target.moves, *target.fills), bits // 8
    # The planner has refused whatever would cut a byte in two, and to fill a part of such a tensor.
    return tuple(Move(move.source, copy) for move in target.moves if (copy := byte_copy(move.copy, bits))), 1


def _source_order(move: Move) -> tuple[int, int]:
    """Sources are numbered as they lie in their files, and a disk reads fastest in that order."""
    return move.source, move.copy.source_start


def _is_copied(part: Part, width: int) -> bool:
    """Whether a part of a target comes as plain ranges, all in one or so long that each is worth a call."""
    return isinstance(part, Move) and (part.copy.is_range or part.copy.run * width >= COPIED_RUN)


def _short_range(plan: Plan, target: int, part: Part, width: int) -> RangeJob | None:
    """The only job of a part that comes as one plain range which isn't worth cutting; None of any other."""
    copy = part.copy
    nbytes = copy.size * width
    if not isinstance(part, Move) or not copy.is_range or not 0 < nbytes <= RANGE_PART:
        return None
    making = MAKING_MEMORY if plan.is_made(part.source) else 0
    return RangeJob(target, part.source, copy.source_start * width, copy.target_start * width, nbytes, making)


def _range_jobs(plan: Plan, target: int, stretch: Sequence[Part], width: int) -> Iterator[RangeJob]:
    runs = [
        (start, source, move.source, move.copy.run * width)
        for move in stretch
        if isinstance(move, Move)
        for start, source in move.copy.runs()
    ]
    for target_start, source_start, source, nbytes in sorted(runs):
        making = MAKING_MEMORY if plan.is_made(source) else 0
        for done in range(0, nbytes, RANGE_PART):
            yield RangeJob(
                target,
                source,
                source_start * width + done,
                target_start * width + done,
                min(RANGE_PART, nbytes - done),
                making,
            )


def _panel_limit(stretch: Sequence[Part], target: Target, width: int, budget: Budget) -> int:
    """A larger panel pays only where runs are short, and grow with it."""
    small = min(SMALL_PANEL, budget.panel)
    moves = [part for part in stretch if isinstance(part, Move)]
    if target.operations and all(move.copy.is_range for move in moves):
        return small
    if all(move.copy.run * width >= LONG_RUN for move in moves):
        return small
    copies = _first_copies(stretch, small // width)
    # A small panel is enough where it is filled from a stretch of the source that is hardly larger.
    if all(copy.source_span <= NEARBY * copy.size for copy in copies):
        return small
    large = min(LARGE_PANEL, budget.panel)
    copies = _first_copies(stretch, large // width)
    return large if all(copy.source_run * width >= SHORT_RUN for copy in copies) else budget.panel


def _first_copies(stretch: Sequence[Part], limit: int) -> list[StridedCopy]:
    """What fills the first panel of a stretch; the others are filled in the same way as a rule."""
    _, _, first = next(panels(stretch, max(1, limit)))
    return [part.copy for part in first if isinstance(part, Move)]


def _reading_memory(plan: Plan, target: Target, panel: Sequence[Move], width: int) -> int:
    """Bytes that filling a panel takes beside the panel itself."""
    making = MAKING_MEMORY if any(plan.is_made(move.source) for move in panel) else 0
    if not panel or (not target.operations and all(move.copy.run * width >= LONG_RUN for move in panel)):
        return making
    tile = min(TILE * (TILE * width + TILE_GAP), max(move.copy.size for move in panel) * width)
    if target.operations:
        return making + tile + _computed_memory(plan, target, panel, width)
    return making + tile + min(SLAB, max(move.copy.source_span for move in panel) * width)


def computed_chunk(operations: tuple[Elementwise, ...]) -> int:
    """Elements that these operations work on at once."""
    return COMPUTED_CHUNK if _only_casts(operations) else OPERATION_CHUNK


def _only_casts(operations: tuple[Elementwise, ...]) -> bool:
    return all(isinstance(operation, Cast) for operation in operations)


def _computed_memory(plan: Plan, target: Target, panel: Sequence[Move], width: int) -> int:
    """A chunk as it is read, in the panel's order, and rounded; and what it takes to round it.

    That is a place in a table for each value of 16 bits; else three masks, and float32 on the way from float64.
    """
    if not _only_casts(target.operations):
        return OPERATION_NBYTES * min(OPERATION_CHUNK, max(move.copy.source_span for move in panel))
    read = max(plan.tensor(move.source).dtype.bits // 8 for move in panel)
    reordered = 0 if all(move.copy.is_range for move in panel) else read
    elements = min(COMPUTED_CHUNK, max(move.copy.source_span for move in panel))
    rounding = 8 if read * 8 <= TABLE_BITS else 3 + (4 if read > 4 else 0)  # noqa: PLR2004 - bytes of a float32
    return elements * (read + reordered + rounding + width)


def needs_arrays(plan: Plan) -> bool:
    """Whether anything is to be done beyond copying plain ranges: it takes numpy."""
    if plan.generated_checks or plan.made:
        return True
    return any(_takes_arrays(plan.targets[first]) for first, _ in _alike(plan))


def _takes_arrays(target: Target) -> bool:
    if target.generator is not None or target.operations:
        return True
    parts, width = _parts(target)
    return not all(_is_copied(part, width) for part in parts)


def peak_memory(plan: Plan, budget: Budget) -> int:
    """Bytes of tensor data that the engine will hold at most: the largest jobs, as many as there are threads."""
    largest: list[int] = []
    for first, count in _alike(plan):
        memory = (job.memory for job in jobs(plan, first, budget))
        # What is generated comes in equal parts, of which the first is as large as any.
        is_generated = plan.targets[first].generator is not None
        found = heapq.nlargest(budget.threads, islice(memory, budget.threads) if is_generated else memory)
        largest = heapq.nlargest(budget.threads, [*largest, *found * min(count, budget.threads)])
    # Checks are made before anything is written, by one thread.
    checks = [2 * COPY_BUFFER] if plan.equality_checks else []
    checks += [80 * CHECK_ELEMENTS + SLAB] if plan.generated_checks else []
    return max(sum(largest), *checks, 0)


def _alike(plan: Plan) -> Iterable[tuple[int, int]]:
    """Targets with the same jobs, as layers have them: the number of the first, and how many there are."""
    found: dict[object, list[int]] = {}
    sources = len(plan.sources)
    for index, target in enumerate(plan.targets):
        # They share the very same copies, too, and it takes longer to compare a hundred thousand of these than to look
        # at the few that are equal and not the same.
        moves = target.moves
        if len(moves) == 1 and not target.operations and not target.fills:
            case: object = (target.info.dtype, id(moves[0].copy), moves[0].source >= sources)
        else:
            copies = tuple([(id(move.copy), move.source >= sources) for move in moves])
            case = (target.info.dtype, target.operations, target.generator, target.info.shape, copies, target.fills)
        seen = found.get(case)
        if seen is None:
            found[case] = [index, 1]
        else:
            seen[1] += 1
    return [(first, count) for first, count in found.values()]


CHECK_ELEMENTS = 1 << 16
"""Elements of a generated tensor that are made and compared at once."""
