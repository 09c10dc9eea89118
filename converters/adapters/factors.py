"""What a rule on a weight does to the two factors of a low-rank update, where it acts on each of them alone.

The weight is `W[out, in]` and its update `B[out, rank] @ A[rank, in]`. A rule commutes with that product if it
rearranges out-features among out-features and in-features among in-features: then it is one rule on B and one on A.
Where it splits a tensor along the out-features, B is split and every part has the same A; where it joins several, they
must have the same A. Both are told from the axes of the layouts, by the algebra that lowers any rule.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from msgspec import Struct

from converters.layout import Item, Layout, Number, Rest, walk
from converters.lowering import check_structure
from converters.matching import takes_part
from converters.operands import Operand
from converters.spec import Rule, Term
from converters.spec_check import RuleShape

Items = tuple[Item, ...]

MATRIX = 2
"""Dimensions of a linear layer's weight; those of convolutions have more."""


class Half(Struct, frozen=True):
    """One half of a rule: what it does to the out-features, or to the in-features.

    Attributes:
        sources: the dimensions of each source term.
        targets: likewise of each target term.
        shared: whether all sources hold the same, and all targets get it; else each term has a share of its own.
    """

    sources: tuple[Items, ...]
    targets: tuple[Items, ...]
    shared: bool


class Halves(Struct, frozen=True):
    """A rule that acts on the out-features and on the in-features apart.

    Attributes:
        transposed: whether the target's weight is [in, out].
        source_ndim: how many dimensions the source's weights have.
        target_ndim: likewise the target's.
    """

    outs: Half
    ins: Half
    transposed: bool
    source_ndim: int
    target_ndim: int


def halve(rule: Rule, shape: RuleShape, ndim: int, *, transposed: bool) -> Halves | str:
    """Take a rule on weights apart.

    Args:
        rule: the rule.
        shape: its placeholders.
        ndim: how many dimensions the source's weights have.
        transposed: whether the source's weights are [in, out].

    Returns:
        The two halves, or the reason why there are none.
    """
    terms = (*rule.sources, *rule.targets)
    axes = sorted({axis for term in terms for axis in (*shape.key_axes(term), *shape.copy_axes(term))})
    if axes:
        return f"it stacks modules, or takes them apart, along {', '.join(axes)}"
    if any(takes_part(term) for term in terms):
        return "it takes only a part of a tensor"
    rest = ndim - _named(rule.sources[0].layout)
    sources = [_cut(term.layout, rest, transposed=transposed) for term in rule.sources]
    if any(_numbers_of(outs) & _numbers_of(ins) for outs, ins in sources):
        return "its layout has a number both among the out-features and among the in-features"
    target_ndim = _named(rule.targets[0].layout) + (rest if rule.targets[0].layout.has_rest else 0)
    # The same way round first: it is the only one where `...` stands for both dimensions.
    for turned in (transposed, not transposed) if target_ndim == MATRIX else (transposed,):
        targets = [_cut(term.layout, rest, transposed=turned) for term in rule.targets]
        outs = _half(rule, [cut[0] for cut in sources], [cut[0] for cut in targets])
        ins = _half(rule, [cut[1] for cut in sources], [cut[1] for cut in targets])
        if outs is not None and ins is not None:
            return Halves(outs, ins, turned, ndim, target_ndim)
    return "it mixes out-features with in-features, or divides both"


def _named(layout: Layout) -> int:
    return len(layout.dims) - layout.has_rest


def _cut(layout: Layout, rest: int, *, transposed: bool) -> tuple[Items, Items]:
    """The dimensions of the out-features, and those of the in-features; `...` stands for `rest` of them."""
    dims: list[Item] = []
    for item in layout.dims:
        dims.extend([item] * (rest if isinstance(item, Rest) else 1))
    first, others = _once(dims[:1]), _once(dims[1:])
    return (others, first) if transposed else (first, others)


def _once(dims: Sequence[Item]) -> Items:
    """The dimensions, with one `...` for all that it stands for here."""
    return tuple(item for index, item in enumerate(dims) if not isinstance(item, Rest) or item not in dims[:index])


def _numbers_of(items: Items) -> frozenset[int]:
    """The numbers in a layout that have a counterpart on the other side: all but one."""
    return frozenset(item.value for item in walk(items) if isinstance(item, Number)) - {1}


def _half(rule: Rule, sources: Sequence[Items], targets: Sequence[Items]) -> Half | None:
    """What the rule does to these dimensions alone; None where that isn't a rule."""
    if not check_structure(_operands(rule.sources, sources), _operands(rule.targets, targets)):
        return Half(tuple(sources), tuple(targets), shared=False)
    alike = len({str(Layout(items)) for items in sources}) == len({str(Layout(items)) for items in targets}) == 1
    if alike and not check_structure([Operand(None, Layout(sources[0]))], [Operand(None, Layout(targets[0]))]):
        return Half(tuple(sources), tuple(targets), shared=True)
    return None


def _operands(terms: Sequence[Term], dims: Sequence[Items]) -> list[Operand]:
    return [Operand(term.label, Layout(items)) for term, items in zip(terms, dims, strict=True)]


def ones(count: int) -> Items:
    """So many dimensions of size one."""
    return tuple(itertools.repeat(Number(1), count))
