"""The plan for the way back: from the target, as the spec says that it should be, to the source."""

from __future__ import annotations

from converters.bind import bind
from converters.convert import Options
from converters.errors import ConfigError, CoverageError, Problem, SpecError
from converters.plan import Plan, Source
from converters.planner import make_plan
from converters.spec import Spec


def way_back(spec: Spec, plan: Plan, options: Options) -> tuple[Plan | None, str | None]:
    """Plan the conversion back, from what the target should be and not from what it is: damage must not hide behind it.

    Args:
        spec: the spec of `plan`.
        plan: from source to target.
        options: those that `plan` was made with.

    Returns:
        The plan and None; or None and the reason why there is no way back.
    """
    sources = [Source(info, shard.filename) for shard in plan.shards for info in shard.tensors]
    try:
        bound = bind(spec.inverse(), plan.config, where="the target's config.json", dims=options.dims)
        return make_plan(bound, sources), None
    except (SpecError, ConfigError, CoverageError) as error:
        return None, "; ".join(_line(problem) for problem in error.problems)


def _line(problem: Problem) -> str:
    """A problem without a line break, since it becomes a part of a sentence."""
    where = f"{problem.where}: " if problem.where is not None else ""
    return f"{where}{problem.what}{f' ({problem.hint})' if problem.hint else ''}"
