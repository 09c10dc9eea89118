"""What the way there has proved equal already, so that the way back need not read it again.

Where a rule copies plain bytes, the way there compares a stretch of the source with a stretch of the target, and the
way back would compare the same two once more. Whatever is gathered or computed is made both ways all the same: the
engine does that differently in each direction, and each stands against a mistake in the other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from msgspec import Struct, field

from converters.plan import Plan
from converters.schedule import RangeJob


class Equal(Struct, frozen=True):
    """`nbytes` bytes of the tensor `made`, from `made_start` on, are those of `origin` from `origin_start` on."""

    made: str
    made_start: int
    origin: str
    origin_start: int
    nbytes: int

    @classmethod
    def of(cls, plan: Plan, job: RangeJob) -> Equal:
        """What holds once a job's bytes have been found where they belong."""
        made, origin = plan.targets[job.target].info.name, plan.tensor(job.source).name
        return cls(made, job.target_offset, origin, job.source_offset, job.nbytes)


class Settled(Struct):
    """Stretches of two sides that are known to be equal, byte for byte."""

    _stretches: dict[tuple[str, str, int], list[tuple[int, int]]] = field(default_factory=dict)

    @classmethod
    def by(cls, found: Iterable[Equal]) -> Settled:
        """Put together what was found; stretches that meet become one."""
        pieces: dict[tuple[str, str, int], list[tuple[int, int]]] = {}
        for one in found:
            key = one.made, one.origin, one.made_start - one.origin_start
            pieces.setdefault(key, []).append((one.made_start, one.made_start + one.nbytes))
        return cls({key: _merged(stretches) for key, stretches in pieces.items()})

    def covers(self, back: Equal) -> bool:
        """Whether it is known already what a job of the way back would find: its origin is what was made here."""
        key = back.origin, back.made, back.origin_start - back.made_start
        stretches = self._stretches.get(key, ())
        last = bisect_right(stretches, back.origin_start, key=lambda stretch: stretch[0]) - 1
        return last >= 0 and back.origin_start + back.nbytes <= stretches[last][1]


def _merged(stretches: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(stretches):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(stop, merged[-1][1])
        else:
            merged.append((start, stop))
    return merged
