"""Which plans only give tensors other names, so that no byte of data has to move; and what keeps the others from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from converters.errors import Problem
from converters.plan import Move, Plan, Source, Target
from converters.tensor_info import TensorInfo
from converters.text import printable

_LISTED: Final = 3


def whole_source(target: Target, sources: Sequence[Source]) -> int | None:
    """The number of the source whose bytes a target holds, all of them and nothing else; None if there is none."""
    return target.moves[0].source if _obstacle(target, sources) is None else None


def renaming(plan: Plan) -> dict[str, Target]:
    """What becomes of each source, by its name; only for a plan without `obstacles`."""
    return {plan.sources[target.moves[0].source].info.name: target for target in plan.targets}


def obstacles(plan: Plan) -> list[Problem]:
    """Say why a plan is more than new names: each reason once for each rule, with the tensors that it holds for."""
    found: dict[tuple[str, str | None], list[str]] = {}
    for why, rule, name in _all_obstacles(plan):
        where = plan.rules[rule].where if rule is not None else None
        found.setdefault((why, where), []).append(name)
    return [Problem(f"{_listed(names)}: {why}", where) for (why, where), names in found.items()]


def _all_obstacles(plan: Plan) -> Iterator[tuple[str, int | None, str]]:
    """The reason, the rule and the tensor of each."""
    used: set[int] = set()
    for target in plan.targets:
        if (why := _obstacle(target, plan.sources)) is not None:
            yield why, target.rule, target.info.name
        elif target.moves[0].source in used:
            yield "a copy of a tensor that becomes another one, too", target.rule, target.info.name
        else:
            used.add(target.moves[0].source)
    for drop in plan.whole_dropped:
        yield f"left out ({drop.reason})", None, plan.sources[drop.source].info.name
    for check in plan.equality_checks:
        yield "becomes one tensor with another, equal one", check.rule, plan.sources[check.second].info.name
    for generated in plan.generated_checks:
        yield "left out, since the way back makes it anew", generated.rule, plan.sources[generated.source].info.name


def _obstacle(target: Target, sources: Sequence[Source]) -> str | None:
    """Why the bytes of a target are not those of one whole source; None if they are."""
    if target.generator is not None:
        return "made anew, from no tensor"
    if target.operations or any(move.source >= len(sources) for move in target.moves):
        return "its values are computed"
    if len(target.moves) != 1 or target.fills:
        return "put together of several pieces"
    move = target.moves[0]
    return _obstacle_of_move(move, sources[move.source].info, target.info)


def _obstacle_of_move(move: Move, source: TensorInfo, target: TensorInfo) -> str | None:
    if not move.copy.is_range:
        return "its elements come in another order"
    if source.dtype is not target.dtype:
        return f"its dtype changes from {source.dtype}"
    return None if move.copy.size == source.size == target.size else "made of a part of a tensor"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED:,} more"
