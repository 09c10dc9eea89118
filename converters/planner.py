"""From a bound spec and the headers of a checkpoint to a plan, with the proof that it covers both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from converters.bind import BoundRule, BoundSpec, fill_shape, finish_config
from converters.collector import paused
from converters.completeness import Coordinates, Instance
from converters.coverage import Coverage, Draft, mixed_dtypes, unlike
from converters.errors import CoverageError, Problem
from converters.keys import MAX_DIGITS, is_index
from converters.lowering import Loose, Lowered
from converters.made_sources import MadeSources, make_source
from converters.matching import match_keys
from converters.operands import LayoutMismatchError, Operand
from converters.operations.cast import check_castable
from converters.operations.fill import Fill
from converters.parts import shards_in_one, shards_of_parts
from converters.plan import (
    BlockFill,
    Dropped,
    EqualityCheck,
    GeneratedCheck,
    Move,
    Plan,
    RuleSummary,
    Source,
)
from converters.rule_lowering import RuleLowering
from converters.rule_targets import RuleTargets
from converters.sharding import Shard, split_into_shards
from converters.single_tensors import SingleTensors, makes_one_of_one
from converters.spec import Side
from converters.strided import StridedCopy, strided_copy
from converters.tensor_info import DType, TensorInfo, parse_dtype
from converters.text import format_nbytes, printable

DEFAULT_MAX_SHARD_NBYTES = 5_000_000_000
"""Bytes; what huggingface_hub takes by default."""

MAX_TENSOR_NBYTES = 10_000_000_000_000
"""Bytes of one tensor: far above any, and few enough that whoever asks for an exabyte of zeros is told so at once."""


@paused()
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


def shards_of(side: Side, tensors: Sequence[TensorInfo], max_shard_nbytes: int) -> tuple[Shard, ...]:
    """The files of the target, as its layout names them."""
    if side.files:
        return shards_of_parts(side.files, tensors, max_shard_nbytes)
    return shards_in_one(side.file, tensors) if side.file else split_into_shards(tensors, max_shard_nbytes)


def natural_order(name: str) -> str:
    """Sort key by which layer 10 comes after layer 9: the output's order depends on its names alone."""
    return "\0".join(map(_place, name.split(".")))


@lru_cache(maxsize=4096)
def _place(part: str) -> str:
    """How a part of a name sorts, numbers first; names have many parts, and few different ones."""
    return f"0{part:0>{MAX_DIGITS}}" if is_index(part) else f"1{part}"


