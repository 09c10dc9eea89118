"""Which keys go to which rule: every key claimed once or dropped by name, and every instance of a rule complete."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from converters.bind import BoundRule, BoundSpec, BoundTerm
from converters.errors import Problem
from converters.keys import Binding, CompiledPattern, KeyTrie, matches_drop
from converters.layout import UNUSED, Blocks, walk
from converters.lowering import MAX_KEYS
from converters.match_problems import MatchProblems
from converters.pattern import Choice
from converters.plan import Dropped
from converters.spec import Term
from converters.text import printable

Coordinates = tuple[int, ...]

SHOWN = 8
"""Indices that a message lists."""


@dataclass(slots=True)
class Instance:
    """One instance of a rule: what its placeholders stand for, and the source tensors of each term.

    Attributes:
        found: for each source term and each of its keys, the number of the source at each coordinate of its key axes.
        extents: for each axis that lives in a source key, how many indices it has.
    """

    binding: dict[str, int | str]
    found: dict[tuple[int, int], dict[Coordinates, int]] = field(default_factory=dict)
    extents: dict[str, int] = field(default_factory=dict)

    def sources(self, term: int, replica: int) -> dict[Coordinates, int]:
        """The sources of one key of one term; empty where there are none."""
        return self.found.get((term, replica), {})


@dataclass(frozen=True, slots=True)
class RuleMatch:
    """A rule and its instances, in the order in which their keys were found."""

    rule: BoundRule
    instances: tuple[Instance, ...]


@dataclass(frozen=True, slots=True)
class Matches:
    """All that matching found; with problems, the rest is of no use."""

    rules: tuple[RuleMatch, ...]
    dropped: tuple[Dropped, ...]
    problems: tuple[Problem, ...]


def match_keys(bound: BoundSpec, names: Sequence[str]) -> Matches:
    """Match every key of a checkpoint against every rule at once; no rule sees what another makes."""
    return _Matcher(bound, names).match()


def strip_prefixes(name: str, prefixes: Sequence[str]) -> str:
    """The key without the prefixes that training wrappers added, however often."""
    while True:
        prefix = next((prefix for prefix in prefixes if prefix and name.startswith(prefix)), None)
        if prefix is None or prefix == name:
            return name
        name = name[len(prefix) :]


def takes_part(term: Term) -> bool:
    """Whether the term leaves elements to other rules, so that several rules may claim its key."""
    return any(
        block.label == UNUSED for item in walk(term.layout.dims) if isinstance(item, Blocks) for block in item.blocks
    )


class _Matcher:
    def __init__(self, bound: BoundSpec, names: Sequence[str]) -> None:
        self.bound = bound
        self.names = names
        self.report = MatchProblems(bound)
        self.problems = self.report.problems
        self.entries: list[tuple[BoundRule, int, int]] = []
        self.contested: set[int] = set()
        self.trie = KeyTrie()
        self.instances: dict[int, dict[tuple[object, ...], Instance]] = {rule.number: {} for rule in bound.rules}
        for rule in bound.rules:
            for term_index, term in enumerate(rule.sources):
                for replica, key in enumerate(term.keys):
                    self.trie.add(key, len(self.entries))
                    self.entries.append((rule, term_index, replica))

    def match(self) -> Matches:
        dropped: list[Dropped] = []
        unclaimed: list[str] = []
        seen: dict[str, str] = {}
        prefixes = self.bound.spec.source.strip_prefix
        for source, name in enumerate(self.names):
            key = strip_prefixes(name, prefixes) if prefixes else name
            if prefixes and key in seen:
                self.report.add(
                    f"{printable(seen[key])} and {printable(name)} are the same key once their prefixes are stripped"
                )
            seen[key] = name
            matched = self.trie.match(key)
            claims = [claim for claim in matched if self._outside(*claim) is None]
            reasons = [drop for drop in self.bound.spec.source.drop if matches_drop(drop.pattern, key)]
            if not claims:
                if reasons:
                    dropped.append(Dropped(source, reasons[0].reason))
                elif matched:
                    self._report_outside(key, *matched[0])
                else:
                    unclaimed.append(key)
                continue
            if len(claims) > 1 or reasons:
                rules = [self.entries[number] for number, _ in sorted(claims, key=operator.itemgetter(0))]
                in_parts = all(takes_part(rule.sources[term].term) for rule, term, _ in rules)
                if reasons or not in_parts or len({rule.number for rule, _, _ in rules}) < len(rules):
                    self.report.claimed_twice(key, [(rule, term) for rule, term, _ in rules], reasons)
                    self.contested.update(rule.number for rule, _, _ in rules)
                    continue
            for number, binding in claims:
                self._claim(source, number, binding)
        self.report.unclaimed(
            unclaimed,
            [str(key.pattern) for rule, term, replica in self.entries for key in (rule.sources[term].keys[replica],)],
        )
        matches = []
        for rule in self.bound.rules:
            if not rule.sources:
                instances = list(self._enumerate(rule))
            else:
                instances = list(self.instances[rule.number].values())
                self._check_complete(rule, instances)
            matches.append(RuleMatch(rule, tuple(instances)))
        return Matches(tuple(matches), tuple(dropped), tuple(self.problems))

    def _outside(self, number: int, binding: Binding) -> str | None:
        """A placeholder whose value is outside its range, so that the pattern matches and the rule doesn't."""
        rule = self.entries[number][0]
        for name, start in rule.starts.items():
            value = binding.get(name)
            if isinstance(value, int) and (value < start or (name in rule.ranges and value >= rule.ranges[name][1])):
                return name
        return None

    def _report_outside(self, key: str, number: int, binding: Binding) -> None:
        rule, name = self.entries[number][0], self._outside(number, binding)
        if name is not None:
            what = f"{printable(key)}: {name} is {binding[name]}, outside {_range_text(rule, name)}"
            hint = f"the range is '{rule.shape.kinds[name]}'; is the config that of this checkpoint?"
            self.report.add(what, rule, hint)

    def _claim(self, source: int, number: int, binding: Binding) -> None:
        rule, term_index, replica = self.entries[number]
        term = rule.sources[term_index]
        chosen = {name: binding[name] for name in rule.shape.instances}
        instance = self.instances[rule.number].setdefault(tuple(chosen.values()), Instance(chosen))
        coordinates = tuple(int(binding[axis]) - rule.starts.get(axis, 0) for axis in term.key_axes)
        instance.found.setdefault((term_index, replica), {})[coordinates] = source

    def _enumerate(self, rule: BoundRule) -> Iterator[Instance]:
        """The instances of a rule that makes its targets: every combination of its placeholders' ranges and choices."""
        values: list[Sequence[int | str]] = []
        for name in rule.shape.instances:
            kind = rule.shape.kinds[name]
            if isinstance(kind, Choice):
                values.append(kind.names)
            elif name in rule.ranges:
                values.append(range(*rule.ranges[name]))
            else:
                self.report.add(f"the range of {{{name}}} isn't known without a config", rule)
                return
        if (count := math.prod(map(_length, values))) > MAX_KEYS:
            self.report.add(f"it would make {count} tensors, and no checkpoint holds more than {MAX_KEYS}", rule)
            return
        for combination in itertools.product(*values):
            yield Instance(dict(zip(rule.shape.instances, combination, strict=True)))

    def _check_complete(self, rule: BoundRule, instances: Sequence[Instance]) -> None:
        if not instances:
            # A range without a number in it, as of the dense layers of a model that has none, wants no key.
            wanted = all(start < stop for name, (start, stop) in rule.ranges.items() if name in rule.shape.instances)
            if wanted and rule.number not in self.contested and not rule.rule.optional and rule.targets:
                self.report.matches_nothing(rule, self.names)
            return
        for instance in instances:
            self._check_instance(rule, instance)
        self._check_ranges(rule, instances)

    def _check_ranges(self, rule: BoundRule, instances: Sequence[Instance]) -> None:
        """Every number of a declared range must have an instance: a missing layer is an error."""
        ranged = [name for name in rule.shape.instances if name in rule.ranges]
        if not ranged or rule.rule.optional or not rule.targets:
            return
        there = {tuple(instance.binding[name] for name in ranged) for instance in instances}
        missing, count = _missing([range(*rule.ranges[name]) for name in ranged], there)
        if missing:
            each = (", ".join(f"{name}={value}" for name, value in zip(ranged, at, strict=True)) for at in missing)
            more = f"; ... ({count} in all)" if count > len(missing) else ""
            what = f"no key for {'; '.join(each)}{more}"
            self.report.add(what, rule, f"the range says that it must be there: {rule.rule.text}")

    def _check_instance(self, rule: BoundRule, instance: Instance) -> None:
        at = ", ".join(f"{name}={value}" for name, value in instance.binding.items())
        at = f" for {at}" if at else ""
        present = {
            index: [replica for replica in range(len(term.keys)) if instance.sources(index, replica)]
            for index, term in enumerate(rule.sources)
        }
        for index, term in enumerate(rule.sources):
            for replica in present[index]:
                self._measure(rule, instance, term, instance.sources(index, replica))
        for index, term in enumerate(rule.sources):
            needed = 1 if term.term.sharing == "tie" else len(term.keys)
            if len(present[index]) < needed:
                missing = [key for replica, key in enumerate(term.keys) if replica not in present[index]]
                names = ", ".join(printable(_key_text(key, instance.binding)) for key in missing)
                self.report.add(f"{names} is missing{at}, which the rule needs beside the keys that are there", rule)
            for replica in present[index]:
                self._check_axes(rule, instance, term.key_axes, term.keys[replica], instance.sources(index, replica))

    @staticmethod
    def _measure(rule: BoundRule, instance: Instance, term: BoundTerm, found: Mapping[Coordinates, int]) -> None:
        """How many indices each axis of the keys has: as its range says, or up to the largest that is there."""
        for position, axis in enumerate(term.key_axes):
            if axis in rule.ranges:
                extent = rule.ranges[axis][1] - rule.ranges[axis][0]
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
            starts = tuple(rule.starts.get(axis, 0) for axis in axes)
            there = _indices(sorted(found)[:SHOWN], len(found), starts)
            self.report.add(
                f"'{_key_text(key, instance.binding)}' lacks {', '.join(axes)} = {_indices(missing, count, starts)}; "
                f"there are {there}",
                rule,
                "stacking the others would shift them: is a shard or a file missing?",
            )


