"""Which keys go to which rule: every key claimed once or dropped by name, and every instance of a rule complete."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from converters.bind import BoundRule, BoundSpec
from converters.completeness import Completeness, Instance, length
from converters.errors import Problem
from converters.keys import Binding, KeyTrie, matches_drop
from converters.layout import UNUSED, Blocks, walk
from converters.lowering import MAX_KEYS
from converters.match_problems import MatchProblems
from converters.parts import SEPARATOR, split_key
from converters.pattern import Choice
from converters.plan import Dropped
from converters.spec import Term
from converters.text import printable


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
    counts: Mapping[str, int]
    """The dims that the keys have told."""


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
        self.completeness = Completeness(self.report)
        self.entries: list[tuple[BoundRule, int, int]] = []
        self.contested: set[int] = set()
        self.decided: dict[object, bool] = {}
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
            key = self._stripped(name, prefixes) if prefixes else name
            if prefixes and key in seen:
                self.report.add(
                    f"{printable(seen[key])} and {printable(name)} are the same key once their prefixes are stripped"
                )
            seen[key] = name
            matched = self.trie.match(key)
            claims = [claim for claim in matched if self._outside(*claim) is None and self._holds(*claim)]
            reasons = [drop for drop in self.bound.spec.source.drop if matches_drop(drop.pattern, key)]
            if not claims:
                if reasons:
                    dropped.append(Dropped(source, reasons[0].reason))
                elif matched:
                    self._report_outside(key, matched)
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
        counts = self._count()
        for rule in (_with_counts(rule, counts) for rule in self.bound.rules):
            if not rule.sources:
                instances = list(self._enumerate(rule))
            else:
                instances = list(self.instances[rule.number].values())
                self._check_complete(rule, instances)
            matches.append(RuleMatch(rule, tuple(instances)))
        return Matches(tuple(matches), tuple(dropped), tuple(self.problems), counts)

    def _stripped(self, name: str, prefixes: Sequence[str]) -> str:
        """The key without the wrappers' prefixes; where keys have labels, they stand behind those."""
        label, inner = split_key(name) if self.bound.spec.source.files else ("", name)
        key = strip_prefixes(inner, prefixes)
        return f"{label}{SEPARATOR}{key}" if label else key

    def _count(self) -> dict[str, int]:
        """The dims that the keys tell: the largest number that any key has for their placeholders, and one more."""
        counts: dict[str, int] = {}
        for rule in (rule for rule in self.bound.rules if rule.counted):
            for instance in self.instances[rule.number].values():
                for name, last in self._last_indices(rule, instance):
                    dim = rule.counted[name]
                    counts[dim] = max(counts.get(dim, 0), last + 1)
        return counts

    @staticmethod
    def _last_indices(rule: BoundRule, instance: Instance) -> Iterator[tuple[str, int]]:
        for name, value in instance.binding.items():
            if name in rule.counted and isinstance(value, int):
                yield name, value
        for (number, replica), found in instance.found.items():
            term = rule.sources[number]
            for position, name in enumerate(term.copy_axes):
                if name in rule.counted:
                    yield name, replica[position + 1] + rule.starts.get(name, 0)
            for position, name in enumerate(term.key_axes):
                if name in rule.counted:
                    yield name, max(at[position] for at in found) + rule.starts.get(name, 0)

    def _outside(self, number: int, binding: Binding) -> str | None:
        """A placeholder whose value is outside its range, so that the pattern matches and the rule doesn't."""
        rule = self.entries[number][0]
        for name, start in rule.starts.items():
            value = binding.get(name)
            if isinstance(value, int) and (value < start or (name in rule.ranges and value >= rule.ranges[name][1])):
                return name
        listed = ((name, binding[name], indices) for name, indices in rule.listed.items() if name in binding)
        return next((name for name, value, indices in listed if value not in indices), None)

    def _holds(self, number: int, binding: Binding) -> bool:
        """Whether the rule is on for these placeholders."""
        rule = self.entries[number][0]
        if rule.condition is None:
            return True
        case = (rule.number, tuple(binding[name] for name in rule.shape.instances))
        if case not in self.decided:
            self.decided[case] = rule.condition.holds({name: binding[name] for name in rule.shape.instances})
        return self.decided[case]

    def _report_outside(self, key: str, matched: Sequence[tuple[int, Binding]]) -> None:
        """Why none of the rules whose patterns a key matches takes it."""
        number, binding = next((each for each in matched if self._outside(*each) is None), matched[0])
        rule, name = self.entries[number][0], self._outside(number, binding)
        if name is None:
            values = ", ".join(f"{name}={printable(str(binding[name]))}" for name in rule.shape.instances)
            others = f", nor any other of the {len(matched)} rules that match it" if len(matched) > 1 else ""
            what = f"{printable(key)}: the rule isn't on for {values}{others}: when {rule.rule.when}"
            self.report.add(what, rule, "write a rule for the others, or drop them by name")
        else:
            what = f"{printable(key)}: {name} is {binding[name]}, outside {_range_text(rule, name)}"
            hint = f"the range is '{rule.shape.kinds[name]}'; is the config that of this checkpoint?"
            self.report.add(what, rule, hint)

    def _claim(self, source: int, number: int, binding: Binding) -> None:
        rule, term_index, replica = self.entries[number]
        term = rule.sources[term_index]
        chosen = {name: binding[name] for name in rule.shape.instances}
        instance = self.instances[rule.number].setdefault(tuple(chosen.values()), Instance(chosen))
        coordinates, copy = (
            tuple(rule.position(axis, int(binding[axis])) for axis in axes) for axes in (term.key_axes, term.copy_axes)
        )
        instance.found.setdefault((term_index, (replica, *copy)), {})[coordinates] = source

    def _enumerate(self, rule: BoundRule) -> Iterator[Instance]:
        """The instances of a rule that makes its targets: every combination of its placeholders' ranges and choices."""
        values: list[Sequence[int | str]] = []
        for name in rule.shape.instances:
            kind = rule.shape.kinds[name]
            if isinstance(kind, Choice):
                values.append(kind.names)
            elif (indices := rule.indices(name)) is not None:
                values.append(indices)
            else:
                self.report.add(f"the range of {{{name}}} isn't known without a config", rule)
                return
        if (count := math.prod(map(length, values))) > MAX_KEYS:
            self.report.add(f"it would make {count} tensors, and no checkpoint holds more than {MAX_KEYS}", rule)
            return
        for combination in itertools.product(*values):
            binding = dict(zip(rule.shape.instances, combination, strict=True))
            if rule.condition is None or rule.condition.holds(binding):
                yield Instance(binding)

    def _check_complete(self, rule: BoundRule, instances: Sequence[Instance]) -> None:
        if instances:
            self.completeness.check(rule, instances)
            return
        # A range without a number in it, as of the dense layers of a model that has none, wants no key.
        if (
            self.completeness.wants_any(rule)
            and rule.number not in self.contested
            and not rule.rule.optional
            and rule.targets
        ):
            self.report.matches_nothing(rule, self.names)


def _with_counts(rule: BoundRule, counts: Mapping[str, int]) -> BoundRule:
    """The rule with the ranges that end at a dim which the keys have told."""
    told = {name: (rule.starts.get(name, 0), counts[dim]) for name, dim in rule.counted.items() if dim in counts}
    return replace(rule, ranges={**rule.ranges, **told}) if told else rule


def _range_text(rule: BoundRule, name: str) -> str:
    if name in rule.listed:
        return ", ".join(map(str, rule.listed[name])) or "an empty list"
    return f"{rule.starts[name]}..{rule.ranges[name][1] - 1 if name in rule.ranges else ''}"
