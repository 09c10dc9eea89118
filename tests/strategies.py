"""Random mapping specs whose meaning is known by construction, as YAML text and as sets of named elements.

An element of a case has a label (its block) and a coordinate on each of its axes. A side of the case stores the
elements either in one tensor for each label, or fused in one tensor; axes go anywhere: into a dimension of their own,
into a composed dimension, around the blocks or inside them, or into the key.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import strategies as st

from converters.tensor_info import DType

DTYPES = [
    DType.BOOL,
    DType.U8,
    DType.F8_E4M3,
    DType.I16,
    DType.F16,
    DType.BF16,
    DType.F32,
    DType.F64,
    DType.I64,
    DType.C64,
]


PAD = "pad"
"""A block that only the targets have, and its axis."""


@dataclass(frozen=True)
class TermCase:
    """One tensor family: its label (None where fused), its key, and its layout as nested lists.

    `dims` holds axis names, lists (composed), dicts (label to list: blocks) and a tuple (the axes of `...`).
    """

    label: str | None
    key: str
    key_axes: tuple[str, ...]
    dims: list
    copies: tuple[str, ...] = ()
    ties: tuple[str, ...] = ()
    """Other keys that the tensor could be stored under, and isn't."""


@dataclass(frozen=True)
class Case:
    """A spec and the sizes of its axes; `leaves` gives the axes of each label.

    The axis `number` is written as its size. With `in_parts` each label has a rule, that leaves the others out. A block
    `PAD` of a target holds zeros, and no source has it.
    """

    sizes: dict[str, int]
    leaves: dict[str, tuple[str, ...]]
    instances: int
    first_instance: int
    sources: list[TermCase]
    targets: list[TermCase]
    dims: dict[str, int]
    dtype: DType
    number: str | None = None
    in_parts: bool = False

    def yaml(self) -> str:
        """The case as a spec."""
        lines = ["weightmap: 1", "source: {layout: a}", "target: {layout: b}"]
        in_keys = sorted({axis for term in (*self.sources, *self.targets) for axis in term.key_axes})
        dims = {**self.dims, **{f"N_{axis}": self.sizes[axis] for axis in in_keys}}
        if dims:
            lines.append("dims: {" + ", ".join(f"{name}: {size}" for name, size in dims.items()) + "}")
        if in_keys:
            lines.append("placeholders: {" + ", ".join(f"{axis}: 0..N_{axis}" for axis in in_keys) + "}")
        lines.append("rules:")
        rules = [[label] for label in self.leaves] if self.in_parts else [list(self.leaves)]
        padded = PAD in self.sizes
        for number, labels in enumerate(rules):
            lines.extend(self._rule([*labels, PAD] if padded and number == 0 else labels))
            if padded and number == 0:
                lines.append(f"    fill: {{{PAD}: zeros}}")
        return "\n".join(lines) + "\n"

    def _rule(self, labels: list[str]) -> list[str]:
        lines, layouts = [], []
        for word, all_terms, start in (("from", self.sources, "  - "), ("to", self.targets, "    ")):
            terms = [term for term in all_terms if term.label is None or term.label in labels]
            if len(terms) == 1 and not terms[0].label:
                lines.append(f"{start}{word}: {_key_text(terms[0])}")
            else:
                inner = ", ".join(f"{term.label}: {_key_text(term)}" for term in terms)
                lines.append(f"{start}{word}: {{{inner}}}")
            layouts += [f'      {term.label or word}: "{self.layout_text(term.dims, labels)}"' for term in terms]
        return [*lines, "    layout:", *layouts]

    def layout_text(self, dims: list, labels: list[str]) -> str:
        """The layout notation of nested lists; blocks of other labels are left to other rules."""
        return " ".join(self._item_text(item, labels) for item in dims)

    def _item_text(self, item: object, labels: list[str]) -> str:
        if isinstance(item, dict):
            blocks = (
                f"{label if label in labels else '_'}: {self.layout_text(items, labels)}"
                for label, items in item.items()
            )
            return f"({' | '.join(blocks)})"
        if isinstance(item, list):
            return f"({self.layout_text(item, labels)})"
        if isinstance(item, tuple):
            return "..."
        return str(self.sizes[item] if item == self.number else item)


