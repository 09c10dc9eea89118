"""The targets that an instance of a rule makes: their keys, shapes and dtypes, as drafts to be filled."""

from __future__ import annotations

import itertools

from converters.bind import BoundRule, BoundTerm
from converters.completeness import Coordinates, Instance
from converters.coverage import Coverage, Draft
from converters.errors import CoverageError
from converters.keys import Binding, CompiledPattern
from converters.lowering import Lowered
from converters.operations import Generator
from converters.rule_lowering import Report
from converters.tensor_info import DType, TensorInfo

MADE_ONCE = "each target is made once; give one of the two another key"


def output_dtype(rule: BoundRule, dtype: DType) -> DType:
    """What the rule's operations make of a dtype.

    Raises:
        CoverageError: one of them can't take it.
    """
    for operation in rule.rule.elementwise:
        dtype = operation.output_dtype(dtype)
    return dtype


class RuleTargets:
    """Makes drafts; what can't be made is reported."""

    def __init__(self, coverage: Coverage, problem: Report) -> None:
        self.coverage = coverage
        self._problem = problem

    def drafts(
        self, rule: BoundRule, instance: Instance, lowered: Lowered, dtype: DType, part: int
    ) -> dict[tuple[int, Coordinates], list[Draft]]:
        """The drafts that each target operand writes at each coordinate; several where keys are copies."""
        made = self._dtype(rule, dtype)
        if made is None:
            return {}
        # An empty tensor has no pieces, and is still a target.
        found: dict[tuple[int, Coordinates], list[Draft]] = {}
        for index, term in enumerate(rule.targets):
            shape = lowered.target_shapes[index]
            # Of tied keys the first is written, and under `inputs` each has a part of its own.
            keys = term.keys if term.term.sharing in ("one", "copy") else term.keys[part : part + 1]
            for coordinate in itertools.product(*(range(lowered.sizes[axis]) for axis in term.key_axes)):
                binding: Binding = instance.binding
                if coordinate:
                    at = {axis: rule.index(axis, value) for axis, value in zip(term.key_axes, coordinate, strict=True)}
                    binding = {**binding, **at}
                copies = self._copies(rule, term, binding) if term.copy_axes else [binding]
                names = [name for key in keys for copy in copies if (name := self.name(rule, key, copy))]
                drafts = [self.draft(rule, TensorInfo(name, shape, made)) for name in names]
                found[index, coordinate] = [draft for draft in drafts if draft is not None]
        return found

    def _dtype(self, rule: BoundRule, dtype: DType) -> DType | None:
        """What the rule's operations make of a dtype; None where they can't take it, which is reported."""
        try:
            return output_dtype(rule, dtype)
        except CoverageError as error:
            self._problem(rule, error.problems[0].what, None)
            return None

    def _copies(self, rule: BoundRule, term: BoundTerm, binding: Binding) -> list[Binding]:
        """The binding of each copy that a term makes."""
        unknown = [axis for axis in term.copy_axes if axis not in rule.ranges]
        if unknown:
            what = f"how many copies '{term.term}' makes isn't known: {', '.join(unknown)} has no range"
            self._problem(rule, what, "give the dim that ends its range, as --dim NAME=VALUE")
            return []
        ranges = (range(*rule.ranges[axis]) for axis in term.copy_axes)
        return [{**binding, **dict(zip(term.copy_axes, at, strict=True))} for at in itertools.product(*ranges)]

    def name(self, rule: BoundRule, key: CompiledPattern, binding: Binding) -> str | None:
        """The key of a target; None where there is none, which is reported."""
        name = key.format(binding)
        if name is None:
            self._problem(rule, f"'{key.pattern}' has no key for these indices: a number in it would be negative", None)
        return name

    def draft(self, rule: BoundRule, info: TensorInfo, generator: Generator | None = None) -> Draft | None:
        """The draft of a target; None where another rule makes it already, which is reported."""
        draft = self.coverage.draft(rule, info, generator)
        if isinstance(draft, str):
            self._problem(rule, draft, MADE_ONCE)
            return None
        return draft
