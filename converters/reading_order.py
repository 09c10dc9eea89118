"""The order in which targets are made: that of the output, but for what brings the source's files into order."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import accumulate, pairwise
from typing import Final

from converters.plan import Plan

WINDOW: Final = 256 << 20
"""Bytes of the output that are written out of order at most: what reads it while it is written is never far behind."""


def reading_order(plan: Plan, targets: range) -> Sequence[int]:
    """The numbers of a file's targets, so that each file of the source is read from front to back, as far as may be.

    Sources are numbered as they lie in their files. Names order the output, and they order the layers of a model as
    they are in the source, too; but within a layer the order differs, and a disk or a network has to go back for it.
    """
    sources = [min(plan.sources_of(plan.targets[number]), default=-1) for number in targets]
    if all(before <= after for before, after in pairwise(sources)):
        return targets
    starts = list(accumulate((plan.targets[number].info.nbytes for number in targets), initial=0))
    order: list[int] = []
    made = [False] * len(targets)
    near: list[tuple[int, int]] = []
    first = reached = 0
    while first < len(targets):
        while reached < len(targets) and (reached == first or starts[reached + 1] - starts[first] <= WINDOW):
            heappush(near, (sources[reached], reached))
            reached += 1
        _, place = heappop(near)
        made[place] = True
        order.append(targets[place])
        while first < len(targets) and made[first]:
            first += 1
    return order
