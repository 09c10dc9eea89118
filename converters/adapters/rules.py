"""From a spec for weights to the spec for an adapter of them: for each rule, one for each part of the update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

from converters.adapters import ADAPTER_CONFIG
from converters.adapters.claims import Claimer, Claims, listed
from converters.adapters.factors import MATRIX, Half, Halves, Items, halve, ones
from converters.adapters.keys import (
    PREFIX,
    Factor,
    Suffix,
    any_of,
    as_weight,
    loosened,
    module_of,
    with_prefix,
    with_suffix,
    wrapped,
)
from converters.bind import BoundRule, BoundSpec
from converters.errors import CoverageError, Problem
from converters.layout import WHOLE, Axis, Layout
from converters.pattern import Hole, KeyPattern, Path
from converters.spec import Rule, Spec, Term
from converters.spec_check import rule_shape
from converters.tensor_info import TensorInfo

MERGE_FIRST = (
    "merge the adapter into its base model first (merge_and_unload of peft), and convert the merged model; "
    "or train it without these modules"
)


class AdapterSpec(Struct, frozen=True):
    """The spec for an adapter.

    Attributes:
        spec: made of the rules that the adapter's keys need.
        transposed: for each rule on an update of a matrix, whether the target's weights are [in, out].
    """

    spec: Spec
    transposed: frozenset[bool]


def adapter_spec(bound: BoundSpec, infos: Sequence[TensorInfo], *, fan_in_fan_out: bool) -> AdapterSpec:
    """The spec that does to the tensors of an adapter what a spec does to the weights that they belong to.

    Args:
        bound: the spec for weights, joined to the config of the adapter's base model.
        infos: the adapter's tensors.
        fan_in_fan_out: whether the weights of the source's linear layers are [in-features, out-features].

    Raises:
        CoverageError: rules that the adapter needs, and that don't commute with the product of its factors.
    """
    return _Maker(bound, fan_in_fan_out=fan_in_fan_out).make(infos)


class _Maker:
    def __init__(self, bound: BoundSpec, *, fan_in_fan_out: bool) -> None:
        self.spec = bound.spec
        self.fan_in_fan_out = fan_in_fan_out
        self.dim_names = frozenset(dim.name for dim in bound.spec.dims)
        self.prefixes = (PREFIX, *bound.spec.source.strip_prefix)
        self.claimer = Claimer(bound, self.prefixes)
        self.rules = bound.rules
        self.transposed: set[bool] = set()
        self.problems: list[Problem] = []

    def make(self, infos: Sequence[TensorInfo]) -> AdapterSpec:
        for info in infos:
            self.claimer.add(info)
        self.problems.extend(self.claimer.problems)
        rules: list[Rule] = []
        for rule in self.rules:
            claims = self.claimer.of_rule[rule.number]
            if _renames_paths(rule):  # whatever stands at the end of a key
                rules.extend([_plain(rule.rule, is_wrapped=False)] if claims.plain or claims.updates else [])
                continue
            rules.extend(_plain(rule.rule, is_wrapped=is_wrapped) for is_wrapped in sorted(claims.plain))
            if claims.updates:
                rules.extend(self._updates(rule.rule, claims))
        if self.problems:
            raise CoverageError(self.problems)
        source = replace(self.spec.source, strip_prefix=self.prefixes, config_file=ADAPTER_CONFIG)
        target = replace(self.spec.target, strip_prefix=(), config_file=ADAPTER_CONFIG)
        placeholders = tuple((name, any_of(kind)) for name, kind in self.spec.placeholders)
        rules = [_map_keys(rule, loosened) for rule in rules]
        spec = replace(self.spec, source=source, target=target, rules=tuple(rules), placeholders=placeholders)
        return AdapterSpec(spec, frozenset(self.transposed))

    def _refuse(self, rule: Rule, claims: Claims, reason: str) -> None:
        names = listed(claims.names)
        what = f"{rule.path}: this rule can't be applied to the factors of an update: {reason} ({names})"
        self.problems.append(Problem(what, rule.location, MERGE_FIRST))

    def _updates(self, rule: Rule, claims: Claims) -> list[Rule]:
        """The rules for the updates of the weights that a rule carries; none where it is refused."""
        if rule.operations:
            self._refuse(rule, claims, f"it computes with values ({rule.kind})")
            return []
        if rule.filled or rule.dropped:
            labels = ", ".join(label for label, _ in (*rule.filled, *rule.dropped))
            self._refuse(rule, claims, f"it fills or drops blocks of a tensor ({labels})")
            return []
        first, replica = min(min(places) for instances in claims.updates.values() for places in instances.values())
        matched, shape = rule.sources[first].keys[replica], rule_shape(rule, self.spec.placeholders, self.dim_names)
        weights = _map_keys(rule, lambda key: as_weight(key, matched, shape.kinds))
        for key in (key for term in (*weights.sources, *weights.targets) for key in term.keys):
            if module_of(key) is None:
                reason = f"'{key}' isn't the weight of a module of its own, and PEFT adapts only those"
                self._refuse(rule, claims, reason)
                return []
        if missing := _missing(weights, claims):
            self._refuse(rule, claims, f"it joins several tensors into one, and {missing}")
            return []
        try:
            pairs = list(_unshared(weights, claims))
        except _SharingError as error:
            self._refuse(rule, claims, str(error))
            return []
        return [made for pair, suffixes in pairs for made in self._pair(pair, suffixes, claims)]

    def _pair(self, rule: Rule, suffixes: Sequence[Suffix], claims: Claims) -> list[Rule]:
        """The rules for the parts of an update; every term of `rule` has one key."""
        made: list[Rule] = []
        kinds = sorted({suffix.embedding for suffix in suffixes if suffix.factor is Factor.A}) or [False]
        for is_embedding in kinds:
            # A magnitude doesn't say itself whether it is an embedding's.
            own = [suffix for suffix in suffixes if suffix.factor is Factor.MAGNITUDE and is_embedding == kinds[0]]
            own += [
                suffix
                for suffix in suffixes
                if suffix.factor is not Factor.MAGNITUDE and suffix.embedding == is_embedding
            ]
            ndim = min(claims.ndims, default=MATRIX)
            transposed = is_embedding or (self.fan_in_fan_out and ndim == MATRIX)
            halves = halve(rule, rule_shape(rule, self.spec.placeholders, self.dim_names), ndim, transposed=transposed)
            if isinstance(halves, str):
                self._refuse(rule, claims, halves)
                continue
            if is_embedding and not halves.transposed:
                self._refuse(rule, claims, "it turns an embedding's weight around")
                continue
            if halves.outs.shared and any(suffix.factor in {Factor.BIAS, Factor.MAGNITUDE} for suffix in own):
                self._refuse(rule, claims, "it divides the in-features, and DoRA's magnitude, or a bias, is for all")
                continue
            if halves.target_ndim == MATRIX and not is_embedding:
                self.transposed.add(halves.transposed)
            made.extend(self._part(rule, halves, suffix) for suffix in own)
        return made

    def _part(self, rule: Rule, halves: Halves, suffix: Suffix) -> Rule:
        """The rule for one part of an update."""
        names = self.dim_names.union(*(term.layout.axis_names() for term in rule.sources))
        rank = "rank"
        while rank in names:
            rank += "_"
        half = halves.ins if suffix.factor is Factor.A else halves.outs
        return replace(
            rule,
            sources=_terms(rule.sources, half.sources, half, suffix, rank, halves.source_ndim),
            targets=_prefixed(_terms(rule.targets, half.targets, half, suffix, rank, halves.target_ndim)),
            when=None,
            optional=True,
        )


def _renames_paths(rule: BoundRule) -> bool:
    """Whether the rule renames keys that end in a dotted rest, and so the parts of updates as it does weights."""
    terms = (*rule.rule.sources, *rule.rule.targets)
    ends = [key.segments[-1] for term in terms for key in term.keys]
    dotted = all(
        isinstance(part, Hole) and isinstance(rule.shape.kinds.get(str(part.expression)), Path)
        for end in ends
        for part in end
    )
    return dotted and rule.rule.kind == "rename"


def _missing(rule: Rule, claims: Claims) -> str | None:
    """What an instance lacks of a rule that joins several tensors."""
    for suffix, instances in claims.updates.items():
        for places in instances.values():
            there = {index for index, _ in places}
            lacking = [str(term.keys[0]) for index, term in enumerate(rule.sources) if index not in there]
            if lacking:
                return f"{', '.join(lacking)} has no {suffix.text}"
    return None


class _SharingError(Exception):
    """Nothing says which of several keys an update belongs to."""


def _unshared(rule: Rule, claims: Claims) -> Iterator[tuple[Rule, list[Suffix]]]:
    """The rule once for each key of terms whose keys share a tensor: an update belongs to one module alone."""
    counts = [len(term.keys) for term in (*rule.sources, *rule.targets)]
    if max(counts) == 1:
        yield rule, list(claims.updates)
        return
    if len(counts) > 2 or counts[0] != counts[1]:  # noqa: PLR2004 - one source and one target
        raise _SharingError(
            "its keys share a tensor, "
            f"{sum(counts[: len(rule.sources)])} on one side and {sum(counts[len(rule.sources) :])} on the other: "
            "which of them has the update can't be told"
        )
    for replica in range(counts[0]):
        suffixes = [
            suffix
            for suffix, instances in claims.updates.items()
            if any(place == (0, replica) for places in instances.values() for place in places)
        ]
        if suffixes:
            one = (replace(term, keys=(term.keys[replica],), sharing="one") for term in (*rule.sources, *rule.targets))
            source, target = one
            yield replace(rule, sources=(source,), targets=(target,)), suffixes


def _terms(
    terms: Sequence[Term], dims: Sequence[Items], half: Half, suffix: Suffix, rank: str, count: int
) -> tuple[Term, ...]:
    """The terms of one part of an update; one with several keys, where all hold the same."""
    keys = [with_suffix(module, suffix) for term in terms if (module := module_of(term.keys[0])) is not None]
    whole = all(term.layout == WHOLE for term in terms)
    layouts = [WHOLE if whole else _layout(items, suffix.factor, rank, count) for items in dims]
    if half.shared:
        return (Term(tuple(keys), None, layouts[0], "copy" if len(keys) > 1 else "one"),)
    return tuple(
        replace(term, keys=(key,), layout=layout, sharing="one")
        for term, key, layout in zip(terms, keys, layouts, strict=True)
    )


def _layout(items: Items, factor: Factor, rank: str, count: int) -> Layout:
    """The layout of one part of an update; `count` dimensions has the weight, and so has each factor."""
    if factor is Factor.A:
        return Layout((Axis(rank), *items))
    if factor is Factor.B:
        return Layout((*items, Axis(rank), *ones(count - len(items) - 1)))
    if factor is Factor.MAGNITUDE and count > MATRIX:
        return Layout((*ones(1), *items, *ones(count - MATRIX)))
    return Layout(items)


def _plain(rule: Rule, *, is_wrapped: bool) -> Rule:
    """The rule for parameters that the adapter stores whole, with PEFT's names."""
    own = _map_keys(rule, wrapped) if is_wrapped else rule
    return replace(own, targets=_prefixed(own.targets), when=None, optional=True)


def _prefixed(terms: Sequence[Term]) -> tuple[Term, ...]:
    return tuple(replace(term, keys=tuple(map(with_prefix, term.keys))) for term in terms)


def _map_keys(rule: Rule, change: Callable[[KeyPattern], KeyPattern]) -> Rule:
    sources, targets = (
        tuple(replace(term, keys=tuple(map(change, term.keys))) for term in terms)
        for terms in (rule.sources, rule.targets)
    )
    return replace(rule, sources=sources, targets=targets)
