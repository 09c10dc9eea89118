"""What can be said of a spec without a checkpoint: its placeholders, their kinds, and what could never work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from converters.errors import Problem
from converters.lowering import check_structure
from converters.made_sources import without_axis
from converters.operands import Operand
from converters.parts import SEPARATOR
from converters.pattern import Choice, Hole, Index, KeyPattern, Kind, Name, Path
from converters.spec import Rule, Spec, Term


class RuleShape(Struct, frozen=True):
    """How the placeholders of a rule are used.

    Attributes:
        kinds: what each placeholder can stand for.
        instances: placeholders that every key of the rule carries: one instance of the rule for each of their values.
            The others are axes: indices that live in a key on one side and in a tensor on the other.
        copies: placeholders of keys that all hold the same, and that nothing else of the rule knows.
    """

    kinds: Mapping[str, Kind]
    instances: tuple[str, ...]
    copies: frozenset[str] = frozenset()

    def key_axes(self, term: Term) -> tuple[str, ...]:
        """The axes that live in the keys of this term, in the order of the key."""
        return tuple(name for name in self._in_keys(term) if name not in self.instances and name not in self.copies)

    def copy_axes(self, term: Term) -> tuple[str, ...]:
        """The placeholders that count the copies of this term, in the order of the key."""
        return tuple(name for name in self._in_keys(term) if name in self.copies)

    def _in_keys(self, term: Term) -> list[str]:
        if not term.keys[0].holes():
            return []
        names = (name for hole in term.keys[0].holes() for name in sorted(hole.expression.names()))
        return [name for name in dict.fromkeys(names) if name in self.kinds]


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
    keys = [key for term in terms_of(rule) for key in term.keys]
    if not any(key.holes() for key in keys):
        return RuleShape({}, ())
    declared = dict(placeholders)
    per_key = [placeholders_of(key, dims) for key in keys]
    everywhere = frozenset.intersection(*per_key) if per_key else frozenset()
    uses: dict[str, list[tuple[Hole, bool]]] = {}
    for key in keys:
        for position, segment in enumerate(key.segments):
            for hole in (part for part in segment if isinstance(part, Hole)):
                for name in sorted(hole.expression.names() - dims):
                    uses.setdefault(name, []).append((hole, position == len(key.segments) - 1))
    kinds = {name: _kind(declared.get(name), found, name in everywhere) for name, found in uses.items()}
    instances = tuple(name for name in uses if name in everywhere)
    return RuleShape(kinds, instances, _copies(rule, uses.keys() - everywhere, dims))


def _copies(rule: Rule, axes: Iterable[str], dims: frozenset[str]) -> frozenset[str]:
    """The placeholders that only keys of `copy:` have, all on one side, and no layout."""
    found = set()
    for axis in axes:
        sides = [
            [term for term in terms if axis in placeholders_of(term.keys[0], dims)]
            for terms in (rule.sources, rule.targets)
        ]
        holders = sides[0] or sides[1]
        in_layouts = any(axis in term.layout.axis_names() for term in terms_of(rule))
        if not all(sides) and not in_layouts and all(term.sharing == "copy" for term in holders):
            found.add(axis)
    return frozenset(found)


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
    over = rule.tensor_operation.over if rule.tensor_operation else None
    if over is not None:
        sources = [replace(operand, layout=without_axis(operand.layout, over)) for operand in sources]
    return sources, targets


def loose_labels(rule: Rule) -> frozenset[str]:
    """The blocks that only one side of a rule needs to have."""
    return frozenset(label for label, _ in (*rule.filled, *rule.dropped))


def check_spec(spec: Spec) -> list[Problem]:
    """Everything that is wrong whatever the checkpoint."""
    dims = frozenset(dim.name for dim in spec.dims)
    problems: list[Problem] = []
    for rule in spec.rules:
        problems.extend(
            Problem(f"{rule.path}: {what}", rule.location, hint) for what, hint in _check_rule(rule, spec, dims)
        )
    problems.extend(_check_labels(spec))
    drops = [drop for side in (spec.source, spec.target) for drop in side.drop if "{" in drop.pattern]
    hint = "use '*' for any text"
    problems.extend(Problem(f"drop: {drop.pattern!r} has a placeholder", drop.location, hint) for drop in drops)
    known = {name for rule in spec.rules for term in terms_of(rule) for key in term.keys for name in key.names()}
    where = spec.rules[0].location if spec.rules else None
    unused = [name for name, _ in spec.placeholders if name not in known]
    problems.extend(Problem(f"placeholders.{name} is used by no rule", where) for name in unused)
    return problems


def _check_labels(spec: Spec) -> list[Problem]:
    """Keys without a label, on a side whose files have labels."""
    problems = []
    for side, terms in ((spec.source, "sources"), (spec.target, "targets")):
        labels = [part.label_text for part in side.files]
        for rule in spec.rules if labels else ():
            for key in (key for term in getattr(rule, terms) for key in term.keys):
                written = "".join(map(str, key.segments[0])).partition(SEPARATOR)[0]
                if written not in labels:
                    what = f"{rule.path}: '{key}' doesn't begin with the label of a file of {side.layout}"
                    hint = f"write one of {', '.join(labels)} and a colon before it"
                    problems.append(Problem(what, rule.location, hint))
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
    found.extend(_check_when(rule, shape, dims))
    for side, other in ((rule.sources, rule.targets), (rule.targets, rule.sources)):
        for term in side:
            found.extend(_check_term(term, other, rule, shape, dims))
    found.extend(_check_blocks(rule))
    if not found and rule.fill is None:
        problems = check_structure(*operands_of(rule, shape, reverse=spec.reverse), loose_labels(rule))
        found.extend((f"layout.{operand.place}: {what}", None) for operand, what in problems)
    return found


def _check_when(rule: Rule, shape: RuleShape, dims: frozenset[str]) -> list[tuple[str, str | None]]:
    """Names in a condition that don't have one value for each match."""
    names = sorted(rule.when.names() - dims - frozenset(shape.instances)) if rule.when is not None else []
    return [
        (f"'when: {rule.when}' looks at {{{name}}}, which isn't in every key of the rule", None)
        if name in shape.kinds
        else (f"'when: {rule.when}': no dim and no placeholder of the rule is called {name}", None)
        for name in names
    ]


