"""A spec for checkpoints of several files, as one for a whole model in one: an adapter is a single file."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from converters.layout import Axis, Block, Blocks, Group, Item, Layout, Number
from converters.parts import SEPARATOR
from converters.pattern import Hole, KeyPattern
from converters.spec import Rule, Spec, Term


def without_labels(spec: Spec) -> Spec:
    """The spec without the labels of files in its keys; an axis that numbers the files has one index then."""
    if not spec.source.files and not spec.target.files:
        return spec
    numbers = frozenset(part.label for side in (spec.source, spec.target) for part in side.files if part.numbered)
    source, target = (replace(side, files=(), file="") for side in (spec.source, spec.target))
    rules = tuple(
        _map_terms(
            rule,
            lambda term: _term(term, numbers, has_label=bool(spec.source.files)),
            lambda term: _term(term, numbers, has_label=bool(spec.target.files)),
        )
        for rule in spec.rules
    )
    return replace(spec, source=source, target=target, rules=rules)


def _map_terms(rule: Rule, of_source: Callable[[Term], Term], of_target: Callable[[Term], Term]) -> Rule:
    sources, targets = tuple(map(of_source, rule.sources)), tuple(map(of_target, rule.targets))
    return replace(rule, sources=sources, targets=targets)


def _term(term: Term, numbers: frozenset[str], *, has_label: bool) -> Term:
    keys = tuple(dict.fromkeys(map(_key, term.keys))) if has_label else term.keys
    layout = Layout(tuple(_item(item, numbers) for item in term.layout.dims))
    return replace(term, keys=keys, layout=layout)


def _key(key: KeyPattern) -> KeyPattern:
    """The key without `unet:` or `{t}:` before it."""
    (head, *rest), *others = key.segments
    text = rest.pop(0) if isinstance(head, Hole) and rest else head
    if not isinstance(text, str) or SEPARATOR not in text:
        return key
    after = text.partition(SEPARATOR)[2]
    return KeyPattern(((*([after] if after else []), *rest), *others))


def _item(item: Item, numbers: frozenset[str]) -> Item:
    """The item with a size of one for each axis that numbers files."""
    match item:
        case Axis(name) if name in numbers:
            return Number(1)
        case Group(items):
            return Group(tuple(_item(inner, numbers) for inner in items))
        case Blocks(blocks):
            inside = (Block(block.label, tuple(_item(inner, numbers) for inner in block.items)) for block in blocks)
            return Blocks(tuple(inside))
        case _:
            return item
