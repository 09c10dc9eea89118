"""What can be said of a spec without a checkpoint: its placeholders, their kinds, and what could never work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from converters.errors import Problem
from converters.lowering import check_structure
from converters.operands import Operand
from converters.pattern import Choice, Hole, Index, KeyPattern, Kind, Name, Path
from converters.spec import Rule, Spec, Term


@dataclass(frozen=True, slots=True)
class RuleShape:
    """How the placeholders of a rule are used.

    Attributes:
        kinds: what each placeholder can stand for.
        instances: placeholders that every key of the rule carries: one instance of the rule for each of their values.
            The others are axes: indices that live in a key on one side and in a tensor on the other.
    """

    kinds: Mapping[str, Kind]
    instances: tuple[str, ...]

    def key_axes(self, term: Term) -> tuple[str, ...]:
        """The axes that live in the keys of this term, in the order of the key."""
        names = (name for hole in term.keys[0].holes() for name in sorted(hole.expression.names()))
        return tuple(name for name in dict.fromkeys(names) if name in self.kinds and name not in self.instances)


def terms_of(rule: Rule) -> tuple[Term, ...]:
    """All terms of a rule, those of the source first."""
    return (*rule.sources, *rule.targets)


def placeholders_of(pattern: KeyPattern, dims: frozenset[str]) -> frozenset[str]:
    """The placeholders of a pattern: the names in it that are no dims."""
    return pattern.names() - dims


def rule_shape(rule: Rule, placeholders: Iterable[tuple[str, Kind]], dims: frozenset[str]) -> RuleShape:
    """Work out kinds and instances; written kinds go before declared ones, and those before the usual ones.

    Without a kind, a placeholder in the last segment of a key is a name, since keys end in a parameter's name; any
    other, and one that is computed with or used as an axis, is a whole number.
    """
    declared = dict(placeholders)
    keys = [key for term in terms_of(rule) for key in term.keys]
    per_key = [placeholders_of(key, dims) for key in keys]
    everywhere = frozenset.intersection(*per_key) if per_key else frozenset()
    uses: dict[str, list[tuple[Hole, bool]]] = {}
    for key in keys:
        for position, segment in enumerate(key.segments):
            for hole in (part for part in segment if isinstance(part, Hole)):
                for name in sorted(hole.expression.names() - dims):
                    uses.setdefault(name, []).append((hole, position == len(key.segments) - 1))
    kinds = {name: _kind(declared.get(name), found, name in everywhere) for name, found in uses.items()}
    return RuleShape(kinds, tuple(name for name in uses if name in everywhere))


def _kind(declared: Kind | None, uses: Sequence[tuple[Hole, bool]], is_instance: bool) -> Kind:  # noqa: FBT001
    written = next((hole.kind for hole, _ in uses if hole.kind is not None), None)
    if written is not None or declared is not None:
        return written or declared or Index()
    if not is_instance or not all(hole.plain for hole, _ in uses):
        return Index()
    return Name() if any(is_last for _, is_last in uses) else Index()


def operands_of(rule: Rule, shape: RuleShape, *, reverse: bool) -> tuple[list[Operand], list[Operand]]:
    """The two sides of a rule, as its layouts see them; on the way back, the YAML's `to` is the source."""
    words = ("to", "from") if reverse else ("from", "to")
    sources, targets = (
        [Operand(term.label, term.layout, shape.key_axes(term), term.label or word) for term in terms]
        for word, terms in zip(words, (rule.sources, rule.targets), strict=True)
    )
    return sources, targets


def check_spec(spec: Spec) -> list[Problem]:
    """Everything that is wrong whatever the checkpoint."""
    dims = frozenset(dim.name for dim in spec.dims)
    problems: list[Problem] = []
    for rule in spec.rules:
        problems.extend(
            Problem(f"{rule.path}: {what}", rule.location, hint) for what, hint in _check_rule(rule, spec, dims)
        )
    drops = [drop for side in (spec.source, spec.target) for drop in side.drop if "{" in drop.pattern]
    hint = "use '*' for any text"
    problems.extend(Problem(f"drop: {drop.pattern!r} has a placeholder", drop.location, hint) for drop in drops)
    known = {name for rule in spec.rules for term in terms_of(rule) for key in term.keys for name in key.names()}
    where = spec.rules[0].location if spec.rules else None
    unused = [name for name, _ in spec.placeholders if name not in known]
    problems.extend(Problem(f"placeholders.{name} is used by no rule", where) for name in unused)
    return problems


