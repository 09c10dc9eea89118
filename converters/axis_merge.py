"""Axes that nothing tells apart: their product can be read off a tensor where neither of them can."""

from __future__ import annotations

from collections.abc import Sequence

from converters.layout import Axis, Block, Blocks, Group, Item, Layout


def merge_unknown(layouts: Sequence[Layout], known: frozenset[str]) -> tuple[Layout, ...]:
    """Merge axes of unknown size that always stand side by side, so that only their product is needed.

    `(q: H D | k: G D | v: G D)` on one side and `(H D)`, `(G D)` on the other fuse without anyone knowing the heads:
    `H D` is never taken apart. Where a split needs one of them, the axes stay apart and the size must be given.
    """
    trees = [layout.dims for layout in layouts]
    while pairs := _mergeable(trees, known):
        trees = [_merge_pairs(dims, pairs) for dims in trees]
    return tuple(Layout(dims) for dims in trees)


def _sequences(dims: tuple[Item, ...]) -> list[tuple[Item, ...]]:
    """Every sequence of items that are composed into one dimension."""
    found: list[tuple[Item, ...]] = []
    for item in dims:
        if isinstance(item, Group):
            found.append(item.items)
            found.extend(_sequences(item.items))
        elif isinstance(item, Blocks):
            for block in item.blocks:
                found.append(block.items)
                found.extend(_sequences(block.items))
    return found


def _mergeable(trees: Sequence[tuple[Item, ...]], known: frozenset[str]) -> frozenset[tuple[str, str]]:
    """Pairs of neighbours that can be merged: wherever one of the two occurs, it stands in such a pair."""
    after: dict[str, set[str | None]] = {}
    before: dict[str, set[str | None]] = {}
    for dims in trees:
        for sequence in [*((item,) for item in dims), *_sequences(dims)]:
            names = [item.name if isinstance(item, Axis) and item.name not in known else None for item in sequence]
            for left, name, right in zip([None, *names], names, [*names[1:], None], strict=False):
                if name is not None:
                    before.setdefault(name, set()).add(left)
                    after.setdefault(name, set()).add(right)
    for right, lefts in before.items():
        pairs = frozenset((left, right) for left in lefts if left is not None)
        if len(pairs) == len(lefts) and all(left != right and after[left] == {right} for left, _ in pairs):
            return pairs
    return frozenset()


def _merge_pairs(items: tuple[Item, ...], pairs: frozenset[tuple[str, str]]) -> tuple[Item, ...]:
    merged: list[Item] = []
    for item in items:
        rebuilt = item
        if isinstance(item, Group):
            inner = _merge_pairs(item.items, pairs)
            rebuilt = inner[0] if len(inner) == 1 else Group(inner)
        elif isinstance(item, Blocks):
            rebuilt = Blocks(tuple(Block(block.label, _merge_pairs(block.items, pairs)) for block in item.blocks))
        last = merged[-1] if merged else None
        if isinstance(last, Axis) and isinstance(rebuilt, Axis) and (last.name, rebuilt.name) in pairs:
            merged[-1] = Axis(f"({last.name} {rebuilt.name})")
        else:
            merged.append(rebuilt)
    return tuple(merged)
