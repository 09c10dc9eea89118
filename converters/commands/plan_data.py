"""A plan in numbers and names, for the text and for the JSON of `plan` and `convert`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec import Struct

from converters.convert import Prepared
from converters.key_tree import KeyNode, build_key_tree
from converters.memory import MemoryEstimate
from converters.plan import Plan, Target
from converters.spec import Spec
from converters.tensor_info import TensorInfo


class Example(Struct, frozen=True):
    """One instance of a rule: the tensors that it joins, splits or moves."""

    sources: tuple[TensorInfo, ...]
    targets: tuple[TensorInfo, ...]


def examples(plan: Plan) -> dict[int, Example]:
    """For each rule that makes something, by number, the instance with the largest target; the first of several."""
    largest: dict[int, Target] = {}
    nbytes: dict[int, int] = {}
    for target in plan.targets:
        size = target.info.nbytes
        if size > nbytes.get(target.rule, -1):
            largest[target.rule], nbytes[target.rule] = target, size
    sources = {rule: plan.sources_of(target) for rule, target in largest.items()}
    # Which targets the few sources that are shown go to: of a hundred thousand targets, only theirs are of interest.
    read_by: dict[int, list[Target]] = {source: [] for shown in sources.values() for source in shown}
    for target in plan.targets:
        for source in plan.sources_of(target):
            if source in read_by:
                read_by[source].append(target)
    found = {}
    for rule, target in largest.items():
        siblings = {other.info.name: other.info for source in sources[rule] for other in read_by[source]}
        found[rule] = Example(
            tuple(plan.sources[source].info for source in sources[rule]),
            tuple(siblings.values()) if sources[rule] else (target.info,),
        )
    for check in plan.generated_checks:
        found.setdefault(check.rule, Example((plan.sources[check.source].info,), ()))
    return found


def collapsed(tensors: Iterable[TensorInfo]) -> list[str]:
    """Names of tensors, those that differ in their indices together: `layers.{0..31}.norm.weight`. Not yet escaped."""
    return list(_leaves(build_key_tree(tensors), ""))


def _leaves(node: KeyNode, prefix: str) -> Iterator[str]:
    for child in node.children:
        label = f"{prefix}{child.label}"
        if child.children:
            yield from _leaves(child, f"{label}.")
        else:
            yield label


def dropped_by_reason(plan: Plan, *, blocks: bool = False) -> dict[str, list[TensorInfo]]:
    """The tensors that are left out, by reason; with `blocks`, those of which only a block is."""
    found: dict[str, list[TensorInfo]] = {}
    for drop in (drop for drop in plan.dropped if (drop.size is not None) is blocks):
        found.setdefault(drop.reason, []).append(plan.sources[drop.source].info)
    return found


def rules_json(plan: Plan, spec: Spec) -> list[dict[str, Any]]:
    """The rules as plain data, those that are off among them."""
    found = examples(plan)
    rules = []
    for number, rule in enumerate(plan.rules):
        location = spec.rules[number].location
        data: dict[str, Any] = {
            "rule": spec.rules[number].path,
            "text": rule.text,
            "where": rule.where,
            "line": location.line if location else None,
            "kind": rule.kind,
            "exactness": rule.exactness,
            "instances": rule.instances,
            "off": rule.off,
        }
        if number in found:
            data["example"] = {
                "sources": [info_json(info) for info in found[number].sources],
                "targets": [info_json(info) for info in found[number].targets],
            }
        rules.append(data)
    return rules


def info_json(info: TensorInfo) -> dict[str, Any]:
    """A tensor as plain data."""
    return {"name": info.name, "dtype": info.dtype.label, "shape": list(info.shape), "nbytes": info.nbytes}


def plan_json(prepared: Prepared, spec: Spec) -> dict[str, Any]:
    """What a conversion does, as plain data."""
    plan = prepared.plan
    return {
        "spec": {
            "name": plan.spec,
            "path": spec.path,
            "sha256": plan.spec_digest,
            "reverse": plan.reverse,
            "from": spec.source.layout,
            "to": spec.target.layout,
            "exactness": spec.exactness,
        },
        "source": str(prepared.reader.path),
        "tensors": {"read": len(plan.sources) - len(plan.whole_dropped), "written": len(plan.targets)},
        "bytes": {
            "read": plan.bytes_read,
            "checked": plan.bytes_checked,
            "written": plan.bytes_written,
            **plan.bytes_by_way(),
        },
        "files": [
            {"name": shard.filename, "tensors": len(shard.tensors), "nbytes": shard.nbytes} for shard in plan.shards
        ],
        "rules": rules_json(plan, spec),
        "dropped": [
            {**info_json(plan.sources[drop.source].info), "reason": drop.reason, "elements": drop.size}
            for drop in plan.dropped
        ],
        "checks": checks_json(plan),
        "side_files": {"carried": list(prepared.side_files.carried), "left": list(prepared.side_files.left)},
        "config": plan.config,
        "notes": list(plan.notes),
    }


def checks_json(plan: Plan) -> list[dict[str, Any]]:
    """What is compared before anything is written."""
    names = [source.info.name for source in plan.sources]
    equal = [
        {"check": "equal", "tensors": [names[check.first], names[check.second]], "rule": check.rule}
        for check in plan.equality_checks
    ]
    generated = [
        {"check": "generated", "tensors": [names[check.source]], "rule": check.rule, **check.generator.to_json()}
        for check in plan.generated_checks
    ]
    return [*equal, *generated]


def targets_json(plan: Plan) -> list[dict[str, Any]]:
    """Each tensor of the output, and the sources that it is made of."""
    return [
        {
            **info_json(target.info),
            "rule": target.rule,
            "sources": [plan.sources[source].info.name for source in plan.sources_of(target)],
        }
        for target in plan.targets
    ]


def memory_json(estimate: MemoryEstimate) -> Mapping[str, int]:
    """A prediction as plain data, in bytes."""
    return {
        "process": estimate.process,
        "libraries": estimate.libraries,
        "buffers": estimate.buffers,
        "peak": estimate.peak,
    }