def _check_rule(rule: Rule, spec: Spec, dims: frozenset[str]) -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = []
    terms = terms_of(rule)
    for hole in (hole for term in terms for key in term.keys for hole in key.holes()):
        names = sorted(hole.expression.names() - dims)
        if len(names) != 1:
            what = f"{hole} names {' and '.join(names)}" if names else f"{hole} has no placeholder, only dims"
            found.append((what, "a placeholder is one name, with numbers and dims around it"))
    if found:
        return found
    shape = rule_shape(rule, spec.placeholders, dims)
    labels = [term.label for term in terms if term.label]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    hint = "give each term a label of its own, on both sides together"
    found.extend((f"two terms are labelled {label!r}", hint) for label in twice)
    found.extend(_check_kinds(terms, dims))
    for side, other in ((rule.sources, rule.targets), (rule.targets, rule.sources)):
        for term in side:
            found.extend(_check_term(term, other, rule, shape, dims))
    if not found and rule.fill is None:
        problems = check_structure(*operands_of(rule, shape, reverse=spec.reverse))
        found.extend((f"layout.{operand.place}: {what}", None) for operand, what in problems)
    return found


def _check_kinds(terms: Sequence[Term], dims: frozenset[str]) -> list[tuple[str, str | None]]:
    """Kinds that are written twice, and differently."""
    found: list[tuple[str, str | None]] = []
    kinds: dict[str, Kind] = {}
    for hole in (hole for term in terms for key in term.keys for hole in key.holes()):
        name = next(iter(hole.expression.names() - dims))
        if hole.kind is not None and kinds.setdefault(name, hole.kind) != hole.kind:
            what = f"{{{name}}} is {kinds[name]} in one key and {hole.kind} in another"
            found.append((what, "write the kind once: it holds for the whole rule"))
    return found


def _check_term(
    term: Term, other: Sequence[Term], rule: Rule, shape: RuleShape, dims: frozenset[str]
) -> list[tuple[str, str | None]]:
    found = _check_keys(term, shape, dims)
    if rule.fill is not None:
        for name in sorted(placeholders_of(term.keys[0], dims)):
            kind = shape.kinds[name]
            if not isinstance(kind, Choice) and not (isinstance(kind, Index) and kind.stop is not None):
                found.append((f"'fill' can't know the values of {{{name}}}", f"give its range, as in {{{name}:0..L}}"))
            elif name not in shape.instances:
                found.append((f"{{{name}}} of '{term}' isn't in every key of the rule", "write a rule for each tensor"))
        return found
    for axis in shape.key_axes(term):
        if not isinstance(shape.kinds[axis], Index):
            found.append(
                (
                    f"{{{axis}}} of '{term}' is {shape.kinds[axis]}, but used as an axis",
                    "only a whole number can be an axis",
                )
            )
        if not any(axis in shape.key_axes(term) or axis in term.layout.axis_names() for term in other):
            found.append(
                (
                    f"{{{axis}}} of '{term}' is missing on the other side",
                    "put it into the other key, or into the other layout as an axis",
                )
            )
    return found


def _is_bounded(hole: Hole, shape: RuleShape, dims: frozenset[str]) -> bool:
    return isinstance(shape.kinds[next(iter(hole.expression.names() - dims))], Index | Choice)


def _check_keys(term: Term, shape: RuleShape, dims: frozenset[str]) -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = []
    hint = "write the kind of one of them, as in {i:int} or {p:weight|bias}"
    if len({placeholders_of(key, dims) for key in term.keys}) > 1:
        found.append(
            (f"the keys of {term} have different placeholders", "keys that hold one tensor need the same ones")
        )
    for key in term.keys:
        found.extend(
            (f"{''.join(map(str, segment))!r} has two placeholders of any length: nothing tells where one ends", hint)
            for segment in key.segments
            if sum(isinstance(part, Hole) and not _is_bounded(part, shape, dims) for part in segment) > 1
        )
        kinds = [(hole, shape.kinds[next(iter(hole.expression.names() - dims))]) for hole in key.holes()]
        found.extend(
            (f"{hole} computes with what is no whole number", "write its kind, as in {i:int}")
            for hole, kind in kinds
            if not hole.plain and not isinstance(kind, Index)
        )
        if sum(isinstance(kind, Path) for _, kind in kinds) > 1:
            found.append((f"'{key}' has two dotted rests: nothing tells where the first ends", "a key can have one"))
    return found
