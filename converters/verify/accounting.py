"""Level 1, accounting: headers, index and config of the target against the plan, both ways. No tensor is read."""

from __future__ import annotations

from collections.abc import Iterator

from converters.bind import bind
from converters.errors import ConfigError, CoverageError, SpecError
from converters.plan import Source
from converters.planner import make_plan
from converters.text import format_nbytes
from converters.verify.config_check import are_identical, check_target_config, check_vocabulary
from converters.verify.context import VerifyContext
from converters.verify.file_check import check_files, check_side_files
from converters.verify.report import Finding, LevelResult, Severity, Verdict
from converters.verify.tensor_check import check_tensors


def check_accounting(context: VerifyContext) -> LevelResult:
    """Hold the target's names, shapes, dtypes, files and config against the plan; takes milliseconds."""
    plan, found = context.plan, context.target_reader.tensors
    tensors = check_tensors(plan, context.spec, found, context.asked_dtype)
    config = check_target_config(plan.config, context.target_config)
    planned = [target.info for target in plan.targets]
    findings = [
        *check_files(context.target_reader),
        *tensors,
        *config,
        *check_vocabulary(plan.config, planned, context.target_config, found.values()),
        *check_side_files(
            context.source_path,
            context.target_path,
            sorted(set(context.source_reader.file_of.values())),
            context.spec.source,
        ),
    ]
    if not any(finding.severity is Severity.ERROR for finding in tensors):
        findings.extend(_contradictions(context))
    errors = [finding for finding in findings if finding.severity is Severity.ERROR]
    findings.sort(key=lambda finding: list(Severity).index(finding.severity))
    return LevelResult(
        "accounting",
        Verdict.FAIL if errors else Verdict.PASS,
        _reason(errors),
        tuple(_evidence(context, tensors, config)),
        tuple(findings),
    )


def _contradictions(context: VerifyContext) -> Iterator[Finding]:
    """Plan the way back from the target as it is, with its own config: that counts layers, heads and experts.

    Its tensors are those of `plan_back` by now. With the same config, too, there would be the same plan once more.
    """
    if context.plan_back is None or context.target_config is None:
        return
    if are_identical(context.target_config, context.plan.config):
        return
    reader = context.target_reader
    sources = [Source(info, reader.file_of[name]) for name, info in reader.tensors.items()]
    where = "the target's config.json"
    try:
        bound = bind(context.spec.inverse(), context.target_config, where=where, dims=context.dims)
        make_plan(bound, sources)
    except (ConfigError, CoverageError, SpecError) as error:
        for problem in error.problems:
            place = str(problem.where) if problem.where is not None else None
            yield Finding("config-contradicts-tensors", problem.what, place, hint=problem.hint)


def _reason(errors: list[Finding]) -> str:
    if not errors:
        return "every planned tensor is there, in its shape and dtype, and nothing else; what they hold was not read"
    kinds: dict[str, int] = {}
    for finding in errors:
        kinds[finding.kind] = kinds.get(finding.kind, 0) + 1
    return ", ".join(f"{kind} ({count})" if count > 1 else kind for kind, count in kinds.items())


def _evidence(context: VerifyContext, tensors: tuple[Finding, ...], config: tuple[Finding, ...]) -> Iterator[str]:
    plan, reader = context.plan, context.target_reader
    wrong = {finding.where for finding in tensors if finding.severity is Severity.ERROR}
    right = sum(1 for target in plan.targets if target.info.name not in wrong)
    files = len(set(reader.file_of.values()))
    nbytes = sum(info.nbytes for info in reader.tensors.values())
    yield (
        f"{right} of {len(plan.targets)} planned tensors have their name, shape and dtype; the target holds "
        f"{len(reader.tensors)}, {format_nbytes(nbytes)} in {files} {'file' if files == 1 else 'files'}"
    )
    dropped = len(plan.whole_dropped)
    yield f"of {len(plan.sources)} source tensors, {len(plan.sources) - dropped} are used and {dropped} dropped by name"
    if plan.config is not None and context.target_config is not None:
        differing = sum(1 for finding in config if finding.severity is Severity.ERROR)
        yield f"config.json: {len(plan.config)} keys given by the spec, {differing} of them differ"
    if context.asked_dtype is not None:
        yield f"the conversion was asked to cast to {context.asked_dtype}"
    if context.no_way_back is not None:
        yield f"there is no way back: {context.no_way_back}"
