"""Names, shapes and dtypes of the target's tensors against those that the plan gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from converters.plan import Plan
from converters.spec import Spec
from converters.tensor_info import TensorInfo
from converters.text import printable
from converters.verify.names import layer_of
from converters.verify.report import Finding

_BLANKET: Final = "if the conversion was asked for it (convert --dtype), say so to verify, too"


def rule_text(plan: Plan, rule: int) -> str:
    """A rule as findings name it: its text and its line in the YAML."""
    summary = plan.rules[rule]
    return f"{summary.text} ({summary.where})"


def check_tensors(
    plan: Plan, spec: Spec, found: Mapping[str, TensorInfo], asked_dtype: str | None = None
) -> tuple[Finding, ...]:
    """Say which tensors are missing, which nobody planned, and which have another shape or dtype than planned.

    Args:
        plan: what the target should hold.
        spec: the spec of the plan, which knows the keys that are tied.
        found: what its headers say that it holds.
        asked_dtype: the dtype that the conversion was told to cast everything to.
    """
    planned = {target.info.name: target for target in plan.targets}
    unexpected = [info for name, info in found.items() if name not in planned]
    lookalikes = _by_ending(unexpected)
    findings: list[Finding] = []
    for name, target in planned.items():
        info, rule = found.get(name), rule_text(plan, target.rule)
        if info is None:
            findings.append(
                Finding("missing-tensor", "the target lacks this tensor", name, _kind(target.info), rule=rule,
                        layer=layer_of(name), diagnosis=_renamed(target.info, lookalikes))
            )  # fmt: skip
        elif info.shape != target.info.shape:
            findings.append(
                Finding("wrong-shape", "the tensor has another shape", name, _kind(target.info), _kind(info), rule=rule,
                        layer=layer_of(name), diagnosis=_reshaped(target.info.shape, info.shape))
            )  # fmt: skip
        elif info.dtype is not target.info.dtype:
            asked = f"; the conversion was asked for {asked_dtype}" if asked_dtype else ""
            findings.append(
                Finding("wrong-dtype", f"the tensor has another dtype, which nobody asked for{asked}", name,
                        str(target.info.dtype), str(info.dtype), rule=rule, layer=layer_of(name), hint=_BLANKET)
            )  # fmt: skip
    findings.extend(_unexpected(unexpected, tied_keys(plan, spec)))
    return tuple(findings)


def tied_keys(plan: Plan, spec: Spec) -> dict[str, str]:
    """For each key that the target doesn't store, since it is tied to another: that other; only keys without {}."""
    on = (rule for rule, summary in zip(spec.rules, plan.rules, strict=True) if summary.off is None)
    terms = [term for rule in on for term in rule.targets if term.sharing == "tie"]
    return {str(key): str(term.keys[0]) for term in terms for key in term.keys[1:] if "{" not in f"{key}{term.keys[0]}"}


def _unexpected(infos: Iterable[TensorInfo], tied: Mapping[str, str]) -> Iterable[Finding]:
    for info in infos:
        if info.name in tied:
            what = f"the spec ties this tensor to {printable(tied[info.name])}, and both are stored"
            hint = "one of the two is never used, and if they differ, readers disagree on which; remove this one"
            yield Finding("tied-stored-twice", what, info.name, None, _kind(info), hint=hint)
        else:
            what = "no rule makes this tensor"
            yield Finding("unexpected-tensor", what, info.name, None, _kind(info), layer=layer_of(info.name))


def _kind(info: TensorInfo) -> str:
    return f"{list(info.shape)} {info.dtype}"


def _by_ending(infos: Iterable[TensorInfo]) -> dict[str, TensorInfo]:
    """Tensors by every ending of their dotted names, so that one with a prefix too many is found."""
    endings: dict[str, TensorInfo] = {}
    for info in infos:
        parts = info.name.split(".")
        for start in range(min(len(parts), 16)):
            endings.setdefault(".".join(parts[start:]), info)
    return endings


def _renamed(info: TensorInfo, endings: Mapping[str, TensorInfo]) -> str | None:
    parts = info.name.split(".")
    for start in range(max(1, len(parts) - 1)):
        other = endings.get(".".join(parts[start:]))
        if other is not None and other.shape == info.shape:
            return f"it may be there under another name, {printable(other.name)}"
    return None


def _reshaped(expected: tuple[int, ...], got: tuple[int, ...]) -> str | None:
    if expected == tuple(reversed(got)):
        return "it is transposed"
    if len(expected) != len(got):
        return None
    differing = [axis for axis, (want, have) in enumerate(zip(expected, got, strict=True)) if want != have]
    if len(differing) != 1:
        return None
    axis = differing[0]
    change = got[axis] - expected[axis]
    return f"{abs(change)} {'too many' if change > 0 else 'too few'} along axis {axis}"
