"""Level: logits. Both models run on the same prompts, and what they say must be the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from converters.errors import WeightmapError
from converters.verify.context import VerifyContext
from converters.verify.metrics import LogitMetrics, compare_logits
from converters.verify.models import (
    ModelLoadError,
    ModelUnavailableError,
    SideModel,
    open_source,
    open_target,
)
from converters.verify.precision import Precision, choose_precision, exact_arithmetic
from converters.verify.prompts import PromptBatch, position_limit, random_prompts, read_prompts
from converters.verify.reference import Reference, load_reference, save_reference
from converters.verify.report import Finding, LevelResult, Measurement, Severity, Verdict
from converters.verify.rounding import rounding_of
from converters.verify.skeleton import RUN_ERRORS
from converters.verify.tolerances import Tolerances, deciding, logit_gates, tolerances_for

LEVEL = "logits"

MAX_TIE = 1e-4
"""Share of the logits' range within which two tokens may be called as likely, however coarse the arithmetic is."""


@dataclass(frozen=True, slots=True)
class _Outputs:
    """What one side's model made of the prompts: for each batch logits [batch, length, vocab] in float32 on the CPU.

    A classifier gives one answer for a whole prompt, [batch, 1, classes].

    None where the model takes no mask, and the batch needs one.
    """

    logits: tuple[Tensor | None, ...]
    evidence: tuple[str, ...]


def check_logits(context: VerifyContext) -> LevelResult:
    """Compare outputs on prompts, see the module."""
    try:
        precision = choose_precision(context.models.device, context.models.dtype)
        with exact_arithmetic():
            return _check(context, precision)
    except ModelUnavailableError as error:
        return LevelResult(LEVEL, Verdict.NOT_PROVED, str(error.problems[0]))


def _check(context: VerifyContext, precision: Precision) -> LevelResult:
    tolerances, row = tolerances_for(precision.dtype, precision.device.type, context.models.tolerances)
    said: dict[str, Any] = {
        "device": _device_name(precision.device),
        "dtype": precision.label,
        "versions": versions(),
    }
    try:
        batches, expected = _source_outputs(context, precision)
    except ModelLoadError as error:
        return LevelResult(
            LEVEL,
            Verdict.NOT_PROVED,
            "the source's own model can't be loaded from it",
            findings=findings_of(error, "source"),
            **said,
        )
    except RUN_ERRORS as error:
        reason = f"the source's own model fails on the prompts: {error}"
        return LevelResult(LEVEL, Verdict.NOT_PROVED, reason, **said)
    try:
        with open_target(context, precision) as model:
            got = _run(model, batches)
    except ModelLoadError as error:
        reason = "the target can't be loaded into its model"
        return LevelResult(LEVEL, Verdict.FAIL, reason, findings=findings_of(error, "target"), **said)
    except RUN_ERRORS as error:
        # A config that promises other sizes than the weights have, or fewer positions than the prompts need.
        finding = Finding("target-fails", f"the target's model fails on the prompts: {error}")
        return LevelResult(LEVEL, Verdict.FAIL, finding.what, findings=(finding,), **said)
    evidence = (*expected.evidence, *got.evidence, row)
    return _compare(batches, expected.logits, got.logits, tolerances, evidence, said)


def _compare(
    batches: Sequence[PromptBatch],
    expected: Sequence[Tensor | None],
    got: Sequence[Tensor | None],
    tolerances: Tolerances,
    evidence: tuple[str, ...],
    said: dict[str, Any],
) -> LevelResult:
    findings: list[Finding] = []
    found: dict[str, LogitMetrics] = {}
    for batch, a, b in zip(batches, expected, got, strict=True):
        if a is None or b is None:
            what = "not compared: one of the models takes no attention_mask"
            findings.append(Finding("no-mask", what, ", ".join(batch.names), severity=Severity.NOTE))
            continue
        if a.shape != b.shape:
            what = "the logits have another shape [batch, length, vocab]"
            findings.append(Finding("logits-shape", what, expected=str(list(a.shape)), got=str(list(b.shape))))
            return LevelResult(LEVEL, Verdict.FAIL, findings[-1].text, evidence, tuple(findings), **said)
        for number, name in enumerate(batch.names):
            found[name] = compare_logits(
                a[number], b[number], _real(batch, number, a), tie=min(2 * tolerances.relative, MAX_TIE)
            )
    if not found:
        return LevelResult(LEVEL, Verdict.NOT_PROVED, "no prompt could be compared", evidence, tuple(findings), **said)
    gates = logit_gates(found, tolerances)
    gate = deciding(gates)
    findings.extend(_not_finite(found, batches, expected))
    measurements = tuple(
        Measurement(
            "prompt", name, max_abs=m.max_abs, relative=m.relative, tolerance=tolerances.relative,
            passed=m.relative <= tolerances.relative, values=m.values(),
        )
        for name, m in found.items()
    )  # fmt: skip
    passed = all(each.passed for each in gates)
    verdict = Verdict.PASS if passed else Verdict.FAIL
    reason = f"{'nearest to its bound' if passed else 'decided by'}: {gate}"
    if not passed and not any(finding.severity is Severity.ERROR for finding in findings):
        findings.append(Finding("logits-differ", str(gate), gate.where, values=dict(found[gate.where or ""].values())))
    return LevelResult(LEVEL, verdict, reason, evidence, tuple(findings), measurements, gates, gate, **said)


