"""A spec joined to a config: dims have their values, conditions are decided, patterns are compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from converters.config_map import check_config, check_derived, complete_config, map_config, parse_assignments
from converters.dims import Dims, evaluate_dims
from converters.errors import CoverageError, Problem, SpecError
from converters.expressions import Expression, Literal, Name, Scope, Unresolved, Value
from converters.index_sets import Condition, listed_indices
from converters.keys import CompiledPattern
from converters.pattern import Index, Kind
from converters.spec import Rule, Spec, Term
from converters.spec_check import RuleShape, rule_shape


class BoundTerm(Struct, frozen=True):
    """A term with its compiled keys and the axes that live in them."""

    term: Term
    keys: tuple[CompiledPattern, ...]
    key_axes: tuple[str, ...]
    copy_axes: tuple[str, ...]


class BoundRule(Struct, frozen=True):
    """A rule that is on, ready to be matched.

    Attributes:
        number: its place in `Spec.rules`.
        ranges: for each placeholder with a range, its first and its last index plus one.
        starts: likewise its first index, known even where the last one isn't.
        counted: for each placeholder whose range ends at a dim that the keys tell, that dim.
        listed: for each placeholder whose indices a list of the config gives, these.
        condition: what must hold of the placeholders of a match.
    """

    number: int
    rule: Rule
    shape: RuleShape
    sources: tuple[BoundTerm, ...]
    targets: tuple[BoundTerm, ...]
    ranges: Mapping[str, tuple[int, int]]
    starts: Mapping[str, int]
    counted: Mapping[str, str]
    listed: Mapping[str, tuple[int, ...]]
    condition: Condition | None

    def indices(self, name: str) -> Sequence[int] | None:
        """The indices that a placeholder must have; None where nothing says so."""
        return range(*self.ranges[name]) if name in self.ranges else self.listed.get(name)

    def index(self, axis: str, position: int) -> int:
        """The index that lies there."""
        return self.listed[axis][position] if axis in self.listed else position + self.starts.get(axis, 0)


class BoundSpec(Struct, frozen=True):
    """See the module.

    Attributes:
        off: for each rule that is off, by number, the condition that is false.
        config: the source's config; None when it has none.
        target_config: the config that the target gets; None when the source has none. What hangs on sizes that only
            the tensors know is `Unresolved` in it, until `finish_config`.
        notes: the sentences whose conditions hold.
    """

    spec: Spec
    dims: Dims
    rules: tuple[BoundRule, ...]
    off: Mapping[int, str]
    notes: tuple[str, ...]
    config: Mapping[str, Any] | None
    target_config: dict[str, Any] | None


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
    counted = counted_dims(spec)
    expressions = {dim.name: _FROM_KEYS if dim.name in counted else dim.value for dim in spec.dims}
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


_FROM_KEYS = Literal(None)
"""What a dim is until the keys have told it."""


def counted_dims(spec: Spec) -> frozenset[str]:
    """The dims that the source's keys tell: those that end the range of a placeholder in them."""
    wanted = {dim.name for dim in spec.dims if dim.from_keys}
    names = frozenset(dim.name for dim in spec.dims)
    found: set[str] = set()
    for rule in spec.rules if wanted else ():
        kinds = rule_shape(rule, spec.placeholders, names).kinds
        in_sources = {name for term in rule.sources for key in term.keys for name in key.names()}
        found.update(counted_by(kind) for name, kind in kinds.items() if name in in_sources)
    return frozenset(found & wanted)


def counted_by(kind: Kind) -> str:
    """The name that ends a range; empty where there is none."""
    return kind.stop.name if isinstance(kind, Index) and isinstance(kind.stop, Name) else ""


def sizes_with(bound: BoundSpec, counts: Mapping[str, int]) -> dict[str, int]:
    """The dims that have a value once the keys have told some of them, and so those that are computed from them."""
    if not counts:
        return dict(bound.dims.values)
    expressions = {dim.name: dim.value for dim in bound.spec.dims}
    locations = {dim.name: dim.location for dim in bound.spec.dims if dim.location is not None}
    known = {**bound.dims.values, **counts}
    return dict(evaluate_dims(expressions, locations, bound.config or {}, bound.target_config or {}, known).values)


def finish_config(bound: BoundSpec, learned: Mapping[str, int]) -> dict[str, Any] | None:
    """The target's config once the tensors have shown the dims that no config gives.

    Raises:
        ConfigError: a value hangs on a dim that isn't known even then, or the source's config has another one.
    """
    if bound.target_config is None:
        return None
    names = {**bound.dims.names(), **learned}
    found = complete_config(bound.spec, bound.target_config, lambda value: value.evaluate(names, bound.config or {}))
    check_derived(
        bound.spec,
        bound.config or {},
        lambda value: value.evaluate(names, found) if value.names() & learned.keys() else Unresolved("checked before"),
    )
    return found


class _Binder:
    def __init__(self, spec: Spec, dims: Dims, config: Mapping[str, Any], target_config: Mapping[str, Any]) -> None:
        self.spec = spec
        self.dims = dims
        self.config = config
        self.target_config = target_config
        self.counted = counted_dims(spec)
        self.problems: list[Problem] = []
        self.is_known = True

    def bind(self, config: Mapping[str, Any] | None, target_config: dict[str, Any] | None) -> BoundSpec:
        # A config.json that holds nothing is known, too: what a range needs is not in it, and gaps can't be found.
        self.is_known = config is not None
        rules, off = [], {}
        names = frozenset(dim.name for dim in self.spec.dims)
        for number, rule in enumerate(self.spec.rules):
            shape = rule_shape(rule, self.spec.placeholders, names)
            is_decided = rule.when is not None and not rule.when.names() & frozenset(shape.instances)
            if rule.when is not None and is_decided and not self._holds(rule.when, rule.path):
                off[number] = str(rule.when)
                continue
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
        starts, ranges, counted, listed = {}, {}, {}, {}
        scope = Scope(self.dims.names(), self.config, self.target_config)
        for name, kind in shape.kinds.items():
            if isinstance(kind, Index) and kind.listed is not None:
                indices = listed_indices(kind.listed, name, scope, is_known=self.is_known)
                if indices is not None:
                    listed[name] = indices
            if isinstance(kind, Index) and kind.stop is not None and kind.start is not None:
                dim = counted_by(kind)
                start = self._bound(kind.start, name)
                stop = self._bound(kind.stop, name) if dim not in self.counted else self.dims.values.get(dim)
                if dim in self.counted and stop is None:
                    counted[name] = dim
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
            counted,
            listed,
            _condition(rule, shape, scope),
        )

    def _bound(self, expression: Expression, name: str) -> int | None:
        """One end of a range; None where it can't be known for want of a config: then gaps are still found."""
        value = expression.evaluate(self.dims.names(), self.config, self.target_config)
        if isinstance(value, Unresolved):
            if self.is_known:
                raise SpecError(f"the range of {{{name}}} needs {expression}: {value.reason}")
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            raise SpecError(f"the range of {{{name}}} ends at {expression}, which is {value!r} and no whole number")
        return value

    def _term(self, term: Term, rule: Rule, shape: RuleShape) -> BoundTerm:
        keys = tuple(CompiledPattern(key, shape.kinds, self.dims.values, rule.location) for key in term.keys)
        return BoundTerm(term, keys, shape.key_axes(term), shape.copy_axes(term))


def _condition(rule: Rule, shape: RuleShape, scope: Scope) -> Condition | None:
    if rule.when is None or not rule.when.names() & frozenset(shape.instances):
        return None
    return Condition(rule.when, scope, rule.path, rule.location)


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
