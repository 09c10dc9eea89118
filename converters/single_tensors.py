"""Rules that make one tensor of one: the way of most tensors of a checkpoint, and so a short one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from converters.bind import BoundRule
from converters.completeness import Instance, has_one_key
from converters.coverage import Coverage
from converters.errors import CoverageError
from converters.layout import WHOLE
from converters.lowering import Lowered, Piece
from converters.plan import Move, Source
from converters.rule_lowering import RuleLowering
from converters.rule_targets import RuleTargets, output_dtype
from converters.strided import StridedCopy, strided_copy
from converters.tensor_info import DType, TensorInfo


def makes_one_of_one(rule: BoundRule) -> bool:
    """Whether each instance of a rule is one tensor that becomes one other, without being joined, cut or copied."""
    if not has_one_key(rule) or len(rule.targets) != 1:
        return False
    target = rule.targets[0]
    is_plain = not (rule.rule.fill or rule.rule.parts or rule.rule.tensor_operation or target.key_axes)
    return is_plain and target.term.sharing == rule.sources[0].term.sharing == "one"


def is_rename(rule: BoundRule) -> bool:
    """Whether a rule that makes one tensor of one says nothing of what is in it."""
    return rule.sources[0].term.layout == rule.targets[0].term.layout == WHOLE


class SingleTensors:
    """Makes the drafts of such a rule; tensors of one shape and dtype share what is worked out for the first."""

    def __init__(
        self, sources: Sequence[Source], coverage: Coverage, lowering: RuleLowering, targets: RuleTargets
    ) -> None:
        self.sources = sources
        self.coverage = coverage
        self.lowering = lowering
        self.targets = targets
        self._renames: dict[tuple[int, ...], Lowered] = {}

    def make(self, rule: BoundRule, instances: Sequence[Instance]) -> list[Instance]:
        """Make the targets; returns the instances that need the long way, since they have problems or loose blocks."""
        key = rule.targets[0].keys[0]
        known: dict[tuple[tuple[int, ...], DType], tuple[Lowered, DType, tuple[StridedCopy, ...]] | None] = {}
        others = []
        for instance in instances:
            number = instance.single
            if number is None:
                others.append(instance)
                continue
            info = self.sources[number].info
            kind = info.shape, info.dtype
            if kind not in known:
                known[kind] = self._lowered(rule, instance, info)
            found = known[kind]
            if found is None:
                others.append(instance)
                continue
            lowered, dtype, copies = found
            name = self.targets.name(rule, key, instance.binding)
            draft = self.targets.draft(rule, TensorInfo(name, lowered.target_shapes[0], dtype)) if name else None
            self.coverage.read(number, copies)
            if draft is not None:
                for copy in copies:
                    draft.moves.append(Move(number, copy))
        return others

    def _renamed(self, shape: tuple[int, ...]) -> Lowered:
        """What a rule does that says nothing of the tensor: all rules do the same to tensors of one shape."""
        if shape not in self._renames:
            size = math.prod(shape)
            pieces = (Piece(0, (), 0, (), strided_copy([(size, 1, 1)], 0, 0)),) if size else ()
            self._renames[shape] = Lowered((shape,), pieces, {})
        return self._renames[shape]

    def _lowered(
        self, rule: BoundRule, instance: Instance, info: TensorInfo
    ) -> tuple[Lowered, DType, tuple[StridedCopy, ...]] | None:
        lowered = self._renamed(info.shape) if is_rename(rule) else self.lowering.lower(rule, instance, [info])
        if lowered is None or lowered.loose_sources or lowered.loose_targets:
            return None
        try:
            dtype = output_dtype(rule, info.dtype)
        except CoverageError:
            return None
        return lowered, dtype, tuple(piece.copy for piece in lowered.pieces)
