"""The rules of a bound spec, lowered to copies for tensors of given shapes; and what those show of unknown sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from converters.bind import BoundRule, BoundSpec, sizes_with
from converters.completeness import Instance, length
from converters.errors import SpecError
from converters.expressions import Name, Unresolved
from converters.grid import grid_of, without_last
from converters.lowering import Lowered, lower
from converters.operands import LayoutMismatchError
from converters.spec_check import loose_labels, operands_of
from converters.tensor_info import TensorInfo
from converters.text import printable

Report = Callable[[BoundRule, str, str | None], None]
"""Takes a rule, what is wrong with it, and what to do about it."""

WHOLE_DIMENSION = Name("all")
"""How a spec says that a block of a grid is as long as the dimension."""


class RuleLowering:
    """Layers share their shapes, so each distinct case of a rule is lowered once."""

    def __init__(self, bound: BoundSpec, report: Report) -> None:
        self.bound = bound
        self.report = report
        self.sizes: Mapping[str, int] = bound.dims.values
        self.learned: dict[str, int] = {}
        self._lowered: dict[object, Lowered | None] = {}

    def learn(self, counts: Mapping[str, int]) -> None:
        """Take the sizes that the keys have told, and work out those that hang on them."""
        self.sizes = sizes_with(self.bound, counts)
        self.learned.update({name: self.sizes[name] for name in self.bound.dims.reasons.keys() & self.sizes.keys()})

    def lower(self, rule: BoundRule, instance: Instance, firsts: Sequence[TensorInfo], part: int = 0) -> Lowered | None:
        """What a rule does to tensors like these, one for each source term; None with problems, which are reported.

        With `part`, the tensors are the grid of that number over those of part 0, which come first.
        """
        shapes = tuple([info.shape for info in firsts])
        case = (rule.number, part, shapes, instance.sorted_extents())
        if case not in self._lowered:
            self._lowered[case] = self._lower(rule, instance, firsts, part)
        return self._lowered[case]

    def known_sizes(self, rule: BoundRule, instance: Instance) -> dict[str, int] | None:
        """The sizes of axes that are known without the tensors; None where they contradict each other."""
        sizes = dict(self.sizes)
        for axis in (*rule.ranges, *rule.listed):
            if axis not in rule.shape.instances:
                sizes[axis] = length(rule.indices(axis) or ())
        for axis, extent in instance.extents.items():
            if sizes.setdefault(axis, extent) != extent:
                what = f"the keys have {extent} values of {axis}, but dims.{axis} is {sizes[axis]}"
                self.report(rule, what, None)
                return None
        return sizes

    def mismatch(self, rule: BoundRule, error: LayoutMismatchError, firsts: Sequence[TensorInfo]) -> None:
        """Report layouts that don't fit tensors."""
        sources, _ = operands_of(rule.rule, rule.shape, reverse=self.bound.spec.reverse)
        tensors = {operand.place: f"{printable(str(info))}: " for operand, info in zip(sources, firsts, strict=False)}
        for operand, message in error.problems:
            what = f"layout.{operand.place}: {tensors.get(operand.place, '')}{message}"
            self.report(rule, what, self._unknown_dims(message))

    def _lower(self, rule: BoundRule, instance: Instance, firsts: Sequence[TensorInfo], part: int) -> Lowered | None:
        sizes = self.known_sizes(rule, instance)
        if sizes is None:
            return None
        sources, targets = operands_of(rule.rule, rule.shape, reverse=self.bound.spec.reverse)
        elements, scales = firsts[: len(sources)], firsts[len(sources) :]
        try:
            lowered = lower(sources, [info.shape for info in elements], targets, sizes, loose_labels(rule.rule))
            if part:
                lowered = self._lower_grid(rule, lowered, scales, part)
        except LayoutMismatchError as error:
            self.mismatch(rule, error, scales if part else elements)
            return None
        if not part:
            self._learn(rule, lowered)
        return lowered

    def _lower_grid(self, rule: BoundRule, lowered: Lowered, scales: Sequence[TensorInfo], part: int) -> Lowered:
        sources, targets = operands_of(rule.rule, rule.shape, reverse=self.bound.spec.reverse)
        along = sources if rule.rule.parts_of == "from" else targets
        grid = grid_of(sources, targets, lowered.sizes, self._block(rule, lowered, part), along)
        dropped = {len(shape) - len(info.shape) for shape, info in zip(grid.shapes, scales, strict=True)}
        if len(dropped) == 1 and (count := dropped.pop()) > 0:
            grid = without_last(grid, count)
        for operand, shape, info in zip(sources, grid.shapes, scales, strict=True):
            if info.shape != shape:
                what = f"its shape must be {list(shape)}: one number for each block of '{operand.layout}'"
                raise LayoutMismatchError([(operand, what)])
        return lower(grid.sources, grid.shapes, grid.targets, grid.sizes)

    def _block(self, rule: BoundRule, lowered: Lowered, part: int) -> list[int | None]:
        """The sizes of a block along each dimension."""
        _, expressions = rule.rule.parts[part]
        names = {**self.bound.dims.names(), **self.learned, **lowered.sizes}
        found: list[int | None] = []
        for expression in expressions:
            if expression == WHOLE_DIMENSION:
                found.append(None)
                continue
            value = expression.evaluate(names, self.bound.config or {}, self.bound.target_config or {})
            if isinstance(value, Unresolved):
                raise SpecError(f"{rule.rule.path}.grid: {expression}: {value.reason}", rule.rule.location)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                what = f"{rule.rule.path}.grid: {expression} is {value!r}, and a block has at least one element"
                raise SpecError(what, rule.rule.location)
            found.append(value)
        return found

    def _learn(self, rule: BoundRule, lowered: Lowered) -> None:
        """Keep the sizes of dims that the config doesn't give; every rule that shows one must agree."""
        for name in self.bound.dims.reasons.keys() & lowered.sizes.keys():
            known = self.learned.setdefault(name, lowered.sizes[name])
            if known != lowered.sizes[name]:
                what = f"{name} is {lowered.sizes[name]} here, but {known} in the tensors of another rule"
                self.report(rule, what, None)

    def _unknown_dims(self, message: str) -> str | None:
        """Why a size that the message speaks of isn't known."""
        words = set(message.replace(",", " ").split())
        reasons = [f"{name}: {reason}" for name, reason in self.bound.dims.reasons.items() if name in words]
        return "; ".join(reasons) or None