def _key_text(term: TermCase) -> str:
    for word, others in (("copy", term.copies), ("tie", term.ties)):
        if others:
            return f"{{{word}: [" + ", ".join(f'"{key}"' for key in (term.key, *others)) + "]}"
    return f'"{term.key}"'


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A random case, small enough to be evaluated element by element."""
    labels = draw(st.sampled_from([["a"], ["a", "b"], ["q", "k", "v"]]))
    shared = [f"S{index}" for index in range(draw(st.integers(1, 3)))]
    sizes = {name: draw(st.sampled_from([1, 2, 3, 5])) for name in shared}
    leaves: dict[str, tuple[str, ...]] = {}
    for label in labels:
        private = [f"P{label}{index}" for index in range(draw(st.integers(0, 2)))]
        sizes.update({name: draw(st.sampled_from([1, 2, 3, 4, 7])) for name in private})
        leaves[label] = (*shared, *private)
    if sum(_size(leaf, sizes) for leaf in leaves.values()) > 1500:
        sizes = {name: min(size, 2) for name, size in sizes.items()}
    sources = draw(_sides("src", leaves, shared))
    targets = draw(_sides("dst", leaves, shared))
    # With both sides in one term for each label, the labels of the two sides would be the same.
    if len(labels) > 1 and all(term.label for term in sources) and all(term.label for term in targets):
        targets = draw(_fused("dst", leaves, shared))
    if draw(st.booleans()):
        targets = [replace(term, copies=(term.key.replace("dst", "copy"),)) for term in targets]
    if draw(st.integers(0, 3)) == 0:
        sources = [replace(term, ties=(term.key.replace("src", "tie"),)) for term in sources]
    shift = draw(st.sampled_from(["{i}", "{i+2}", "{7-i}", "{i//2}.{i%2}"]))
    targets = [
        replace(
            term,
            key=term.key.replace("{i}", shift),
            copies=tuple(key.replace("{i}", shift) for key in term.copies),
        )
        for term in targets
    ]
    in_keys = {axis for term in (*sources, *targets) for axis in term.key_axes}
    in_tensors = sorted(sizes.keys() - in_keys)
    number = draw(st.sampled_from(in_tensors)) if in_tensors and draw(st.integers(0, 3)) == 0 else None
    if draw(st.integers(0, 2)) == 0:
        rest = tuple(f"R{index}" for index in range(draw(st.integers(0, 2))))
        sizes.update({name: draw(st.sampled_from([1, 2, 3])) for name in rest})
        leaves = {label: (*axes, *rest) for label, axes in leaves.items()}
        sources, targets = ([draw(_with_rest(term, rest)) for term in terms] for terms in (sources, targets))
    in_parts = len(labels) > 1 and not in_keys and draw(st.booleans())
    empty = in_tensors and draw(st.integers(0, 9)) == 0
    if empty:
        axis = draw(st.sampled_from([axis for axis in in_tensors if axis != number] or in_tensors))
        number = None if axis == number else number
        sizes[axis] = 0
    # An axis that is alone in a dimension on both sides can be read off the tensors, whichever way it goes.
    alone = [{item for term in terms for item in term.dims if isinstance(item, str)} for terms in (sources, targets)]
    dims = {
        name: size
        for name, size in sizes.items()
        # Nothing can be read off a tensor without elements, nor off a part that another rule takes.
        if name in in_tensors
        and (empty or in_parts or not (name in alone[0] and name in alone[1]) or draw(st.booleans()))
    }
    first = draw(st.integers(0, 3))
    dtype = draw(st.sampled_from(DTYPES))
    if draw(st.integers(0, 2)) == 0 and dtype is not DType.C64 and (blocks := _blocks_of(targets[0].dims)) is not None:
        # The block is given a place among the others, and its size by name.
        items = list(blocks.items())
        items.insert(draw(st.integers(0, len(items))), (PAD, [PAD]))
        blocks.clear()
        blocks.update(items)
        sizes[PAD] = dims[PAD] = draw(st.integers(0, 3))
    return Case(sizes, leaves, draw(st.integers(1, 2)), first, sources, targets, dims, dtype, number, in_parts)


@st.composite
def _with_rest(draw: st.DrawFn, term: TermCase, rest: tuple[str, ...]) -> TermCase:
    dims = list(term.dims)
    dims.insert(draw(st.integers(0, len(dims))), rest)
    return replace(term, dims=dims)


def _blocks_of(dims: list) -> dict | None:
    """The blocks of a fused term, wherever they lie."""
    for item in dims:
        found = item if isinstance(item, dict) else _blocks_of(item) if isinstance(item, list) else None
        if found is not None:
            return found
    return None


def _size(axes: tuple[str, ...], sizes: dict[str, int]) -> int:
    size = 1
    for axis in axes:
        size *= sizes[axis]
    return size


@st.composite
def _sides(draw: st.DrawFn, name: str, leaves: dict[str, tuple[str, ...]], shared: list[str]) -> list[TermCase]:
    if len(leaves) == 1 or draw(st.booleans()):
        return [draw(_separate(name, label, axes, labelled=len(leaves) > 1)) for label, axes in leaves.items()]
    return draw(_fused(name, leaves, shared))


@st.composite
def _separate(draw: st.DrawFn, name: str, label: str, axes: tuple[str, ...], *, labelled: bool) -> TermCase:
    order = draw(st.permutations(axes))
    in_key = order[: draw(st.integers(0, min(2, len(order) - 1)))] if draw(st.booleans()) else []
    dims = draw(_grouped([axis for axis in order if axis not in in_key]))
    return TermCase(label if labelled else None, _key(name, label, in_key), tuple(in_key), dims)


@st.composite
def _fused(draw: st.DrawFn, name: str, leaves: dict[str, tuple[str, ...]], shared: list[str]) -> list[TermCase]:
    order = draw(st.permutations(shared))
    in_key = order[:1] if draw(st.booleans()) and len(order) > 1 else []
    rest = [axis for axis in order if axis not in in_key]
    inside = rest[: draw(st.integers(0, len(rest)))]
    outside = [axis for axis in rest if axis not in inside]
    blocks: dict[str, list] = {}
    for label in draw(st.permutations(list(leaves))):
        private = [axis for axis in leaves[label] if axis not in shared]
        items = draw(_grouped(draw(st.permutations([*private, *inside]))))
        blocks[label] = items or [1]
    dims: list = draw(_grouped(outside))
    place = draw(st.integers(0, len(dims)))
    if dims and draw(st.booleans()):
        # The blocks inside a composed dimension, as in per-head fused projections.
        place = min(place, len(dims) - 1)
        item = dims[place]
        inner = list(item) if isinstance(item, list) else [item]
        inner.insert(draw(st.integers(0, len(inner))), blocks)
        dims[place] = inner
    else:
        dims.insert(place, blocks)
    return [TermCase(None, _key(name, "fused", in_key), tuple(in_key), dims)]


@st.composite
def _grouped(draw: st.DrawFn, order: list[str]) -> list:
    """Axes in this order, some neighbours composed into one dimension, with a dimension of one here and there."""
    dims: list = []
    for axis in order:
        if dims and draw(st.integers(0, 2)) == 0:
            last = dims[-1]
            dims[-1] = [*last, axis] if isinstance(last, list) else [last, axis]
        else:
            dims.append(axis)
    if draw(st.integers(0, 5)) == 0:
        dims.insert(draw(st.integers(0, len(dims))), 1)
    return dims


def _key(name: str, label: str, in_key: list[str]) -> str:
    return ".".join([name, label, "{i}", *(f"{{{axis}}}" for axis in in_key), "weight"])