class _Planner:
    def __init__(self, bound: BoundSpec, sources: Sequence[Source], dtype: DType | None) -> None:
        self.bound = bound
        self.sources = sources
        self.dtype = dtype
        self.problems: list[Problem] = []
        self.coverage = Coverage(sources)
        self.equality_checks: list[EqualityCheck] = []
        self.generated_checks: list[GeneratedCheck] = []
        self.dropped: list[Dropped] = []
        self.made = MadeSources(len(sources))
        self.lowering = RuleLowering(bound, self._problem)
        self.targets = RuleTargets(self.coverage, self._problem)

    def plan(self, max_shard_nbytes: int) -> Plan:
        """See `make_plan`."""
        dropped, counts = self._collect()
        self.coverage.whole.update(drop.source for drop in dropped)
        if not self.problems:
            self.problems.extend(self.coverage.prove(self.bound.spec.path, [made.info for made in self.made.all]))
        if self.problems:
            raise CoverageError(self.problems)
        drafts = self.coverage.drafts.values()
        targets = sorted((draft.finish(self.dtype) for draft in drafts), key=lambda made: natural_order(made.info.name))
        infos = [target.info for target in targets]
        _refuse_giants(infos)
        shards = shards_of(self.bound.spec.target, infos, max_shard_nbytes)
        by_name = {target.info.name: target for target in targets}
        return Plan(
            self.bound.spec.name,
            self.bound.spec.digest,
            self.bound.spec.reverse,
            tuple(self.sources),
            tuple(by_name[info.name] for shard in shards for info in shard.tensors),
            shards,
            self._summaries(counts),
            (*dropped, *self.dropped),
            tuple(self.equality_checks),
            tuple(self.generated_checks),
            self.bound.notes,
            finish_config(self.bound, self.lowering.learned),
            tuple(self.made.all),
        )

    def _collect(self) -> tuple[tuple[Dropped, ...], dict[int, int]]:
        """Draft all targets; returns the keys that are dropped, and how many instances each rule has."""
        matches = match_keys(self.bound, [source.info.name for source in self.sources])
        self.problems.extend(matches.problems)
        self.lowering.learn(matches.counts)
        counts: dict[int, int] = {}
        singles = SingleTensors(self.sources, self.coverage, self.lowering, self.targets)
        # What is made anew comes last, when the layouts of the others have shown the sizes that no config gives.
        for match in sorted(matches.rules, key=lambda match: match.rule.rule.fill is not None):
            counts[match.rule.number] = len(match.instances)
            instances = () if matches.problems else match.instances
            if makes_one_of_one(match.rule):
                instances = singles.make(match.rule, instances)
            for instance in instances:
                if match.rule.rule.fill is not None:
                    self._fill(match.rule, instance)
                else:
                    self._instance(match.rule, instance)
        return matches.dropped, counts

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
        """The elements, and after them the grids that lie over them."""
        elements: list[TensorInfo] = []
        for part in range(max(1, len(rule.rule.parts))):
            operands: list[Mapping[Coordinates, int]] = []
            for index in range(len(rule.sources)):
                operand = self._operand(rule, instance, index, part)
                if operand is None:
                    return
                operands.append(operand)
            firsts = [self._info(next(iter(operand.values()))) for operand in operands]
            elements = elements or firsts
            if not self._move(rule, instance, operands, part, elements if part == 0 else [*elements, *firsts]):
                return

    def _move(
        self,
        rule: BoundRule,
        instance: Instance,
        operands: Sequence[Mapping[Coordinates, int]],
        part: int,
        firsts: Sequence[TensorInfo],
    ) -> bool:
        """Make the targets of these sources; whether that was possible."""
        numbers = sorted({number for operand in operands for number in operand.values()})
        mixed = mixed_dtypes([self._info(number) for number in numbers]) if len(numbers) > 1 else None
        if mixed is not None:
            self._problem(rule, mixed, "cast one of them first")
            return False
        lowered = self.lowering.lower(rule, instance, firsts, part)
        if lowered is None:
            return False
        drafts = self.targets.drafts(rule, instance, lowered, self._info(numbers[0]).dtype, part)
        if part > 0:
            for draft in (each for found in drafts.values() for each in found):
                draft.is_grid = True
        reads: dict[int, list[StridedCopy]] = {number: [] for number in numbers}
        for piece in lowered.pieces:
            source = operands[piece.source][piece.source_index]
            reads[source].append(piece.copy)
            for draft in drafts.get((piece.target, piece.target_index), ()):
                draft.moves.append(Move(source, piece.copy))
        for number, copies in reads.items():
            self.coverage.read(number, copies)
        if lowered.loose_sources:
            self._source_blocks(rule, lowered, operands)
        if lowered.loose_targets:
            self._target_blocks(rule, lowered, drafts)
        return True

    def _info(self, number: int) -> TensorInfo:
        return self.sources[number].info if number < len(self.sources) else self.made.info(number)

    def _operand(self, rule: BoundRule, instance: Instance, index: int, part: int) -> Mapping[Coordinates, int] | None:
        """The source at each coordinate, once all keys of the term are known to agree in shape."""
        replicas = instance.sources(index)
        has_inputs = rule.sources[index].term.sharing == "inputs"
        if rule.rule.tensor_operation is None:
            return self._shared(rule, replicas[part : part + 1] if has_inputs else replicas)
        groups = [[one] for one in replicas] if has_inputs else [replicas]
        inputs = [found for group in groups if (found := self._shared(rule, group)) is not None]
        return self._made(rule, instance, index, inputs) if len(inputs) == len(groups) else None

    def _shared(
        self, rule: BoundRule, replicas: Sequence[Mapping[Coordinates, int]]
    ) -> Mapping[Coordinates, int] | None:
        """The first of several sources that must hold the same, once they are known to agree in shape."""
        first = replicas[0]
        if len(replicas) == len(first) == 1:
            return first
        like = self._info(next(iter(first.values())))
        for found in replicas:
            different = unlike((self._info(source) for source in found.values()), like)
            if different is not None:
                self._problem(rule, different, "the rule wants them alike")
                return None
            if found is not first:
                for coordinate, source in found.items():
                    self.equality_checks.append(EqualityCheck(first[coordinate], source, rule.number))
                    self.coverage.whole.add(source)
        return first

    def _made(
        self, rule: BoundRule, instance: Instance, index: int, replicas: Sequence[Mapping[Coordinates, int]]
    ) -> Mapping[Coordinates, int] | None:
        """What the rule's operation makes at each coordinate, of one source under each key."""
        operation, term = rule.rule.tensor_operation, rule.sources[index]
        sizes = self.lowering.known_sizes(rule, instance)
        if operation is None or sizes is None:
            return None
        operand = Operand(term.term.label, term.term.layout, term.key_axes, term.term.label or "from")
        made = {}
        for coordinate in replicas[0]:
            inputs = {found[coordinate]: self._info(found[coordinate]) for found in replicas}
            try:
                made[coordinate] = self.made.add(make_source(operation, operand, inputs, sizes))
            except CoverageError as error:
                self._problem(rule, error.problems[0].what)
                return None
            except LayoutMismatchError as error:
                self.lowering.mismatch(rule, error, list(inputs.values()))
                return None
            self.coverage.whole.update(inputs)
        return made

    def _source_blocks(self, rule: BoundRule, lowered: Lowered, operands: Sequence[Mapping[Coordinates, int]]) -> None:
        """Blocks of sources that the targets don't have: left out, or shown to hold what is made anew."""
        reasons = dict(rule.rule.dropped)
        for block in lowered.loose_sources:
            reason = next((reasons[label] for label in block.labels if label in reasons), None)
            for source in operands[block.operand].values():
                self.coverage.read(source, [block.copy])
                if reason is not None:
                    self.dropped.append(Dropped(source, reason, block.copy.size))
                elif (fill := self._block_fill(rule, block, self._info(source))) is not None:
                    self.generated_checks.append(GeneratedCheck(source, fill, rule.number, block.copy))

    def _target_blocks(
        self, rule: BoundRule, lowered: Lowered, drafts: Mapping[tuple[int, Coordinates], Sequence[Draft]]
    ) -> None:
        """Blocks of targets that the sources don't have."""
        for block in lowered.loose_targets:
            for draft in (each for (operand, _), found in drafts.items() if operand == block.operand for each in found):
                if (fill := self._block_fill(rule, block, draft.info)) is not None:
                    draft.fills.append(BlockFill(fill, block.copy))

    def _block_fill(self, rule: BoundRule, block: Loose, info: TensorInfo) -> Fill | None:
        fill = next(fill for label, fill in rule.rule.filled if label in block.labels)
        if (refusal := fill.refusal(info)) is not None:
            self._problem(rule, f"{printable(str(info))}: {refusal}")
            return None
        return fill

    # --- tensors without a counterpart -------------------------------------------------------------------------------

    def _fill(self, rule: BoundRule, instance: Instance) -> None:
        fill = rule.rule.fill
        if fill is None:
            raise AssertionError("only fill rules come here")
        try:
            shape = fill_shape(rule, self.bound, self.lowering.learned)
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
            whole = strided_copy([(info.size, 1, 1)], 0, 0)
            self.generated_checks.append(GeneratedCheck(source, fill, rule.number, whole))
            self.coverage.whole.add(source)
        for key in (key for term in rule.targets for key in term.keys):
            name = self.targets.name(rule, key, instance.binding)
            if name is None or dtype is None:
                continue
            made = TensorInfo(name, shape, dtype)
            if (refusal := fill.refusal(made)) is not None:
                self._problem(rule, f"{printable(str(made))}: {refusal}")
            else:
                self.targets.draft(rule, made, fill)

    def _fill_dtype(self, rule: BoundRule) -> DType:
        if rule.rule.dtype:
            return parse_dtype(rule.rule.dtype)
        found = {source.info.dtype for source in self.sources if source.info.dtype.is_floating}
        if len(found) != 1:
            names = ", ".join(sorted(dtype.label for dtype in found)) or "none"
            what = f"{rule.rule.path}: the dtype to fill with isn't clear, the checkpoint has {names}"
            raise CoverageError(what, rule.rule.location, "add 'dtype:'")
        return found.pop()


def _refuse_giants(infos: Sequence[TensorInfo]) -> None:
    limit = format_nbytes(MAX_TENSOR_NBYTES)
    problems = [
        Problem(f"{printable(info.name)} would take {format_nbytes(info.nbytes)}; no tensor may have more than {limit}")
        for info in infos
        if info.nbytes > MAX_TENSOR_NBYTES
    ]
    if problems:
        raise CoverageError(problems)
