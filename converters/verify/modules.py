"""Level: modules. Both models' modules, paired through the spec, on the same input: where a difference comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from converters.verify.context import VerifyContext
from converters.verify.logits import findings_of, make_prompts, versions
from converters.verify.models import (
    ModelLoadError,
    ModelUnavailableError,
    SideModel,
    open_source,
    open_target,
    why_not,
)
from converters.verify.module_pairs import ModulePairs, pair_modules
from converters.verify.module_runs import ModuleRuns, Outcome, block_of
from converters.verify.precision import Precision, choose_precision, exact_arithmetic
from converters.verify.prompts import PromptBatch
from converters.verify.report import Finding, Gate, LevelResult, Measurement, Severity, Verdict
from converters.verify.skeleton import RUN_ERRORS
from converters.verify.tolerances import deciding, tolerances_for

LEVEL = "modules"


def check_modules(context: VerifyContext) -> LevelResult:
    """Compare the modules of both models, see the module."""
    try:
        precision = choose_precision(context.models.device, context.models.dtype)
        with exact_arithmetic():
            return _check(context, precision)
    except ModelUnavailableError as error:
        return LevelResult(LEVEL, Verdict.NOT_PROVED, why_not(context) or str(error.problems[0]))


def _check(context: VerifyContext, precision: Precision) -> LevelResult:
    tolerances, row = tolerances_for(precision.dtype, precision.device.type, context.models.tolerances)
    said: dict[str, Any] = {"device": str(precision.device), "dtype": precision.label, "versions": versions()}
    with ExitStack() as stack:
        try:
            source = stack.enter_context(open_source(context, precision))
        except ModelLoadError as error:
            reason = "the source's own model can't be loaded from it"
            return LevelResult(LEVEL, Verdict.NOT_PROVED, reason, findings=findings_of(error, "source"), **said)
        try:
            target = stack.enter_context(open_target(context, precision))
            pairing = pair_modules(context.plan, source, target)
            runs = ModuleRuns(source, target, context.target_reader, pairing)
            batch = make_prompts(context, source)[0]
            one = PromptBatch(batch.names[:1], batch.input_ids[:1])
            outcomes = sorted(runs.outcomes(one), key=lambda each: (each.order, each.kind != "weights"))
        except ModelLoadError as error:
            reason = "the target can't be loaded into its model"
            return LevelResult(LEVEL, Verdict.FAIL, reason, findings=findings_of(error, "target"), **said)
        except RUN_ERRORS as error:
            finding = Finding("model-fails", f"a model fails on the prompt: {error}")
            return LevelResult(LEVEL, Verdict.FAIL, finding.what, findings=(finding,), **said)
        evidence = (*_evidence(source, target, pairing, outcomes, one), row)
        return _judge(outcomes, _Names(source, target), tolerances.module, evidence, runs.never_run, said)


class _Names:
    """Layers and parts, for tables."""

    def __init__(self, source: SideModel, target: SideModel) -> None:
        self._sides = source, target

    def layer(self, outcome: Outcome) -> int | None:
        """The number of the layer, by the source's block or else the target's."""
        names = zip(self._sides, (outcome.source, outcome.target), strict=True)
        block = next((name for name in (block_of(side, name) for side, name in names) if name is not None), None)
        return int(block.rpartition(".")[2]) if block is not None else None

    def part(self, outcome: Outcome) -> str:
        """The names without their layers."""
        parts = []
        for side, name in zip(self._sides, (outcome.source, outcome.target), strict=True):
            block = block_of(side, name)
            parts.append(name if block is None else name.removeprefix(block).removeprefix(".") or "block")
        return parts[0] if parts[0] == parts[1] else " → ".join(parts)


def _judge(
    outcomes: Sequence[Outcome],
    names: _Names,
    tolerance: float,
    evidence: tuple[str, ...],
    never_run: Sequence[str],
    said: dict[str, Any],
) -> LevelResult:
    bad = [outcome for outcome in outcomes if not outcome.relative <= tolerance]
    bad = [outcome for outcome in bad if not _made_up_for(outcome, outcomes, tolerance)]
    leaves = _innermost(bad, outcomes)
    differing = {(outcome.source, outcome.target) for outcome in leaves}
    structural = [] if leaves else bad
    findings = [_located(outcome, names) for outcome in _one_each(leaves)]
    findings.extend(_structural(structural, names))
    findings.extend(
        Finding("never-run", "no prompt reaches it, so nothing is known of it", name, severity=Severity.WARNING)
        for name in dict.fromkeys(never_run)
    )
    measurements = tuple(_measurement(outcome, names, tolerance) for outcome in _one_each(outcomes))
    if not outcomes:
        return LevelResult(LEVEL, Verdict.NOT_PROVED, "the plan pairs no modules of the two models", evidence, **said)
    counted = [each for each in outcomes if each in bad or each.relative <= tolerance]
    worst = max(counted or outcomes, key=lambda each: each.relative)
    gates = (Gate("module on the same input", worst.relative, tolerance, where=worst.target),)
    if bad and differing:
        first = leaves[0]
        reason = f"the first that differs, in order of execution: {_pair(first)}"
    elif bad:
        same = "each projection and norm computes the same from the same input, but the whole isn't equivalent"
        reason = f"{same}: {findings[0].what}"
    elif never_run:
        reason = f"no prompt reaches {len(set(never_run))} modules"
    else:
        reason = f"nearest to its bound: {gates[0]}"
    verdict = Verdict.FAIL if bad else Verdict.NOT_PROVED if never_run else Verdict.PASS
    return LevelResult(LEVEL, verdict, reason, evidence, tuple(findings), measurements, gates, deciding(gates), **said)


def _made_up_for(outcome: Outcome, outcomes: Sequence[Outcome], tolerance: float) -> bool:
    """Whether a module before the blocks computes something else, and the first block gets the same all the same.

    One model scales its embedding inside of the module, say, and the other one beside it.
    """
    first = min((each for each in outcomes if each.kind == "block"), key=lambda each: each.order, default=None)
    if outcome.kind != "call" or outcome.block is not None or first is None or first.inherited is None:
        return False
    return outcome.order < first.order and first.inherited <= tolerance


def _innermost(bad: Sequence[Outcome], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those that no other explains: differing weights, and calls of modules that hold no other compared module."""
    inner = {outcome.source for outcome in outcomes if outcome.kind == "weights"}

    def holds_others(name: str) -> bool:
        return any(each != name and each.startswith(f"{name}.") for each in inner)

    return [outcome for outcome in bad if outcome.kind == "weights" or not holds_others(outcome.source)]