def _key_text(key: CompiledPattern, binding: Binding) -> str:
    """The key for a binding, or its pattern where an axis of the key has no single value."""
    if any(name not in binding for name in key.names):
        return str(key.pattern)
    return key.format(binding) or str(key.pattern)


def _range_text(rule: BoundRule, name: str) -> str:
    return f"{rule.starts[name]}..{rule.ranges[name][1] - 1 if name in rule.ranges else ''}"


def _length(values: Sequence[int | str]) -> int:
    """`len`, which refuses a range of 2**63 numbers."""
    return max(0, values.stop - values.start) if isinstance(values, range) else len(values)


def _missing(ranges: Sequence[range], there: Collection[tuple[object, ...]]) -> tuple[list[Coordinates], int]:
    """The first combinations that are not there, and how many there are; never a walk along all of a long range."""
    count = math.prod(map(_length, ranges)) - len(there)
    if count <= 0:
        return [], 0
    return list(itertools.islice((at for at in _product(ranges) if at not in there), SHOWN)), count


def _product(ranges: Sequence[range]) -> Iterator[Coordinates]:
    """`itertools.product`, which would make a list of each range first."""
    if not ranges:
        yield ()
        return
    for value in ranges[0]:
        for rest in _product(ranges[1:]):
            yield (value, *rest)


def _indices(coordinates: Sequence[Coordinates], count: int, starts: Coordinates) -> str:
    """Coordinates as they stand in the keys; `count` is how many there are in all."""
    in_keys = (tuple(map(operator.add, one, starts)) for one in coordinates)
    texts = [str(one[0]) if len(one) == 1 else str(one) for one in in_keys]
    return ", ".join(texts) + (f", ... ({count} in all)" if count > len(texts) else "")
