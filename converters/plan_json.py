"""A plan as JSON, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import astuple

from converters.collector import paused
from converters.errors import WeightmapError
from converters.operations import Reduction, generator_from_json
from converters.operations.registry import elementwise_from_json, operation_to_json, tensor_operation_from_json
from converters.plan import (
    BlockFill,
    Dropped,
    EqualityCheck,
    GeneratedCheck,
    MadeSource,
    Move,
    Plan,
    RuleSummary,
    Source,
    Target,
)
from converters.sharding import Shard
from converters.strided import StridedCopy
from converters.tensor_info import DType, TensorInfo

PLAN_VERSION = 2


@paused()
def encode(plan: Plan) -> str:
    """The plan as JSON; `decode` reads it back as an equal plan."""
    return json.dumps(_Encoder().plan(plan), separators=(",", ":"))


@paused()
def decode(text: str) -> Plan:
    """Read a plan that `encode` wrote.

    Raises:
        WeightmapError: the text is no plan, or one of another version.
    """
    try:
        data = json.loads(text)
        version = data["weightmap_plan"]
        if version != PLAN_VERSION:
            raise WeightmapError(f"this plan has version {version}, and this weightmap reads {PLAN_VERSION}; plan anew")
        return _decode(data)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise WeightmapError(f"this is not a plan that weightmap wrote: {error}") from error


class _Encoder:
    """Layers share their geometry, so each distinct strided copy is written once and referred to by number."""

    def __init__(self) -> None:
        self.copies: dict[StridedCopy, int] = {}
        self._numbers: dict[int, int] = {}

    def copy(self, copy: StridedCopy) -> int:
        # Most of them are the very same, which is told faster than that they are equal; the plan keeps them alive.
        number = self._numbers.get(id(copy))
        if number is None:
            number = self._numbers[id(copy)] = self.copies.setdefault(copy, len(self.copies))
        return number

    def target(self, target: Target) -> dict[str, Any]:
        data = _info_to_json(target.info)
        data["rule"] = target.rule
        data["moves"] = [[move.source, self.copy(move.copy)] for move in target.moves]
        if target.operations:
            data["operations"] = [operation_to_json(operation) for operation in target.operations]
        if target.generator is not None:
            data["generator"] = target.generator.to_json()
        if target.fills:
            data["fills"] = [[fill.generator.to_json(), self.copy(fill.copy)] for fill in target.fills]
        return data

    def plan(self, plan: Plan) -> dict[str, Any]:
        return {
            "weightmap_plan": PLAN_VERSION,
            "spec": plan.spec,
            "spec_digest": plan.spec_digest,
            "reverse": plan.reverse,
            "bytes": {
                "read": plan.bytes_read,
                "checked": plan.bytes_checked,
                "written": plan.bytes_written,
                **plan.bytes_by_way(),
            },
            "rules": [
                {
                    "text": rule.text,
                    "where": rule.where,
                    "exactness": rule.exactness,
                    "kind": rule.kind,
                    "instances": rule.instances,
                    "off": rule.off,
                }
                for rule in plan.rules
            ],
            "sources": [{**_info_to_json(source.info), "file": source.file} for source in plan.sources],
            "made": [
                {
                    **_info_to_json(made.info),
                    "operation": operation_to_json(made.operation),
                    "inputs": made.inputs,
                    "reduction": astuple(made.reduction) if made.reduction is not None else None,
                }
                for made in plan.made
            ],
            "targets": [self.target(target) for target in plan.targets],
            "generated_checks": [
                [check.source, check.generator.to_json(), check.rule, self.copy(check.copy)]
                for check in plan.generated_checks
            ],
            "copies": [
                [copy.shape, copy.source_start, copy.source_strides, copy.target_start, copy.target_strides]
                for copy in self.copies
            ],
            "shards": [_shard_to_json(shard) for shard in plan.shards],
            "dropped": [[drop.source, drop.reason, drop.size] for drop in plan.dropped],
            "equality_checks": [[check.first, check.second, check.rule] for check in plan.equality_checks],
            "notes": plan.notes,
            "config": plan.config,
        }


def _shard_to_json(shard: Shard) -> dict[str, Any]:
    data: dict[str, Any] = {"file": shard.filename, "tensors": len(shard.tensors)}
    if shard.part:
        data["part"] = shard.part
    if shard.data_phase is not None:
        data["data_phase"] = shard.data_phase
    return data


def _info_to_json(info: TensorInfo) -> dict[str, Any]:
    return {"name": info.name, "dtype": info.dtype.label, "shape": info.shape}


def _info(data: Mapping[str, Any]) -> TensorInfo:
    return TensorInfo(data["name"], tuple(data["shape"]), DType[data["dtype"]])


def _copy(data: Sequence[Any]) -> StridedCopy:
    shape, source_start, source_strides, target_start, target_strides = data
    return StridedCopy(tuple(shape), source_start, tuple(source_strides), target_start, tuple(target_strides))


def _shards(data: Sequence[Mapping[str, Any]], targets: Sequence[Target]) -> tuple[Shard, ...]:
    shards, start = [], 0
    for shard in data:
        stop = start + shard["tensors"]
        infos = tuple(target.info for target in targets[start:stop])
        shards.append(Shard(shard["file"], infos, shard.get("part", ""), shard.get("data_phase")))
        start = stop
    return tuple(shards)


def _decode(data: Mapping[str, Any]) -> Plan:
    copies = [_copy(copy) for copy in data["copies"]]
    targets = tuple(
        Target(
            _info(target),
            target["rule"],
            tuple(Move(source, copies[copy]) for source, copy in target["moves"]),
            tuple(elementwise_from_json(operation) for operation in target.get("operations", ())),
            generator_from_json(target["generator"]) if "generator" in target else None,
            tuple(BlockFill(generator_from_json(fill), copies[copy]) for fill, copy in target.get("fills", ())),
        )
        for target in data["targets"]
    )
    return Plan(
        data["spec"],
        data["spec_digest"],
        data["reverse"],
        tuple(Source(_info(source), source["file"]) for source in data["sources"]),
        targets,
        _shards(data["shards"], targets),
        tuple(RuleSummary(**rule) for rule in data["rules"]),
        tuple(Dropped(*drop) for drop in data["dropped"]),
        tuple(EqualityCheck(*check) for check in data["equality_checks"]),
        tuple(
            GeneratedCheck(source, generator_from_json(generator), rule, copies[copy])
            for source, generator, rule, copy in data["generated_checks"]
        ),
        tuple(data["notes"]),
        data["config"],
        tuple(
            MadeSource(
                _info(made),
                tensor_operation_from_json(made["operation"]),
                tuple(made["inputs"]),
                Reduction(*made["reduction"]) if made["reduction"] is not None else None,
            )
            for made in data["made"]
        ),
    )
