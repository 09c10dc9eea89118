"""From a bound spec and the headers of a checkpoint to a plan, with the proof that it covers both sides."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from converters.bind import BoundRule, BoundSpec, BoundTerm, fill_shape
from converters.coverage import Coverage, Draft, mixed_dtypes, unlike
from converters.errors import CoverageError, Problem
from converters.keys import Binding, CompiledPattern, is_index
from converters.lowering import Lowered, lower
from converters.matching import Coordinates, Instance, match_keys
from converters.operands import LayoutMismatchError
from converters.operations import Generator
from converters.operations.cast import check_castable
from converters.plan import EqualityCheck, GeneratedCheck, Move, Plan, RuleSummary, Source
from converters.sharding import split_into_shards
from converters.spec_check import operands_of
from converters.tensor_info import DType, TensorInfo, parse_dtype
from converters.text import printable

DEFAULT_MAX_SHARD_NBYTES = 5_000_000_000
"""Bytes; what huggingface_hub takes by default."""

MADE_ONCE = "each target is made once; give one of the two another key"


def make_plan(
    bound: BoundSpec,
    sources: Sequence[Source],
    *,
    max_shard_nbytes: int = DEFAULT_MAX_SHARD_NBYTES,
    dtype: DType | None = None,
) -> Plan:
    """Plan a conversion from headers alone.

    Args:
        bound: the spec, joined to the source's config.
        sources: every tensor of the checkpoint.
        max_shard_nbytes: bytes of tensor data in one output file.
        dtype: cast every floating tensor of 16 bits and more to it; integers, masks and quantized blocks stay.

    Raises:
        CoverageError: with every key, rule and size that doesn't fit.
        WeightmapError: values can't be cast to `dtype`.
    """
    if dtype is not None:
        check_castable(dtype)
    return _Planner(bound, sources, dtype).plan(max_shard_nbytes)


def natural_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key by which layer 10 comes after layer 9: the output's order depends on its names alone."""
    return tuple((0, int(part), "") if is_index(part) else (1, 0, part) for part in name.split("."))


