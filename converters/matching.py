"""Which keys go to which rule: every key claimed once or dropped by name, and every instance of a rule complete."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from converters.bind import BoundRule, BoundSpec
from converters.completeness import Completeness, Instance, has_one_key, length
from converters.errors import Problem
from converters.key_trie import KeyTrie
from converters.keys import Binding, matches_drop
from converters.layout import UNUSED, Blocks, walk
from converters.lowering import MAX_KEYS
from converters.match_problems import MAX_CONTESTED, MatchProblems
from converters.parts import SEPARATOR, split_key
from converters.pattern import Choice
from converters.plan import Dropped
from converters.spec import Drop, Term
from converters.text import printable


class RuleMatch(Struct, frozen=True):
    """A rule and its instances, in the order in which their keys were found."""

    rule: BoundRule
    instances: Sequence[Instance]


class Matches(Struct, frozen=True):
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


class _Entry(Struct, frozen=True):
    """One key of a rule, and what every key of a checkpoint that it matches is asked.

    Attributes:
        rule: the rule.
        term: the number of the term.
        replica: the number of the key within the term.
        is_single: whether each match is an instance of its own.
        names: the placeholders that tell the rule's instances apart.
        place: the term, and the key within it where no copies live in it; see `Instance.found`.
        limits: for each of its placeholders whose range has a known start: its name, the first index, and the last one
            plus one, or infinity.
        positions: for each of its placeholders whose indices a list gives, where each index lies in it.
        key_axes: for each axis of the term's keys, its name and its first index.
        copy_axes: likewise for the copies.
    """

    rule: BoundRule
    term: int
    replica: int
    is_single: bool
    names: tuple[str, ...]
    place: tuple[int, tuple[int, ...]]
    limits: tuple[tuple[str, int, float], ...]
    positions: Mapping[str, Mapping[int, int]]
    key_axes: tuple[tuple[str, int], ...]
    copy_axes: tuple[tuple[str, int], ...]

    def at(self, axes: tuple[tuple[str, int], ...], binding: Binding) -> tuple[int, ...]:
        """Where the key's indices lie along axes."""
        if not axes:
            return ()
        if not self.positions:
            return tuple([int(binding[axis]) - start for axis, start in axes])
        positions = self.positions
        indices = ((axis, int(binding[axis]), start) for axis, start in axes)
        return tuple(positions[axis][index] if axis in positions else index - start for axis, index, start in indices)


def _entry(rule: BoundRule, term: int, replica: int) -> _Entry:
    bound = rule.sources[term]
    names = bound.keys[replica].names
    return _Entry(
        rule,
        term,
        replica,
        has_one_key(rule) and names == (*rule.shape.instances,),
        tuple(rule.shape.instances),
        (term, (replica,)),
        tuple(
            (name, start, rule.ranges[name][1] if name in rule.ranges else math.inf)
            for name, start in rule.starts.items()
            if name in names
        ),
        {
            name: {index: position for position, index in enumerate(indices)}
            for name, indices in rule.listed.items()
            if name in names
        },
        *(tuple((axis, rule.starts.get(axis, 0)) for axis in axes) for axes in (bound.key_axes, bound.copy_axes)),
    )


