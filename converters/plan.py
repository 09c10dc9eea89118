"""A plan: everything that a conversion will do, as plain data, proved to cover both sides before any data is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from converters.errors import WeightmapError
from converters.operations import Elementwise, Generator, elementwise_from_json, generator_from_json
from converters.sharding import Shard
from converters.strided import StridedCopy
from converters.tensor_info import DType, TensorInfo

PLAN_VERSION = 1


@dataclass(frozen=True, slots=True)
class Move:
    """One strided copy out of `Plan.sources[source]`."""

    source: int
    copy: StridedCopy


@dataclass(frozen=True, slots=True)
class Target:
    """One tensor of the output: the copies that fill it, and the operations that each value goes through.

    A target without a source has a `generator` instead of moves.
    """

    info: TensorInfo
    rule: int
    moves: tuple[Move, ...]
    operations: tuple[Elementwise, ...] = ()
    generator: Generator | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """One tensor of the input, and the file that holds it."""

    info: TensorInfo
    file: str


@dataclass(frozen=True, slots=True)
class EqualityCheck:
    """Two sources of which only the first is carried: they must hold the same bytes."""

    first: int
    second: int
    rule: int


@dataclass(frozen=True, slots=True)
class GeneratedCheck:
    """A source that the other side makes anew: it must hold what `generator` makes."""

    source: int
    generator: Generator
    rule: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """A source that is left out, and why."""

    source: int
    reason: str


@dataclass(frozen=True, slots=True)
class RuleSummary:
    """What `plan` shows of a rule: its text, its place, what it came to, and why it is off (None where it is on)."""

    text: str
    where: str
    exactness: str
    kind: str
    instances: int = 0
    off: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """See the module. `targets` are in the order of the output; `shards` hold their infos in the same order."""

    spec: str
    spec_digest: str
    reverse: bool
    sources: tuple[Source, ...]
    targets: tuple[Target, ...]
    shards: tuple[Shard, ...]
    rules: tuple[RuleSummary, ...]
    dropped: tuple[Dropped, ...] = ()
    equality_checks: tuple[EqualityCheck, ...] = ()
    generated_checks: tuple[GeneratedCheck, ...] = ()
    notes: tuple[str, ...] = ()
    config: Mapping[str, Any] | None = field(default=None, hash=False)

    @property
    def bytes_read(self) -> int:
        """Bytes of the sources that the output is made of; a source read for two targets counts twice."""
        return sum(
            move.copy.size * self.sources[move.source].info.dtype.bits // 8
            for target in self.targets
            for move in target.moves
        )

    @property
    def bytes_checked(self) -> int:
        """Bytes read only to compare them."""
        pairs = sum(2 * self.sources[check.first].info.nbytes for check in self.equality_checks)
        return pairs + sum(self.sources[check.source].info.nbytes for check in self.generated_checks)

    @property
    def bytes_written(self) -> int:
        """Bytes of tensor data in the output."""
        return sum(target.info.nbytes for target in self.targets)

    def bytes_by_way(self) -> dict[str, int]:
        """Bytes written by way: `copied` as plain byte ranges, `rearranged`, `computed` (cast), `generated`."""
        ways = {"copied": 0, "rearranged": 0, "computed": 0, "generated": 0}
        for target in self.targets:
            bits = target.info.dtype.bits
            if target.generator is not None:
                ways["generated"] += target.info.nbytes
            for move in target.moves:
                way = "computed" if target.operations else "copied" if move.copy.is_range else "rearranged"
                ways[way] += move.copy.size * bits // 8
        return ways

    def to_json(self) -> str:
        """The plan as JSON; `Plan.from_json` reads it back as an equal plan."""
        return json.dumps(_Encoder().plan(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan that `to_json` wrote.

        Raises:
            WeightmapError: the text is no plan, or one of another version.
        """
        try:
            data = json.loads(text)
            version = data["weightmap_plan"]
            if version != PLAN_VERSION:
                raise WeightmapError(
                    f"this plan has version {version}, and this weightmap reads {PLAN_VERSION}; plan anew"
                )
            return _decode(data)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise WeightmapError(f"this is not a plan that weightmap wrote: {error}") from error


class _Encoder:
    """Layers share their geometry, so each distinct strided copy is written once and referred to by number."""

    def __init__(self) -> None:
        self.copies: dict[StridedCopy, int] = {}

    def copy(self, copy: StridedCopy) -> int:
        return self.copies.setdefault(copy, len(self.copies))

    def target(self, target: Target) -> dict[str, Any]:
        data: dict[str, Any] = {
            **_info_to_json(target.info),
            "rule": target.rule,
            "moves": [[move.source, self.copy(move.copy)] for move in target.moves],
        }
        if target.operations:
            data["operations"] = [operation.to_json() for operation in target.operations]
        if target.generator is not None:
            data["generator"] = target.generator.to_json()
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
            "targets": [self.target(target) for target in plan.targets],
            "copies": [
                [copy.shape, copy.source_start, copy.source_strides, copy.target_start, copy.target_strides]
                for copy in self.copies
            ],
            "shards": [{"file": shard.filename, "tensors": len(shard.tensors)} for shard in plan.shards],
            "dropped": [[drop.source, drop.reason] for drop in plan.dropped],
            "equality_checks": [[check.first, check.second, check.rule] for check in plan.equality_checks],
            "generated_checks": [
                [check.source, check.generator.to_json(), check.rule] for check in plan.generated_checks
            ],
            "notes": plan.notes,
            "config": plan.config,
        }


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
        shards.append(Shard(shard["file"], tuple(target.info for target in targets[start:stop])))
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
            GeneratedCheck(source, generator_from_json(made), rule) for source, made, rule in data["generated_checks"]
        ),
        tuple(data["notes"]),
        data["config"],
    )
