"""Whether every instance of a rule has all of its keys: no index of an axis is missing, no layer, no copy."""

from __future__ import annotations

import itertools
import math
import operator
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TypeVar

from msgspec import Struct

from converters.bind import BoundRule, BoundTerm
from converters.keys import Binding, CompiledPattern
from converters.match_problems import MatchProblems
from converters.pattern import Choice, Name
from converters.text import printable

Coordinates = tuple[int, ...]

Replica = tuple[int, ...]
"""One key of a term that several share: the number of its pattern, and the index of each placeholder of its copies."""

Value = TypeVar("Value")

SHOWN = 8
"""Indices that a message lists."""


class Instance(Struct, eq=False, gc=False):
    """One instance of a rule: what its placeholders stand for, and the source tensors of each term.

    A checkpoint may have a million of them, most with a single key, so these hold no more than its source's number.
    """

    binding: Binding
    single: int | None = None
    """The source, by number, where the rule has one key, and no axis lives in it."""
    _found: dict[tuple[int, Replica], dict[Coordinates, int]] | None = None
    _extents: dict[str, int] | None = None

    @property
    def found(self) -> dict[tuple[int, Replica], dict[Coordinates, int]]:
        """For each source term and each of its keys, the number of the source at each coordinate of its key axes."""
        if self._found is None:
            self._found = {} if self.single is None else {(0, (0,)): {(): self.single}}
        return self._found

    @property
    def extents(self) -> dict[str, int]:
        """For each axis that lives in a source key, how many indices it has."""
        if self._extents is None:
            self._extents = {}
        return self._extents

    def replicas(self, term: int) -> list[Replica]:
        """The keys of one term that are there, the first one first."""
        return sorted(replica for number, replica in self.found if number == term)

    def sources(self, term: int) -> list[dict[Coordinates, int]]:
        """For each key of one term that is there, the number of the source at each coordinate."""
        if self.single is not None:
            return [{(): self.single}]
        return [self.found[term, replica] for replica in self.replicas(term)]

    def sorted_extents(self) -> tuple[tuple[str, int], ...]:
        """The extents, for comparing one instance with another."""
        return tuple(sorted(self._extents.items())) if self._extents else ()