def _one_each(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """For each pair of modules, the outcome with the largest error, in order."""
    worst: dict[tuple[str, str], Outcome] = {}
    for outcome in outcomes:
        key = outcome.source, outcome.target
        if key not in worst or outcome.relative > worst[key].relative or outcome.kind == "block":
            worst[key] = outcome
    return list(worst.values())


def _pair(outcome: Outcome) -> str:
    return f"{outcome.target} (from {outcome.source})"


def _located(outcome: Outcome, names: _Names) -> Finding:
    what = "what it holds gives another output than the source's module on the same input"
    if outcome.kind != "weights":
        what = "it gives another output than the source's module on the same input, though its weights are the same"
    return Finding(
        "module-differs",
        f"{what}, by {outcome.relative:.2g} of its size",
        outcome.target,
        layer=names.layer(outcome),
        diagnosis=f"made from {outcome.source}",
        values={"max_abs": outcome.error, "relative": outcome.relative, "source": outcome.source},
    )


def _structural(bad: Sequence[Outcome], names: _Names) -> list[Finding]:
    """One finding for each part that differs as a whole, whatever the number of layers."""
    found: dict[str, list[Outcome]] = {}
    for outcome in bad:
        found.setdefault(names.part(outcome), []).append(outcome)
    return [
        Finding(
            "structure-differs",
            f"{part} computes something else from the same input with the same weights, in {len(group)} places, "
            f"by {max(each.relative for each in group):.2g} of its size: its code or its config differs",
            group[0].target,
            layer=names.layer(group[0]),
            diagnosis="the blocks are built differently (masks, positions, norms, activation), or the config is wrong",
            values={"source": group[0].source, "relative": max(each.relative for each in group)},
        )
        for part, group in found.items()
    ]


def _measurement(outcome: Outcome, names: _Names, tolerance: float) -> Measurement:
    block = outcome.kind == "block"
    return Measurement(
        "block" if block else "module",
        outcome.target,
        outcome.source,
        names.layer(outcome),
        names.part(outcome),
        outcome.error,
        outcome.total if block else outcome.relative,
        outcome.inherited,
        outcome.relative if block else None,
        tolerance,
        outcome.relative <= tolerance,
        {"compared": outcome.kind},
    )


def _evidence(
    source: SideModel, target: SideModel, pairing: ModulePairs, outcomes: Sequence[Outcome], batch: PromptBatch
) -> tuple[str, ...]:
    kinds = [outcome.kind for outcome in outcomes]
    blocks = [outcome for outcome in outcomes if outcome.kind == "block" and outcome.total is not None]
    lines = [
        f"source: {source.made_by}; target: {target.made_by}; on {batch.input_ids.shape[1]} tokens",
        (
            f"{kinds.count('weights')} times a module of the source with the target's weights, {kinds.count('call')} "
            f"times two modules on the same input, {len(blocks)} blocks on the same input"
        ),
    ]
    if blocks:
        drift = max(outcome.total if outcome.total is not None else math.inf for outcome in blocks)
        lines.append(f"when each model runs alone, blocks drift apart by {drift:.2g} at most")
    if source.stream is not None or target.stream is not None:
        lines.append("one block of each model in memory at a time")
    lines.extend(f"not compared: {key}: {why}" for key, why in list(pairing.left_out.items())[:5])
    return tuple(lines)