class _Matcher:
    def __init__(self, bound: BoundSpec, names: Sequence[str]) -> None:
        self.bound = bound
        self.names = names
        self.report = MatchProblems(bound)
        self.problems = self.report.problems
        self.completeness = Completeness(self.report)
        self.entries: list[_Entry] = []
        self.contested: set[int] = set()
        self.contested_keys = 0
        self.decided: dict[object, bool] = {}
        self.trie = KeyTrie()
        self.instances: dict[int, dict[tuple[object, ...], Instance]] = {rule.number: {} for rule in bound.rules}
        self.singles: dict[int, list[Instance]] = {rule.number: [] for rule in bound.rules}
        for rule in bound.rules:
            for term_index, term in enumerate(rule.sources):
                for replica, key in enumerate(term.keys):
                    self.trie.add(key, len(self.entries))
                    self.entries.append(_entry(rule, term_index, replica))

    def match(self) -> Matches:
        dropped: list[Dropped] = []
        unclaimed: list[str] = []
        drops = self.bound.spec.source.drop
        for source, key in enumerate(self._keys()):
            matched = self.trie.match(key)
            if len(matched) == 1 and not drops and self._takes(*matched[0]):
                self._claim(source, *matched[0])  # as of most keys, so it is worth a look
                continue
            claims = [claim for claim in matched if self._takes(*claim)]
            reasons = [drop for drop in drops if matches_drop(drop.pattern, key)] if drops else []
            if not claims:
                if reasons:
                    dropped.append(Dropped(source, reasons[0].reason))
                elif matched:
                    self._report_outside(key, matched)
                else:
                    unclaimed.append(key)
            elif (len(claims) == 1 and not reasons) or self._is_shared(key, claims, reasons):
                for number, binding in claims:
                    self._claim(source, number, binding)
            elif self.contested_keys == MAX_CONTESTED:
                self.report.add(f"several rules claim {MAX_CONTESTED} keys; those after them were not looked at")
                return Matches((), (), tuple(self.problems), {})
        self._report_unclaimed(unclaimed)
        matches = []
        counts = self._count()
        for rule in (_with_counts(rule, counts) for rule in self.bound.rules):
            if not rule.sources:
                instances = list(self._enumerate(rule))
            else:
                instances = self._instances(rule)
                self._check_complete(rule, instances)
            matches.append(RuleMatch(rule, instances))
        return Matches(tuple(matches), tuple(dropped), tuple(self.problems), counts)

    def _keys(self) -> Iterator[str]:
        """The key of each tensor: its name, without the prefixes that training wrappers added."""
        prefixes = self.bound.spec.source.strip_prefix
        if not prefixes:
            yield from self.names
            return
        seen: dict[str, str] = {}
        for name in self.names:
            key = self._stripped(name, prefixes)
            if key in seen:
                both = f"{printable(seen[key])} and {printable(name)}"
                self.report.add(f"{both} are the same key once their prefixes are stripped")
            seen[key] = name
            yield key

    def _stripped(self, name: str, prefixes: Sequence[str]) -> str:
        """The key without the wrappers' prefixes; where keys have labels, they stand behind those."""
        label, inner = split_key(name) if self.bound.spec.source.files else ("", name)
        key = strip_prefixes(inner, prefixes)
        return f"{label}{SEPARATOR}{key}" if label else key

    def _count(self) -> dict[str, int]:
        """The dims that the keys tell: the largest number that any key has for their placeholders, and one more."""
        counts: dict[str, int] = {}
        for rule in (rule for rule in self.bound.rules if rule.counted):
            for instance in self._instances(rule):
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

    def _takes(self, number: int, binding: Binding) -> bool:
        """Whether the rule takes a key that its pattern matches."""
        entry = self.entries[number]
        return _outside(entry, binding) is None and (entry.rule.condition is None or self._holds(entry.rule, binding))

    def _holds(self, rule: BoundRule, binding: Binding) -> bool:
        """Whether the rule is on for these placeholders."""
        if rule.condition is None:
            return True
        case = (rule.number, tuple(binding[name] for name in rule.shape.instances))
        if case not in self.decided:
            self.decided[case] = rule.condition.holds({name: binding[name] for name in rule.shape.instances})
        return self.decided[case]

    def _is_shared(self, key: str, claims: Sequence[tuple[int, Binding]], drops: Sequence[Drop]) -> bool:
        """Whether several rules may claim a key, since each takes a part of its tensor; if not, that is reported."""
        entries = [self.entries[number] for number, _ in sorted(claims, key=operator.itemgetter(0))]
        in_parts = all(takes_part(entry.rule.sources[entry.term].term) for entry in entries)
        if in_parts and not drops and len({entry.rule.number for entry in entries}) == len(entries):
            return True
        self.report.claimed_twice(key, [entry.rule for entry in entries], drops)
        self.contested.update(entry.rule.number for entry in entries)
        self.contested_keys += 1
        return False

    def _report_unclaimed(self, keys: Sequence[str]) -> None:
        patterns = (each.rule.sources[each.term].keys[each.replica].pattern for each in self.entries)
        self.report.unclaimed(keys, [*map(str, patterns)] if keys else ())

    def _report_outside(self, key: str, matched: Sequence[tuple[int, Binding]]) -> None:
        """Why none of the rules whose patterns a key matches takes it."""
        claims = [(self.entries[number], binding) for number, binding in matched]
        entry, binding = next((each for each in claims if _outside(*each) is None), claims[0])
        rule, name = entry.rule, _outside(entry, binding)
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
        entry = self.entries[number]
        rule = entry.rule
        if entry.is_single:
            self.singles[rule.number].append(Instance(binding, source))
            return
        at = tuple([binding[name] for name in entry.names])
        instances = self.instances[rule.number]
        instance = instances.get(at)
        if instance is None:
            instance = instances[at] = Instance(dict(zip(entry.names, at, strict=True)))
        place = entry.place
        if entry.copy_axes:
            place = (entry.term, (entry.replica, *entry.at(entry.copy_axes, binding)))
        found = instance.found.get(place)
        if found is None:
            found = instance.found[place] = {}
        found[entry.at(entry.key_axes, binding)] = source

    def _instances(self, rule: BoundRule) -> list[Instance]:
        return self.singles[rule.number] or [*self.instances[rule.number].values()]

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


def _outside(entry: _Entry, binding: Binding) -> str | None:
    """A placeholder whose value is outside its range, so that the pattern matches and the rule doesn't."""
    for name, start, stop in entry.limits:
        value = binding[name]
        if isinstance(value, int) and not start <= value < stop:
            return name
    for name, indices in entry.positions.items():
        if binding[name] not in indices:
            return name
    return None


def _with_counts(rule: BoundRule, counts: Mapping[str, int]) -> BoundRule:
    """The rule with the ranges that end at a dim which the keys have told."""
    told = {name: (rule.starts.get(name, 0), counts[dim]) for name, dim in rule.counted.items() if dim in counts}
    return replace(rule, ranges={**rule.ranges, **told}) if told else rule


def _range_text(rule: BoundRule, name: str) -> str:
    if name in rule.listed:
        return ", ".join(map(str, rule.listed[name])) or "an empty list"
    return f"{rule.starts[name]}..{rule.ranges[name][1] - 1 if name in rule.ranges else ''}"
