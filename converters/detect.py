"""Which layout a checkpoint has, and which specs carry it where: cheap evidence first, then the planner's own proof."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from converters.config_map import config_value
from converters.errors import Problem, SpecError
from converters.key_trie import KeyTrie
from converters.keys import CompiledPattern, is_index, matches_drop
from converters.matching import strip_prefixes
from converters.spec import Side, Spec
from converters.spec_check import rule_shape
from converters.tensor_info import TensorInfo

MIN_SHARE = 0.5
"""Share of the keys that a spec must claim for its plan to be worth a try."""


class Seen(Struct, frozen=True):
    """A checkpoint as a side of a spec reads it.

    Attributes:
        tensors: every tensor, those together whose keys differ in their indices alone; see `alike`.
        config: its config; None where there is none.
        named: whether its files are called as the side says, where it says so.
        trouble: why it can't be read as that side; nothing else is known then.
    """

    tensors: Sequence[Sequence[TensorInfo]] = ()
    config: Mapping[str, Any] | None = None
    named: bool = False
    trouble: tuple[Problem, ...] = ()


def alike(tensors: Iterable[TensorInfo]) -> tuple[tuple[TensorInfo, ...], ...]:
    """Tensors in groups whose keys differ in their indices alone, so that a hundred layers take no longer than one."""
    groups: dict[str, list[TensorInfo]] = {}
    for info in tensors:
        shape = ".".join("#" if is_index(segment) else segment for segment in info.name.split("."))
        groups.setdefault(shape, []).append(info)
    return tuple(map(tuple, groups.values()))


Look = Callable[[Side], Seen]
Prove = Callable[[Spec], tuple[Problem, ...]]
"""Plans a conversion from headers: what keeps a spec from fitting, which is nothing where it is proved to fit."""


class Condition(Struct, frozen=True):
    """A value that a layout's config must have; `met` is None where there is no config to say."""

    key: str
    expected: object
    found: object
    met: bool | None

    def __str__(self) -> str:
        expected = json.dumps(self.expected)
        if self.met is None:
            return f"{self.key} should be {expected}, and there is no config"
        return f"{self.key} is {expected}" if self.met else f"{self.key} is {json.dumps(self.found)}, not {expected}"


class Candidate(Struct, frozen=True):
    """A spec in one direction, and what speaks for it.

    Attributes:
        spec: in the direction that starts at the checkpoint.
        conditions: what its source's config must say.
        named: whether the checkpoint's files are called as the source says.
        keys: how many the checkpoint has.
        unclaimed: those of them that no rule claims and none drops.
        proved: whether the planner has proved that spec and checkpoint fit.
        problems: what the planner found otherwise; empty, too, where it wasn't worth a try.
    """

    spec: Spec
    conditions: tuple[Condition, ...]
    named: bool
    keys: int
    unclaimed: tuple[TensorInfo, ...]
    proved: bool
    problems: tuple[Problem, ...]

    @property
    def share(self) -> float:
        """Of the keys, those that are claimed."""
        return 1 - len(self.unclaimed) / self.keys if self.keys else 0.0

    @property
    def rank(self) -> tuple[bool, float, bool, int]:
        """The larger, the better it fits: proved, keys claimed, nothing against it, names and conditions for it."""
        met = sum(condition.met is True for condition in self.conditions)
        return self.proved, self.share, not self.contradicted, met + self.named

    @property
    def contradicted(self) -> bool:
        """Whether the config says that the checkpoint has another layout."""
        return any(condition.met is False for condition in self.conditions)


def detect(look: Look, prove: Prove, specs: Iterable[Spec]) -> tuple[Candidate, ...]:
    """Hold a checkpoint against the sources of all specs, in both directions.

    Args:
        look: gives the checkpoint as a side of a spec reads it.
        prove: asked about those specs that keys and config speak for.
        specs: each in one direction; those that go both ways are turned around.

    Returns:
        A candidate for each direction of each spec, those that fit best first.
    """
    directed = [way for spec in specs for way in both_ways(spec)]
    found = (_candidate(look(spec.source), prove, spec) for spec in directed)
    candidates = [candidate for candidate in found if candidate is not None]
    return tuple(sorted(candidates, key=lambda candidate: candidate.rank, reverse=True))


def both_ways(spec: Spec) -> tuple[Spec, ...]:
    """The spec and its inverse, where it has one."""
    try:
        return spec, spec.inverse()
    except SpecError:
        return (spec,)


def _candidate(seen: Seen, prove: Prove, spec: Spec) -> Candidate | None:
    """What speaks for a spec; None where the checkpoint has no files of that side at all."""
    if seen.trouble:
        return None
    conditions = tuple(_conditions(seen.config, spec.source))
    keys = sum(map(len, seen.tensors))
    candidate = Candidate(spec, conditions, seen.named, keys, _unclaimed(spec, seen.tensors), proved=False, problems=())
    if candidate.contradicted or candidate.share < MIN_SHARE:
        return candidate
    problems = prove(spec)
    return replace(candidate, proved=not problems, problems=problems)


def _conditions(config: Mapping[str, Any] | None, side: Side) -> Iterable[Condition]:
    for key, expected in side.config.items():
        found = None if config is None else config_value(config, key)
        yield Condition(key, expected, found, None if config is None else found == expected)


def _unclaimed(spec: Spec, groups: Iterable[Sequence[TensorInfo]]) -> tuple[TensorInfo, ...]:
    """The tensors whose keys no pattern of the source matches, whatever the conditions and ranges of the rules."""
    trie = _trie(spec)

    def claimed(info: TensorInfo) -> bool:
        key = strip_prefixes(info.name, spec.source.strip_prefix)
        return bool(trie.match(key)) or any(matches_drop(drop.pattern, key) for drop in spec.source.drop)

    # The first and the last, since index arithmetic may take one and not the other; the proof looks at each.
    missing = (group for group in groups if not claimed(group[0]) and not claimed(group[-1]))
    return tuple(info for group in missing for info in group)


def _trie(spec: Spec) -> KeyTrie:
    """All source patterns of a spec; one whose arithmetic needs a dim is left to the proof, and claims nothing here."""
    trie = KeyTrie()
    dims = frozenset(dim.name for dim in spec.dims)
    for number, rule in enumerate(spec.rules):
        shape = rule_shape(rule, spec.placeholders, dims)
        for key in (key for term in rule.sources for key in term.keys):
            try:
                trie.add(CompiledPattern(key, shape.kinds, {}, rule.location), number)
            except SpecError:
                continue
    return trie