class Completeness:
    """Checks the instances of rules, and measures how far the axes in their keys go."""

    def __init__(self, report: MatchProblems) -> None:
        self.report = report

    def check(self, rule: BoundRule, instances: Sequence[Instance]) -> None:
        """Note what is missing of the instances of one rule, each of which has a key at least."""
        # An instance has a key at least, so where that is all a rule can have, none lacks anything.
        if not has_one_key(rule):
            for instance in instances:
                self._check_instance(rule, instance)
        # No two instances are the same, and each is one of all there can be, so that as many as these can't lack one.
        if len(instances) == _most(rule):
            return
        self._check_ranges(rule, instances)
        self._check_choices(rule, instances)

    def _check_ranges(self, rule: BoundRule, instances: Sequence[Instance]) -> None:
        """Every number of a declared range must have an instance: a missing layer is an error."""
        ranged, indices = _ranged(rule)
        if not ranged or rule.rule.optional or not rule.targets:
            return
        # A parameter that one layer has, a bias for instance, the others must have as well.
        named = [name for name in rule.shape.instances if isinstance(rule.shape.kinds[name], Choice | Name)]
        if rule.condition is None and len(ranged) + len(named) == len(rule.shape.instances):
            counts = Counter([tuple([instance.binding[name] for name in named]) for instance in instances])
            every = math.prod(map(length, indices))
            if all(count == every for count in counts.values()):
                return  # no two instances are the same, so that many can't lack one
        groups: dict[tuple[int | str, ...], set[tuple[int | str, ...]]] = {}
        for instance in instances:
            group = groups.setdefault(tuple([instance.binding[name] for name in named]), set())
            group.add(tuple([instance.binding[name] for name in ranged]))
        missing: list[tuple[int | str, ...]] = []
        count = 0
        for chosen, there in groups.items():
            if rule.condition is None:
                lacking, number = _missing(indices, there)
            else:
                wanted = (at for at in _product(indices) if _is_wanted(rule, [*ranged, *named], (*at, *chosen)))
                lacking = [at for at in wanted if at not in there]
                number = len(lacking)
            missing.extend((*at, *chosen) for at in lacking)
            count += number
        if missing:
            shown = missing[:SHOWN]
            names = (*ranged, *named)
            each = (
                ", ".join(f"{name}={printable(str(at))}" for name, at in zip(names, one, strict=True)) for one in shown
            )
            more = f"; ... ({count} in all)" if count > len(shown) else ""
            what = f"no key for {'; '.join(each)}{more}"
            self.report.add(what, rule, f"the range says that it must be there: {rule.rule.text}")

    def _check_choices(self, rule: BoundRule, instances: Sequence[Instance]) -> None:
        """Where every name of a choice must be there, one of them alone is an error: no bias without a weight."""
        every = {
            name: kind.names
            for name in rule.shape.instances
            if isinstance(kind := rule.shape.kinds[name], Choice) and kind.every
        }
        if not every or not rule.targets:
            return
        others = [name for name in rule.shape.instances if name not in every]
        places = dict.fromkeys([tuple([instance.binding[name] for name in others]) for instance in instances])
        if len(places) * math.prod(map(len, every.values())) == len(instances):
            return  # no two instances are the same, so that many can't lack one
        there: dict[tuple[int | str, ...], set[tuple[int | str, ...]]] = {place: set() for place in places}
        for instance in instances:
            place = tuple([instance.binding[name] for name in others])
            there[place].add(tuple([instance.binding[name] for name in every]))
        missing = [
            printable(key_text(rule.sources[0].keys[0], dict(zip((*others, *every), (*values, *chosen), strict=True))))
            for values, group in there.items()
            for chosen in _missing([*every.values()], group)[0]
        ]
        if missing:
            more = f", ... ({len(missing)} in all)" if len(missing) > SHOWN else ""
            kinds = " and ".join(f"{{{name}:{rule.shape.kinds[name]}}}" for name in every)
            what = f"no key {', '.join(missing[:SHOWN])}{more}"
            self.report.add(what, rule, f"{kinds} says that all of them must be there; with | one is enough")

    @staticmethod
    def wants_any(rule: BoundRule) -> bool:
        """Whether there is an index at all for which the rule wants keys."""
        ranged, indices = _ranged(rule)
        if rule.condition is None or not rule.condition.needs() <= {*ranged}:
            return all(length(each) for each in indices)
        return any(_is_wanted(rule, ranged, at) for at in _product(indices))

    def _check_instance(self, rule: BoundRule, instance: Instance) -> None:
        present = [instance.replicas(index) for index in range(len(rule.sources))]
        for index, term in enumerate(rule.sources):
            for replica in present[index]:
                self._measure(rule, instance, term, instance.found[index, replica])
        for index, term in enumerate(rule.sources):
            missing = list(self._missing_keys(rule, instance, term, present[index]))
            if missing and (term.term.sharing != "tie" or not present[index]):
                names = ", ".join(map(printable, missing))
                at = ", ".join(f"{name}={printable(str(value))}" for name, value in instance.binding.items())
                at = f" for {at}" if at else ""
                self.report.add(f"{names} is missing{at}, which the rule needs beside the keys that are there", rule)
            for replica in present[index]:
                key = term.keys[replica[0]]
                self._check_axes(rule, instance, term.key_axes, key, instance.found[index, replica])

    @staticmethod
    def _missing_keys(
        rule: BoundRule, instance: Instance, term: BoundTerm, present: Sequence[Replica]
    ) -> Iterator[str]:
        """The keys of a term that are not there, the first few of them."""
        if not term.copy_axes:
            there = {replica[0] for replica in present}
            yield from (key_text(key, instance.binding) for n, key in enumerate(term.keys) if n not in there)
            return
        starts = [rule.starts.get(axis, 0) for axis in term.copy_axes]
        highest = [max(indices) for indices in zip(*present, strict=True)][1:] if present else [0] * len(starts)
        extents = [
            range(stop - start if stop is not None else last + 1)
            for start, last, stop in zip(
                starts, highest, (rule.ranges.get(axis, (0, None))[1] for axis in term.copy_axes), strict=True
            )
        ]
        for number, *copy in _missing([range(len(term.keys)), *extents], set(present))[0]:
            indices = map(operator.add, copy, starts)
            binding = {**instance.binding, **dict(zip(term.copy_axes, indices, strict=True))}
            yield key_text(term.keys[number], binding)

    @staticmethod
    def _measure(rule: BoundRule, instance: Instance, term: BoundTerm, found: Mapping[Coordinates, int]) -> None:
        """How many indices each axis of the keys has: as its range says, or up to the largest that is there."""
        for position, axis in enumerate(term.key_axes):
            if (indices := rule.indices(axis)) is not None:
                extent = length(indices)
            else:
                extent = max(coordinate[position] for coordinate in found) + 1
            instance.extents[axis] = max(instance.extents.get(axis, 0), extent)

    def _check_axes(
        self,
        rule: BoundRule,
        instance: Instance,
        axes: tuple[str, ...],
        key: CompiledPattern,
        found: Mapping[Coordinates, int],
    ) -> None:
        """Every index of an axis that lives in the key must be there: experts 0, 1, 3 are not three experts."""
        missing, count = _missing([range(instance.extents[axis]) for axis in axes], found.keys())
        if missing:
            there = _indices(rule, axes, sorted(found)[:SHOWN], len(found))
            lacking = _indices(rule, axes, missing, count)
            self.report.add(
                f"'{key_text(key, instance.binding)}' lacks {', '.join(axes)} = {lacking}; there are {there}",
                rule,
                "stacking the others would shift them: is a shard or a file missing?",
            )


