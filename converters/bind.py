"""A spec joined to a config: dims have their values, conditions are decided, patterns are compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from converters.config_map import check_config, map_config, parse_assignments
from converters.dims import Dims, evaluate_dims
from converters.errors import CoverageError, Problem, SpecError
from converters.expressions import Expression, Unresolved, Value
from converters.keys import CompiledPattern
from converters.pattern import Index
from converters.spec import Rule, Spec, Term
from converters.spec_check import RuleShape, rule_shape


@dataclass(frozen=True, slots=True)
class BoundTerm:
    """A term with its compiled keys and the axes that live in them."""

    term: Term
    keys: tuple[CompiledPattern, ...]
    key_axes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BoundRule:
    """A rule that is on, ready to be matched.

    Attributes:
        number: its place in `Spec.rules`.
        ranges: for each placeholder with a range, its first and its last index plus one.
        starts: likewise its first index, known even where the last one isn't.
    """

    number: int
    rule: Rule
    shape: RuleShape
    sources: tuple[BoundTerm, ...]
    targets: tuple[BoundTerm, ...]
    ranges: Mapping[str, tuple[int, int]]
    starts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class BoundSpec:
    """See the module.

    Attributes:
        off: for each rule that is off, by number, the condition that is false.
        config: the source's config; None when it has none.
        target_config: the config that the target gets; None when the source has none.
        notes: the sentences whose conditions hold.
    """

    spec: Spec
    dims: Dims
    rules: tuple[BoundRule, ...]
    off: Mapping[int, str]
    notes: tuple[str, ...]
    config: Mapping[str, Any] | None = field(hash=False)
    target_config: dict[str, Any] | None = field(hash=False)


def bind(
    spec: Spec,
    config: Mapping[str, Any] | None,
    *,
    where: str = "config.json",
    dims: Mapping[str, int] | None = None,
    set_config: Mapping[str, Any] | None = None,
) -> BoundSpec:
    """Join a spec to the source's config.

    Args:
        spec: the spec.
        config: the source's config; None where there is none, and then nothing is checked and its keys have no value.
        where: what messages call the config.
        dims: values that take the place of the spec's dims.
        set_config: values that the target's config gets, whatever the spec says, by dotted path.

    Raises:
        ConfigError: the config isn't what the spec expects.
        SpecError: dims, conditions or patterns make no sense with this config.
    """
    locations = {dim.name: dim.location for dim in spec.dims if dim.location is not None}
    expressions = {dim.name: dim.value for dim in spec.dims}
    known = {} if config is None else config

    def evaluate(expression: Expression, target: Mapping[str, Any] | None) -> Value:
        if target is None:
            return expression.evaluate(evaluate_dims(expressions, locations, known, None, dims).names(), known)
        # The way back reads the target's config as its own, and its dims are swapped as `Spec.inverse` does it.
        swapped = {name: value.swap_configs() for name, value in expressions.items()}
        return expression.evaluate(evaluate_dims(swapped, locations, target, None, dims).names(), target)

    target_config = None
    if config is not None:
        check_config(spec, config, where)
        target_config = map_config(spec, config, evaluate, where)
        if set_config:
            target_config = parse_assignments(set_config, target_config)
    target_known = {} if target_config is None else target_config
    found = evaluate_dims(expressions, locations, known, target_known, dims)
    return _Binder(spec, found, known, target_known).bind(config, target_config)


class _Binder:
    def __init__(self, spec: Spec, dims: Dims, config: Mapping[str, Any], target_config: Mapping[str, Any]) -> None:
        self.spec = spec
        self.dims = dims
        self.config = config
        self.target_config = target_config
        self.problems: list[Problem] = []

    def bind(self, config: Mapping[str, Any] | None, target_config: dict[str, Any] | None) -> BoundSpec:
        rules, off = [], {}
        names = frozenset(dim.name for dim in self.spec.dims)
        for number, rule in enumerate(self.spec.rules):
            if rule.when is not None and not self._holds(rule.when, rule.path):
                off[number] = str(rule.when)
                continue
            shape = rule_shape(rule, self.spec.placeholders, names)
            try:
                rules.append(self._rule(number, rule, shape))
            except SpecError as error:
                self.problems.extend(
                    Problem(f"{rule.path}: {problem.what}", problem.where or rule.location, problem.hint)
                    for problem in error.problems
                )
        notes = tuple(note.say for note in self.spec.notes if note.when is None or self._holds(note.when, "notes"))
        if self.problems:
            raise SpecError(self.problems)
        return BoundSpec(self.spec, self.dims, tuple(rules), off, notes, config, target_config)

    def _holds(self, condition: Expression, path: str) -> bool:
        value = condition.evaluate(self.dims.names(), self.config, self.target_config)
        if isinstance(value, Unresolved):
            self.problems.append(Problem(f"{path}: 'when: {condition}' can't be decided: {value.reason}"))
            return False
        return bool(value)

    def _rule(self, number: int, rule: Rule, shape: RuleShape) -> BoundRule:
        starts, ranges = {}, {}
        for name, kind in shape.kinds.items():
            if isinstance(kind, Index) and kind.stop is not None and kind.start is not None:
                start, stop = self._bound(kind.start, name), self._bound(kind.stop, name)
                if start is not None:
                    starts[name] = start
                if start is not None and stop is not None:
                    ranges[name] = (start, stop)
        return BoundRule(
            number,
            rule,
            shape,
            tuple(self._term(term, rule, shape) for term in rule.sources),
            tuple(self._term(term, rule, shape) for term in rule.targets),
            ranges,
            starts,
        )

    def _bound(self, expression: Expression, name: str) -> int | None:
        """One end of a range; None where it can't be known for want of a config: then gaps are still found."""
        value = expression.evaluate(self.dims.names(), self.config, self.target_config)
        if isinstance(value, Unresolved):
            if self.config:
                raise SpecError(f"the range of {{{name}}} needs {expression}: {value.reason}")
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            raise SpecError(f"the range of {{{name}}} ends at {expression}, which is {value!r} and no whole number")
        return value

    def _term(self, term: Term, rule: Rule, shape: RuleShape) -> BoundTerm:
        keys = tuple(CompiledPattern(key, shape.kinds, self.dims.values, rule.location) for key in term.keys)
        return BoundTerm(term, keys, shape.key_axes(term))


def fill_shape(rule: BoundRule, bound: BoundSpec, learned: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of what a fill rule makes; `learned` are dims whose size the layouts of other rules have shown.

    Raises:
        CoverageError: a size isn't known.
    """
    sizes = []
    for expression in rule.rule.shape:
        value = expression.evaluate({**bound.dims.names(), **learned}, bound.config or {}, bound.target_config or {})
        if isinstance(value, Unresolved):
            what = f"{rule.rule.path}: the size {expression} isn't known: {value.reason}"
            raise CoverageError(what, rule.rule.location)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            what = f"{rule.rule.path}: the size {expression} is {value!r}, and no whole number of at least 0"
            raise CoverageError(what, rule.rule.location)
        sizes.append(value)
    return tuple(sizes)
