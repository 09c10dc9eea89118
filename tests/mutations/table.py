"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from converters.verify.report import LEVELS
from tests.mutations.layouts import LayoutResult
from tests.mutations.trial import Correct, Trial

INTRODUCTION = """\
# Proving the verifier: mutation testing

<!-- Written by `python -m tests.mutations`; changes by hand are lost. -->

Each row is one kind of wrong conversion, applied to correct outputs of small real models; a fraction says in how many
of the architectures that can have it a level failed, as it should. *Located* is that the findings name the layers and
tensors (roundtrip) or modules (modules) that were changed, and no others; it is asked of local mutants. *Right* is that
the cheapest level that should see it fails, that the logits alone do where it changes the function, and that it is
located where it is local.
"""
EQUIVALENT = """
## Mutants that can't change the function

The logits must pass here: a failure would be a false alarm. That roundtrip fails is right, since the bytes are not
those that the spec gives; so is it that modules fail where a projection puts out its features in another order.
"""
CORRECT = """
## Correct conversions

All four levels must pass. The largest values that gates measured, over all seeds, are what the tolerances in
`converters/verify/tolerances.py` stand on; for agreement it is the share that differs. `a → b` is a conversion that
casts from a to b.
"""

LAYOUTS = """
## Every shipped layout

Correct conversions of small models, and six kinds of wrong ones that any layout can have, tried on both directions of
every shipped mapping. `-` is a level whose models can't be run on tokens alone; those are compared in
`tests/mappings`. Modules are *not proved* where a plain model uses a weight without calling the module that holds it.
"""


def render(trials: Sequence[Trial], correct: Sequence[Correct], where: str, seed: int) -> str:
    """The page: what was caught, by which level, and where; then correct conversions."""
    wrong = [trial for trial in trials if trial.equivalent is None]
    same = [trial for trial in trials if trial.equivalent is not None]
    kinds = {trial.mutant for trial in wrong}
    kept = sum(not trial.problem for trial in wrong)
    models = len({trial.case for trial in wrong})
    summary = f"{len(kinds)} kinds, {len(wrong)} mutants of {models} models, weights from seed {seed}, on {where}:"
    parts = [
        INTRODUCTION,
        f"{summary} {kept} of {len(wrong)} caught and located as they should be.\n",
        *_mutants(wrong),
        EQUIVALENT,
        *_equivalent(same),
        CORRECT,
        *_correct(correct),
        "",
    ]
    problems = [trial for trial in trials if trial.problem]
    alarms = [each for each in correct if each.alarms]
    if problems or alarms:
        parts += ["## What is not as it should be", ""]
        parts += [f"- {trial.case}: {trial.mutant}: {trial.problem}" for trial in problems]
        parts += [f"- {each.case}, {each.precision}, seed {each.seed}: {'; '.join(each.alarms)}" for each in alarms]
        parts += [""]
    return "\n".join(parts)


def render_layouts(results: Sequence[LayoutResult]) -> str:
    """The part of the page about every shipped layout."""
    rows = [f"| mapping | {' | '.join(LEVELS)} | wrong ones caught | |", f"|{'---|' * (len(LEVELS) + 3)}"]
    for each in results:
        verdicts = " | ".join(each.verdicts.get(level, "-") for level in LEVELS)
        caught = _share(not problem for problem in each.problems.values())
        rows.append(f"| {each.name} | {verdicts} | {caught} | {each.excepted} |")
    wrong = [
        f"- {each.name}: {kind}: {problem}" for each in results for kind, problem in each.problems.items() if problem
    ]
    return "\n".join([LAYOUTS, *rows, "", *wrong])


def _mutants(trials: Sequence[Trial]) -> Iterable[str]:
    columns = ("mutant", "first level that should", *LEVELS, "located by roundtrip", "by modules", "right")
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for name, group in _groups(trials).items():
        first = group[0]
        what = f"{name}: {first.what}" if first.what else name
        levels = [_share(trial.verdicts[level] == "fail" for trial in group) for level in LEVELS]
        located = [_share(trial.located[level] for trial in group) for level in LEVELS[1:3]]
        caught = _share(not trial.problem for trial in group)
        yield f"| {what} | {first.level} | {' | '.join(levels)} | {' | '.join(located)} | {caught} |"


def _equivalent(trials: Sequence[Trial]) -> Iterable[str]:
    yield "| mutant | why it can't | accounting | roundtrip | modules | logits |"
    yield "|---|---|---|---|---|---|"
    for name, group in _groups(trials).items():
        first = group[0]
        levels = [_share(trial.verdicts[level] == "fail" for trial in group) for level in LEVELS]
        yield f"| {name}: {first.what} | {first.equivalent} | {' | '.join(levels)} |"


def _correct(found: Sequence[Correct]) -> Iterable[str]:
    names = list(dict.fromkeys(name for each in found for name in each.measured))
    shown = [name.split(": ", 1)[1] for name in names]
    yield f"| model | precision | conversions | false alarms | {' | '.join(shown)} |"
    yield f"|---|---|---|---|{'---|' * len(names)}"
    groups: dict[tuple[str, str], list[Correct]] = {}
    for each in found:
        groups.setdefault((each.case, each.precision), []).append(each)
    for (case, precision), group in groups.items():
        worst: Mapping[str, float] = {
            name: max((each.measured.get(name, float("nan")) for each in group), default=float("nan")) for name in names
        }
        values = " | ".join(f"{worst[name]:.2g}" for name in names)
        alarms = sum(bool(each.alarms) for each in group)
        yield f"| {case} | {precision} | {len(group)} | {alarms} | {values} |"


def _groups(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.mutant, []).append(trial)
    return groups


def _share(values: Iterable[bool | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known)}/{len(known)}" if known else "-"