def has_one_key(rule: BoundRule) -> bool:
    """Whether an instance of the rule is a single tensor of the checkpoint."""
    first = rule.sources[0] if len(rule.sources) == 1 else None
    return first is not None and len(first.keys) == 1 and not first.key_axes and not first.copy_axes


def key_text(key: CompiledPattern, binding: Binding) -> str:
    """The key for a binding, or its pattern where an axis of the key has no single value."""
    if any(name not in binding for name in key.names):
        return str(key.pattern)
    return key.format(binding) or str(key.pattern)


def length(values: Sequence[object]) -> int:
    """`len`, which refuses a range of 2**63 numbers."""
    return max(0, values.stop - values.start) if isinstance(values, range) else len(values)


def _missing(
    axes: Sequence[Sequence[Value]], there: Collection[tuple[object, ...]]
) -> tuple[list[tuple[Value, ...]], int]:
    """The first combinations that are not there, and how many there are; never a walk along all of a long range."""
    count = math.prod(map(length, axes)) - len(there)
    if count <= 0:
        return [], 0
    return list(itertools.islice((at for at in _product(axes) if at not in there), SHOWN)), count


def _product(axes: Sequence[Sequence[Value]]) -> Iterator[tuple[Value, ...]]:
    """`itertools.product`, which would make a list of each range first."""
    if not axes:
        yield ()
        return
    for value in axes[0]:
        for rest in _product(axes[1:]):
            yield (value, *rest)


def _ranged(rule: BoundRule) -> tuple[list[str], list[Sequence[int]]]:
    """The placeholders of a rule's instances whose indices are known, and these."""
    known = {name: indices for name in rule.shape.instances if (indices := rule.indices(name)) is not None}
    return list(known), list(known.values())


def _most(rule: BoundRule) -> int | None:
    """How many instances the rule can have; None where nothing says so."""
    count = 1
    for name in rule.shape.instances:
        kind = rule.shape.kinds[name]
        values = kind.names if isinstance(kind, Choice) else rule.indices(name)
        if values is None:
            return None
        count *= length(values)
    return count


def _is_wanted(rule: BoundRule, names: Sequence[str], at: Sequence[int | str]) -> bool:
    """Whether the rule's condition holds there; where it looks at more than these, that can't be said."""
    if rule.condition is None or not rule.condition.needs() <= {*names}:
        return rule.condition is None
    return rule.condition.holds(dict(zip(names, at, strict=True)))


def _indices(rule: BoundRule, axes: Sequence[str], coordinates: Sequence[Coordinates], count: int) -> str:
    """Coordinates as they stand in the keys; `count` is how many there are in all."""
    in_keys = [tuple(map(rule.index, axes, one)) for one in coordinates]
    texts = [str(one[0]) if len(one) == 1 else str(one) for one in in_keys]
    return ", ".join(texts) + (f", ... ({count} in all)" if count > len(texts) else "")
