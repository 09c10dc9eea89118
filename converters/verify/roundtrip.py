"""Level 2, roundtrip: the target holds what the spec makes of the source, and the way back gives the source again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from converters.errors import CheckpointError, CoverageError
from converters.plan import Plan
from converters.source_checks import check_sources
from converters.text import format_nbytes, printable
from converters.verify.contents import Made, Stored, collect
from converters.verify.context import VerifyContext
from converters.verify.names import layer_of, part_of
from converters.verify.pairing import Pairing, pair_back, pair_forward
from converters.verify.report import Finding, LevelResult, Measurement, Severity, Verdict
from converters.verify.sweep import Explained, Sweep, describe_names, explain, sweep, within_allowed, working_budget
from converters.verify.tensor_check import rule_text, tied_keys

BACK = "source-not-restored"
"""The kind of finding for a tensor of the source that the way back doesn't give."""

MAX_ROWS = 20_000
"""Tensors beyond which only those that differ are listed one by one."""


def check_roundtrip(context: VerifyContext) -> LevelResult:
    """Make every tensor anew, both ways, and compare it, within the memory budget.

    Each side is read once, and again for the way back only what is not copied plainly.

    Raises:
        CheckpointError: the source changed while it was read.
        MemoryBudgetError: the budget is too small.
    """
    findings: list[Finding] = list(_demands(context))
    evidence: list[str] = []
    forward = pair_forward(context.plan, context.target_reader.tensors)
    there = sweep(
        context.plan,
        context.source_reader,
        context.target_reader,
        forward,
        context.budget,
        context.progress,
        made_is_expected=True,
    )
    explained = _explain_forward(context, forward, there)
    findings.extend(one.finding for one in explained)
    findings.extend(_unmatched(context, forward, there))
    moved = list(_shifted(explained))
    findings.extend(moved)
    findings.extend(_tied(context))
    evidence.append(_forward_evidence(context, forward, there))
    evidence.extend(_rounding_evidence("target", forward, there))
    evidence.extend(finding.what for finding in moved)
    if context.plan_back is not None:
        found, lines = _back(context, context.plan_back, forward, there)
        findings.extend(found)
        evidence.extend(lines)
    else:
        evidence.append(f"back: not proved, since there is no way back: {context.no_way_back}")
    context.source_reader.check_unchanged()
    try:
        context.target_reader.check_unchanged()
    except CheckpointError as error:
        findings.extend(Finding("target-changed", problem.what, str(problem.where)) for problem in error.problems)
    errors = [finding for finding in findings if finding.severity is Severity.ERROR]
    findings.sort(key=lambda finding: list(Severity).index(finding.severity))
    return LevelResult(
        "roundtrip",
        _verdict(context, errors),
        _reason(context, errors),
        tuple(evidence),
        tuple(findings),
        tuple(_measurements(context.plan, forward, there)),
    )


def _verdict(context: VerifyContext, errors: list[Finding]) -> Verdict:
    if errors:
        return Verdict.FAIL
    return Verdict.PASS if context.plan_back is not None else Verdict.NOT_PROVED


def _reason(context: VerifyContext, errors: list[Finding]) -> str:
    if errors:
        there, back = (
            list(dict.fromkeys(one.where for one in errors if one.where and (one.kind == BACK) is is_back))
            for is_back in (False, True)
        )
        parts = [
            f"{len(names)} tensor{'s' if len(names) > 1 else ''} {what}: {describe_names(names)}"
            for names, what in ((there, "of the target not as the spec gives"), (back, "of the source not restored"))
            if names
        ]
        return "; ".join(parts) or errors[0].what
    if context.plan_back is None:
        return f"every tensor is what the spec gives, but the source can't be made of it again: {context.no_way_back}"
    return "every tensor is what the spec gives for the source, and the way back gives the source"


