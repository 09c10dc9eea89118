"""Comparing what a plan demands to be equal, before anything is written."""

from __future__ import annotations

from collections.abc import Iterator

from converters.engine import Progress
from converters.errors import CoverageError
from converters.gather import Gatherer
from converters.panels import panels
from converters.plan import GeneratedCheck, Move, Plan
from converters.schedule import CHECK_ELEMENTS, COPY_BUFFER
from converters.storage.base import CheckpointReader
from converters.text import printable


def check_sources(plan: Plan, reader: CheckpointReader, progress: Progress) -> None:
    """Compare what the plan demands to be equal, before anything is written.

    Raises:
        CoverageError: sources that only one target stands for differ, or a tensor that the other side makes anew
            doesn't hold what it would make.
    """
    for check in plan.equality_checks:
        first, second = plan.sources[check.first].info, plan.sources[check.second].info
        offset = _first_difference(reader, first.name, second.name, first.nbytes, progress)
        if offset is not None:
            raise CoverageError(
                f"{printable(first.name)} and {printable(second.name)} must be equal to become one tensor, "
                f"but they differ from element {offset * 8 // first.dtype.bits} on",
                plan.rules[check.rule].where,
                "they were trained apart since they were copied, and the target has no place for both",
            )
    for generated in plan.generated_checks:
        info = plan.sources[generated.source].info
        width = info.dtype.bits // 8
        for start, stop, moves in _panels_of(generated):
            import numpy as np

            part = np.empty(stop - start, dtype=f"u{width}")
            for move in moves:
                Gatherer(reader, info, (), width).fill(part, start, move)
            position = generated.generator.differs(part, info, start)
            if position is not None:
                block = "" if generated.copy.size == info.size else "in a block of its own, "
                raise CoverageError(
                    f"{printable(info.name)} doesn't hold what the rule fills it with, {block}from element {position} "
                    "on",
                    plan.rules[generated.rule].where,
                    "the target has no place for these values; drop the key by name if they don't matter",
                )
            progress(part.nbytes)


def _first_difference(reader: CheckpointReader, first: str, second: str, nbytes: int, progress: Progress) -> int | None:
    left, right = bytearray(min(COPY_BUFFER, nbytes)), bytearray(min(COPY_BUFFER, nbytes))
    for offset in range(0, nbytes, COPY_BUFFER):
        length = min(COPY_BUFFER, nbytes - offset)
        if length < len(left):
            left, right = bytearray(length), bytearray(length)
        reader.read_into(first, offset, memoryview(left))
        reader.read_into(second, offset, memoryview(right))
        # Byte arrays compare at memory speed, memory views one item at a time.
        if left != right:
            return offset + next(index for index in range(length) if left[index] != right[index])
        progress(2 * length)
    return None


def _panels_of(check: GeneratedCheck) -> Iterator[tuple[int, int, tuple[Move, ...]]]:
    """What is checked, part by part: its first element and its last plus one, and the moves that bring it."""
    if check.copy.size:
        for start, stop, parts in panels([Move(check.source, check.copy)], CHECK_ELEMENTS):
            yield start, stop, tuple(part for part in parts if isinstance(part, Move))