def _real(batch: PromptBatch, row: int, logits: Tensor) -> Tensor:
    """Which of a prompt's answers count: those of its tokens, or the one of a classifier."""
    return batch.real(row) if logits.shape[1] == batch.input_ids.shape[1] else torch.ones(1, dtype=torch.bool)


def _not_finite(
    found: Mapping[str, LogitMetrics], batches: Sequence[PromptBatch], expected: Sequence[Tensor | None]
) -> Iterable[Finding]:
    bad = [name for name, metrics in found.items() if not metrics.finite]
    if not bad:
        return
    source_too = any(
        not bool(logits[row][_real(batch, row, logits)].isfinite().all())
        for batch, logits in zip(batches, expected, strict=True)
        if logits is not None
        for row in range(len(batch.names))
    )
    side = "the source's own logits" if source_too else "the target's logits, and not in the source's"
    position = found[bad[0]].worst_position
    yield Finding(
        "not-finite", f"NaN or infinity in {side}, from position {position} on", bad[0], values={"prompts": len(bad)}
    )


def _source_outputs(context: VerifyContext, precision: Precision) -> tuple[tuple[PromptBatch, ...], _Outputs]:
    if context.models.reference is not None:
        reference = load_reference(context.models.reference)
        wanted, made = str(rounding_of(context.plan)), reference.metadata.get("rounded_to", "")
        if wanted != made:
            raise ModelUnavailableError(
                f"the reference was made with weights rounded to {made or 'nothing'}, but the conversion rounds to "
                f"{wanted or 'nothing'}: make it anew with the same --dtype",
                str(context.models.reference),
            )
        return reference.batches, _Outputs(reference.logits, _reference_evidence(reference))
    with open_source(context, precision) as model:
        batches = make_prompts(context, model)
        outputs = _run(model, batches)
    coverage = _coverage(batches, vocabulary(context, model.module))
    if context.models.save_reference is not None:
        kept = [(batch, out) for batch, out in zip(batches, outputs.logits, strict=True) if out is not None]
        metadata = {
            "spec": context.spec.name,
            "spec_digest": context.spec.digest,
            "model": model.made_by,
            "device": str(precision.device),
            "dtype": precision.label,
            "rounded_to": str(rounding_of(context.plan)),
            **versions(),
        }
        save_reference(context.models.save_reference, [pair[0] for pair in kept], [pair[1] for pair in kept], metadata)
    rounded = str(rounding_of(context.plan))
    note = (f"the source's weights are rounded to {rounded}, as the conversion rounds them",) if rounded else ()
    return batches, _Outputs(outputs.logits, (*outputs.evidence, *note, coverage))


def make_prompts(context: VerifyContext, model: SideModel) -> tuple[PromptBatch, ...]:
    """The prompts that the options ask for."""
    vocab = vocabulary(context, model.module)
    if context.models.prompt_file is not None:
        directory = context.source_path if context.source_path.is_dir() else context.source_path.parent
        return read_prompts(context.models.prompt_file, vocab, directory)
    limit = position_limit(context.source_config, context.target_config)
    return random_prompts(vocab, context.models.prompt_tokens, limit, context.models.seed)


def vocabulary(context: VerifyContext, module: nn.Module) -> int:
    """The number of tokens that both sides know; what the source's config doesn't say, its first embedding does."""
    source, target = (config and config.get("vocab_size") for config in (context.source_config, context.target_config))
    if not isinstance(source, int):
        embeddings = (inner.num_embeddings for inner in module.modules() if isinstance(inner, nn.Embedding))
        source = next(embeddings, None)
    sizes = [size for size in (source, target) if isinstance(size, int)]
    if not sizes:
        raise ModelUnavailableError(
            "nobody knows how many tokens the model takes, or whether it takes any: no config says vocab_size",
            hint="give --prompt-file if it does",
        )
    return min(sizes)


def _run(model: SideModel, batches: Sequence[PromptBatch]) -> _Outputs:
    logits: list[Tensor | None] = []
    for batch in batches:
        if batch.attention_mask is not None and not model.takes_mask:
            logits.append(None)
        else:
            found = model.logits(batch.input_ids, batch.attention_mask).to("cpu", torch.float32)
            logits.append(found[:, None] if found.dim() == 2 else found)  # noqa: PLR2004 - a classifier's [batch, classes]
    where = "block by block from disk" if model.stream is not None else "whole in memory"
    return _Outputs(tuple(logits), (f"{model.made_by}: {model.nbytes:,} bytes of weights, {where}",))


def _coverage(batches: Sequence[PromptBatch], vocab: int) -> str:
    used = torch.cat([batch.input_ids[row][batch.real(row)] for batch in batches for row in range(len(batch.names))])
    longest = max(batch.input_ids.shape[1] for batch in batches)
    rows = sum(len(batch.names) for batch in batches)
    return (
        f"{rows} prompts of up to {longest} tokens, {len(used):,} in all, "
        f"with {len(set(used.tolist())):,} of the {vocab:,} tokens of the vocabulary"
    )


def _reference_evidence(reference: Reference) -> tuple[str, ...]:
    return (
        f"the source's outputs are from a reference: {', '.join(f'{k} {v}' for k, v in reference.metadata.items())}",
    )


def findings_of(error: WeightmapError, side: str) -> tuple[Finding, ...]:
    """An error while loading as findings."""
    return tuple(
        Finding(f"{side}-not-loadable", problem.what, str(problem.where) if problem.where else None, hint=problem.hint)
        for problem in error.problems
    )


def versions() -> dict[str, str]:
    """Of the libraries that run models."""
    import transformers

    return {"torch": str(torch.__version__), "transformers": transformers.__version__}


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