def _check_blocks(rule: Rule) -> list[tuple[str, str | None]]:
    """Blocks under `fill` and `drop` that aren't on one side only."""
    found: list[tuple[str, str | None]] = []
    sides = [
        frozenset[str]().union(*(term.layout.labels() for term in terms)) for terms in (rule.sources, rule.targets)
    ]
    for word, labels in (("fill", dict(rule.filled)), ("drop", dict(rule.dropped))):
        for label in labels:
            here = [label in side for side in sides]
            if not any(here):
                found.append((f"{word}.{label}: the rule's layouts have no block '{label}'", None))
            elif all(here):
                found.append((f"{word}.{label}: block '{label}' is on both sides", "take it off one of them"))
            elif word == "drop" and here[1]:
                hint = "a target's block comes from a source, or from 'fill'"
                found.append((f"drop.{label}: only a block of the source can be left out", hint))
            elif here[0] and rule.tensor_operation is not None:
                what = f"{word}.{label}: '{rule.tensor_operation.name}' makes new values of this block"
                found.append((what, "leave the block out in a rule of its own, without the operation"))
    over = rule.tensor_operation.over if rule.tensor_operation is not None else None
    for term in rule.sources if over is not None else ():
        if over not in term.layout.axis_names():
            what = f"'{rule.operations[0].name}' goes over {over}, which isn't an axis of '{term.layout}'"
            found.append((what, "name the axis in the source's layout, and leave it out of the target's"))
    if twice := sorted({label for label, _ in rule.filled} & {label for label, _ in rule.dropped}):
        found.append((f"block '{twice[0]}' is under 'fill' and under 'drop'", "keep one of the two"))
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
            is_known = isinstance(kind, Choice) or (isinstance(kind, Index) and (kind.stop or kind.listed) is not None)
            if not is_known:
                found.append((f"'fill' can't know the values of {{{name}}}", f"give its range, as in {{{name}:0..L}}"))
            elif name not in shape.instances:
                found.append((f"{{{name}}} of '{term}' isn't in every key of the rule", "write a rule for each tensor"))
        return found
    for axis in shape.copy_axes(term):
        kind = shape.kinds[axis]
        if not isinstance(kind, Index) or kind.stop is None:
            what = f"{{{axis}}} of '{term}' counts copies, and nothing tells how many there are"
            found.append((what, f"declare its range, as in placeholders: {{{axis}: 0..T}}"))
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
                    "put it into the other key, or into the other layout as an axis; or say 'copy' if all are equal",
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