class _Planner:
    def __init__(self, bound: BoundSpec, sources: Sequence[Source], dtype: DType | None) -> None:
        self.bound = bound
        self.sources = sources
        self.dtype = dtype
        self.problems: list[Problem] = []
        self.coverage = Coverage(sources)
        self.equality_checks: list[EqualityCheck] = []
        self.generated_checks: list[GeneratedCheck] = []
        self.learned: dict[str, int] = {}
        self.lowered: dict[object, Lowered | None] = {}

    def plan(self, max_shard_nbytes: int) -> Plan:
        """See `make_plan`."""
        matches = match_keys(self.bound, [source.info.name for source in self.sources])
        self.problems.extend(matches.problems)
        counts: dict[int, int] = {}
        # What is made anew comes last, when the layouts of the others have shown the sizes that no config gives.
        for match in sorted(matches.rules, key=lambda match: match.rule.rule.fill is not None):
            counts[match.rule.number] = len(match.instances)
            for instance in () if matches.problems else match.instances:
                if match.rule.rule.fill is not None:
                    self._fill(match.rule, instance)
                else:
                    self._instance(match.rule, instance)
        self.coverage.whole.update(drop.source for drop in matches.dropped)
        if not self.problems:
            self.problems.extend(self.coverage.prove(self.bound.spec.path))
        if self.problems:
            raise CoverageError(self.problems)
        drafts = self.coverage.drafts.values()
        targets = sorted((draft.finish(self.dtype) for draft in drafts), key=lambda made: natural_order(made.info.name))
        shards = split_into_shards([target.info for target in targets], max_shard_nbytes)
        by_name = {target.info.name: target for target in targets}
        return Plan(
            self.bound.spec.name,
            self.bound.spec.digest,
            self.bound.spec.reverse,
            tuple(self.sources),
            tuple(by_name[info.name] for shard in shards for info in shard.tensors),
            shards,
            self._summaries(counts),
            matches.dropped,
            tuple(self.equality_checks),
            tuple(self.generated_checks),
            self.bound.notes,
            self.bound.target_config,
        )

    def _problem(self, rule: BoundRule, what: str, hint: str | None = None) -> None:
        self.problems.append(Problem(f"{rule.rule.path}: {what}", rule.rule.location, hint))

    def _summaries(self, counts: Mapping[int, int]) -> tuple[RuleSummary, ...]:
        spec, off = self.bound.spec, self.bound.off
        return tuple(
            RuleSummary(
                rule.text,
                str(rule.location or spec.path),
                rule.exactness,
                rule.kind,
                counts.get(number, 0),
                off.get(number),
            )
            for number, rule in enumerate(spec.rules)
        )

    # --- one instance of a rule --------------------------------------------------------------------------------------

    def _instance(self, rule: BoundRule, instance: Instance) -> None:
        operands: list[Mapping[Coordinates, int]] = []
        for index, term in enumerate(rule.sources):
            operand = self._operand(rule, instance, index, term)
            if operand is None:
                return
            operands.append(operand)
        numbers = {number for operand in operands for number in operand.values()}
        mixed = mixed_dtypes(self.sources, numbers)
        if mixed is not None:
            self._problem(rule, mixed, "cast one of them first")
            return
        lowered = self._lower(rule, instance, operands)
        if lowered is None:
            return
        drafts = self._drafts(rule, instance, lowered, self.sources[min(numbers)].info.dtype)
        for number in numbers:
            self.coverage.reads.setdefault(number, [])
        for piece in lowered.pieces:
            source = operands[piece.source][piece.source_index]
            self.coverage.reads[source].append(piece.copy)
            for draft in drafts.get((piece.target, piece.target_index), ()):
                draft.moves.append(Move(source, piece.copy))

    def _operand(
        self, rule: BoundRule, instance: Instance, index: int, term: BoundTerm
    ) -> Mapping[Coordinates, int] | None:
        """The source at each coordinate, once all keys of the term are known to agree in shape."""
        replicas = [found for replica in range(len(term.keys)) if (found := instance.sources(index, replica))]
        first = replicas[0]
        like = self.sources[next(iter(first.values()))].info
        for found in replicas:
            different = unlike(self.sources, found.values(), like)
            if different is not None:
                self._problem(rule, different, "the rule wants them alike")
                return None
            if found is not first:
                for coordinate, source in found.items():
                    self.equality_checks.append(EqualityCheck(first[coordinate], source, rule.number))
                    self.coverage.whole.add(source)
        return first

    def _lower(
        self, rule: BoundRule, instance: Instance, operands: Sequence[Mapping[Coordinates, int]]
    ) -> Lowered | None:
        """Layers share their shapes, so each distinct case of a rule is lowered once."""
        firsts = [self.sources[next(iter(operand.values()))].info for operand in operands]
        case = (rule.number, tuple(info.shape for info in firsts), tuple(sorted(instance.extents.items())))
        if case not in self.lowered:
            self.lowered[case] = self._lower_case(rule, instance, firsts)
        return self.lowered[case]

    def _lower_case(self, rule: BoundRule, instance: Instance, firsts: Sequence[TensorInfo]) -> Lowered | None:
        sizes = dict(self.bound.dims.values)
        for axis, (start, stop) in rule.ranges.items():
            if axis not in rule.shape.instances:
                sizes[axis] = stop - start
        for axis, extent in instance.extents.items():
            if sizes.setdefault(axis, extent) != extent:
                self._problem(rule, f"the keys have {extent} values of {axis}, but dims.{axis} is {sizes[axis]}")
                return None
        sources, targets = operands_of(rule.rule, rule.shape, reverse=self.bound.spec.reverse)
        try:
            lowered = lower(sources, [info.shape for info in firsts], targets, sizes)
        except LayoutMismatchError as error:
            tensors = {
                operand.place: f"{printable(str(info))}: " for operand, info in zip(sources, firsts, strict=True)
            }
            for operand, message in error.problems:
                what = f"layout.{operand.place}: {tensors.get(operand.place, '')}{message}"
                self._problem(rule, what, self._unknown_dims(message))
            return None
        self._learn(rule, lowered)
        return lowered

    def _learn(self, rule: BoundRule, lowered: Lowered) -> None:
        """Keep the sizes of dims that the config doesn't give; every rule that shows one must agree."""
        for name in self.bound.dims.reasons.keys() & lowered.sizes.keys():
            known = self.learned.setdefault(name, lowered.sizes[name])
            if known != lowered.sizes[name]:
                self._problem(rule, f"{name} is {lowered.sizes[name]} here, but {known} in the tensors of another rule")

    def _unknown_dims(self, message: str) -> str | None:
        """Why a size that the message speaks of isn't known."""
        words = set(message.replace(",", " ").split())
        reasons = [f"{name}: {reason}" for name, reason in self.bound.dims.reasons.items() if name in words]
        return "; ".join(reasons) or None

    def _drafts(
        self, rule: BoundRule, instance: Instance, lowered: Lowered, dtype: DType
    ) -> dict[tuple[int, Coordinates], list[Draft]]:
        """The drafts that each target operand writes at each coordinate; several where keys are copies."""
        try:
            for operation in rule.rule.operations:
                dtype = operation.output_dtype(dtype)
        except CoverageError as error:
            self._problem(rule, error.problems[0].what)
            return {}
        # An empty tensor has no pieces, and is still a target.
        places = (
            (index, term, coordinate)
            for index, term in enumerate(rule.targets)
            for coordinate in itertools.product(*(range(lowered.sizes[axis]) for axis in term.key_axes))
        )
        found: dict[tuple[int, Coordinates], list[Draft]] = {}
        for index, term, coordinate in places:
            binding = dict(instance.binding)
            for axis, value in zip(term.key_axes, coordinate, strict=True):
                binding[axis] = value + rule.starts.get(axis, 0)
            keys = term.keys if term.term.sharing != "tie" else term.keys[:1]
            names = [name for key in keys if (name := self._name(rule, key, binding))]
            drafts = (self._draft(rule, TensorInfo(name, lowered.target_shapes[index], dtype)) for name in names)
            found[index, coordinate] = [draft for draft in drafts if draft is not None]
        return found

    def _name(self, rule: BoundRule, key: CompiledPattern, binding: Binding) -> str | None:
        name = key.format(binding)
        if name is None:
            self._problem(rule, f"'{key.pattern}' has no key for these indices: a number in it would be negative")
        return name

    def _draft(self, rule: BoundRule, info: TensorInfo, generator: Generator | None = None) -> Draft | None:
        draft = self.coverage.draft(rule, info, generator)
        if isinstance(draft, str):
            self._problem(rule, draft, MADE_ONCE)
            return None
        return draft

    # --- tensors without a counterpart -------------------------------------------------------------------------------

    def _fill(self, rule: BoundRule, instance: Instance) -> None:
        fill = rule.rule.fill
        if fill is None:
            raise AssertionError("only fill rules come here")
        try:
            shape = fill_shape(rule, self.bound, self.learned)
            dtype = self._fill_dtype(rule) if rule.targets else None
        except CoverageError as error:
            self.problems.extend(error.problems)
            return
        for source in (source for found in instance.found.values() for source in found.values()):
            info = self.sources[source].info
            if info.shape != shape:
                self._problem(rule, f"{printable(str(info))}: the rule makes it with shape {list(shape)}")
                continue
            if (refusal := fill.refusal(info)) is not None:
                self._problem(rule, f"{printable(str(info))}: {refusal}")
                continue
            self.generated_checks.append(GeneratedCheck(source, fill, rule.number))
            self.coverage.whole.add(source)
        for key in (key for term in rule.targets for key in term.keys):
            name = self._name(rule, key, instance.binding)
            if name is None or dtype is None:
                continue
            made = TensorInfo(name, shape, dtype)
            if (refusal := fill.refusal(made)) is not None:
                self._problem(rule, f"{printable(str(made))}: {refusal}")
            else:
                self._draft(rule, made, fill)

    def _fill_dtype(self, rule: BoundRule) -> DType:
        if rule.rule.dtype:
            return parse_dtype(rule.rule.dtype)
        found = {source.info.dtype for source in self.sources if source.info.dtype.is_floating}
        if len(found) != 1:
            names = ", ".join(sorted(dtype.label for dtype in found)) or "none"
            what = f"{rule.rule.path}: the dtype to fill with isn't clear, the checkpoint has {names}"
            raise CoverageError(what, rule.rule.location, "add 'dtype:'")
        return found.pop()