def _demands(context: VerifyContext) -> Iterator[Finding]:
    """What the spec asks of the source's values: tied tensors that are equal, buffers that hold what is made anew."""
    try:
        check_sources(context.plan, context.source_reader, context.progress)
    except CoverageError as error:
        for problem in error.problems:
            where = str(problem.where) if problem.where is not None else None
            yield Finding("source-demand", problem.what, None, rule=where, hint=problem.hint)


def _explain_forward(context: VerifyContext, forward: Pairing, there: Sweep) -> list[Explained]:
    rules = {target.info.name: target.rule for target in context.plan.targets}

    def rule_of(name: str) -> str:
        return rule_text(context.plan, rules[name])

    pairs = {name: pair for name, pair in forward.pairs.items() if name not in forward.unmatched}
    made = Made(context.plan, context.source_reader, working_budget(context.budget))
    return explain(
        "different-values", there, pairs, rule_of, made, Stored(context.target_reader), made_is_expected=True
    )


def _sources_of(plan: Plan, number: int) -> str | None:
    names = [plan.sources[source].info.name for source in plan.sources_of(plan.targets[number])]
    return " + ".join(names) or None


def _unmatched(context: VerifyContext, forward: Pairing, there: Sweep) -> Iterator[Finding]:
    rules = {target.info.name: target.rule for target in context.plan.targets}
    for name, reason in forward.unmatched.items():
        diagnosis = None
        if name in forward.pairs and name not in there.failed:
            difference = there.differences.get(name)
            same = difference is None or not difference.beyond
            narrow = forward.pairs[name].via
            diagnosis = (
                f"rounded to {narrow}, its values are {'the expected ones' if same else 'not those expected, too'}"
            )
        rule = rule_text(context.plan, rules[name])
        yield Finding("not-as-planned", reason, name, rule=rule, layer=layer_of(name), diagnosis=diagnosis)
    planned, tied = set(rules), tied_keys(context.plan, context.spec)
    for name in context.target_reader.tensors:
        if name not in planned and name not in tied:
            yield Finding("unexpected-tensor", "no rule makes this tensor", name, layer=layer_of(name))


def _shifted(explained: list[Explained]) -> Iterator[Finding]:
    """Say it once where many tensors hold what belongs the same number of layers away."""
    shifts: Counter[int] = Counter()
    for one in explained:
        name, other = one.finding.where, one.diagnosis.other if one.diagnosis else None
        here, there = layer_of(name or ""), layer_of(other or "")
        if (
            name
            and other
            and here is not None
            and there is not None
            and part_of(name) == part_of(other)
            and here != there
        ):
            shifts[there - here] += 1
    for shift, count in shifts.items():
        if count > 1:
            distance = f"{abs(shift)} layer{'s' if abs(shift) > 1 else ''} {'later' if shift > 0 else 'earlier'}"
            what = f"{count} tensors hold what belongs {distance}"
            yield Finding("layers-moved", what, severity=Severity.NOTE, values={"shift": shift, "tensors": count})


def _tied(context: VerifyContext) -> Iterator[Finding]:
    """Tensors that are stored beside the one that they are tied to: equal, they are harmless."""
    found = context.target_reader.tensors
    stored = Stored(context.target_reader)
    for name, first in tied_keys(context.plan, context.spec).items():
        if name not in found or first not in found:
            continue
        same = found[name].shape == found[first].shape and found[name].dtype is found[first].dtype
        try:
            for start in range(0, found[name].nbytes if same else 0, 1 << 20):
                same = same and collect(stored, name, start, 1 << 20) == collect(stored, first, start, 1 << 20)
        except CheckpointError as error:
            yield Finding("not-compared", error.problems[0].what, name)
            continue
        if same:
            what = f"it is tied to {printable(first)} and stored beside it, with the same values"
            yield Finding("tied-stored-twice", what, name, severity=Severity.NOTE)
        else:
            what = f"it is tied to {printable(first)}, and stored beside it with other values: it is stale"
            yield Finding("stale-tied", what, name)


