"""Which rules of a spec for weights the tensors of an adapter need."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, field

from converters.adapters.keys import Factor, Suffix, split_key, unwrapped, weight_of
from converters.bind import BoundRule, BoundSpec
from converters.errors import Problem
from converters.key_trie import KeyTrie
from converters.keys import matches_drop
from converters.matching import strip_prefixes
from converters.tensor_info import TensorInfo
from converters.text import printable

Place = tuple[int, int]
"""The number of a source term, and that of one of its keys."""

_LISTED = 3


class Claims(Struct):
    """The tensors of an adapter that one rule claims.

    Attributes:
        updates: for each end of a key, where in the rule it is found, for each of the rule's instances.
        names: the keys of updates, as they stand in the file.
        ndims: how many dimensions the adapted weights have.
        plain: whether there are parameters that are stored whole: of modules without an update, and of those with one.
    """

    updates: dict[Suffix, dict[tuple[object, ...], set[Place]]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    ndims: set[int] = field(default_factory=set)
    plain: set[bool] = field(default_factory=set)


class Claimer:
    """Finds the claims of every rule.

    Attributes:
        of_rule: the claims, by the rule's number.
        problems: modules whose weights no rule claims.
    """

    def __init__(self, bound: BoundSpec, prefixes: Sequence[str]) -> None:
        self.bound = bound
        self.prefixes = prefixes
        self.of_rule: dict[int, Claims] = {rule.number: Claims() for rule in bound.rules}
        self.unclaimed: dict[str, None] = {}
        self.entries: list[tuple[BoundRule, Place]] = []
        self.trie = KeyTrie()
        for rule in bound.rules:
            for index, term in enumerate(rule.sources):
                for replica, key in enumerate(term.keys):
                    self.trie.add(key, len(self.entries))
                    self.entries.append((rule, (index, replica)))

    def add(self, info: TensorInfo) -> None:
        """Note which rules a tensor of the adapter needs."""
        key = strip_prefixes(info.name, self.prefixes)
        update = split_key(key)
        if update is None:
            parameter, is_wrapped = unwrapped(key)
            for number, _ in self.trie.match(parameter):
                self.of_rule[self.entries[number][0].number].plain.add(is_wrapped)
            return
        module, suffix = update
        matched = self.trie.match(weight_of(module))
        if not matched and not any(matches_drop(drop.pattern, key) for drop in self.bound.spec.source.drop):
            self.unclaimed[module] = None
        for number, binding in matched:
            rule, place = self.entries[number]
            claims = self.of_rule[rule.number]
            instance = tuple(binding[name] for name in rule.shape.instances)
            claims.updates.setdefault(suffix, {}).setdefault(instance, set()).add(place)
            claims.names.append(info.name)
            if suffix.factor is Factor.A:
                claims.ndims.add(len(info.shape))

    @property
    def problems(self) -> list[Problem]:
        """See the class."""
        if not self.unclaimed:
            return []
        count = len(self.unclaimed)
        modules = f"a module that has an update: {listed([*self.unclaimed])}"
        if count > 1:
            modules = f"{count} modules that have an update: {listed([*self.unclaimed])}"
        hint = (
            "a spec has the names that a checkpoint has; PEFT writes those that the modules have in memory, which are "
            "others in some versions of transformers"
        )
        return [Problem(f"no rule claims the weight of {modules}", self.bound.spec.path or None, hint)]


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(map(printable, names[:_LISTED]))
    return f"{shown} and {len(names) - _LISTED} more" if len(names) > _LISTED else shown