def _forward_evidence(context: VerifyContext, forward: Pairing, there: Sweep) -> str:
    wrong = sum(1 for name, one in there.differences.items() if one.beyond and name not in forward.unmatched)
    compared = len(forward.pairs.keys() - forward.unmatched.keys())
    return (
        f"there: {compared - wrong} of {len(context.plan.targets)} tensors of the target hold what the spec makes "
        f"of the source; {format_nbytes(there.nbytes)} compared"
    )


def _rounding_evidence(side: str, pairing: Pairing, found: Sweep) -> Iterator[str]:
    exact = sum(1 for pair in pairing.pairs.values() if pair.ulps == 0)
    if exact == len(pairing.pairs):
        yield f"{side}: compared bit for bit"
        return
    groups: dict[str, list[str]] = {}
    for name, pair in pairing.pairs.items():
        if pair.ulps:
            groups.setdefault(f"within {pair.ulps} ULP of {pair.dtype}", []).append(name)
        elif pair.ulps is None:
            groups.setdefault("with no bound, since their rule is approximate", []).append(name)
    for group, names in groups.items():
        worst = max((found.differences[name].max_ulps or 0 for name in names if name in found.differences), default=0)
        yield f"{side}: {len(names)} tensors compared {group}; the largest distance found is {worst} ULP"
    if exact:
        yield f"{side}: {exact} tensors compared bit for bit"
    if near := within_allowed(found):
        yield f"{side}: {near:,} elements differ by no more than is allowed"


def _back(context: VerifyContext, back: Plan, forward: Pairing, there: Sweep) -> tuple[list[Finding], list[str]]:
    usable = [name for name in forward.pairs if name not in forward.unmatched]
    pairing = pair_back(context.plan, back, usable)
    found = sweep(
        back,
        context.target_reader,
        context.source_reader,
        pairing,
        context.budget,
        context.progress,
        made_is_expected=False,
        settled=there.settled,
    )
    rules = {target.info.name: target.rule for target in back.targets}
    made = Made(back, context.target_reader, working_budget(context.budget))
    explained = explain(
        BACK,
        found,
        dict(pairing.pairs),
        lambda name: rule_text(back, rules[name]),
        Stored(context.source_reader),
        made,
        made_is_expected=False,
    )
    findings = [one.finding for one in explained]
    reasons: dict[str, list[str]] = {}
    for name, reason in pairing.unmatched.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        what = f"{len(names)} source tensors are not restored: {reason}"
        findings.append(Finding("not-restored", what, names[0], severity=Severity.NOTE, values={"tensors": len(names)}))
    wrong = sum(1 for one in found.differences.values() if one.beyond)
    total, nbytes = len(context.plan.sources), format_nbytes(found.nbytes)
    evidence = [f"back: {len(pairing.pairs) - wrong} of {total} tensors of the source come back; {nbytes} compared"]
    evidence.extend(_rounding_evidence("source", pairing, found))
    evidence.extend(f"back: {describe_names(names)}: {reason}" for reason, names in reasons.items())
    return findings, evidence


def _measurements(plan: Plan, forward: Pairing, there: Sweep) -> Iterator[Measurement]:
    everything = len(plan.targets) <= MAX_ROWS
    for number, target in enumerate(plan.targets):
        name = target.info.name
        difference = there.differences.get(name)
        if name not in forward.pairs or name in there.failed or (difference is None and not everything):
            continue
        if difference is None:
            yield Measurement(
                "tensor", name, _sources_of(plan, number), layer_of(name), part_of(name), 0.0, 0.0, passed=True
            )
            continue
        relative = difference.max_abs / difference.max_expected if difference.max_expected else float("inf")
        yield Measurement(
            "tensor",
            name,
            _sources_of(plan, number),
            layer_of(name),
            part_of(name),
            difference.max_abs,
            relative,
            passed=not difference.beyond,
            values={"differing": difference.differing, "nans": difference.nans},
        )
