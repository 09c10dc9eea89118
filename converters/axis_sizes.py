"""The sizes of a rule's axes: from `dims`, from indices in keys, and from the shapes of the source tensors."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from msgspec import Struct

from converters.layout import Axis, Block, Blocks, Group, Item, Layout, Number, Rest
from converters.operands import LayoutMismatchError, Operand, expand_rest

Linear = tuple[int, dict[str, int]]
"""A size that may hold unknown axes: a constant, and a coefficient for each unknown."""


_ONE: Linear = (1, {})


class _NotLinearError(Exception):
    """Two unknown axes are multiplied."""


class UnsolvedError(LayoutMismatchError):
    """Nothing contradicts, but some sizes can't be worked out."""


def _product(left: Linear, right: Linear) -> Linear:
    if left[1] and right[1]:
        raise _NotLinearError
    if right[1]:
        left, right = right, left
    factor = right[0]
    return left[0] * factor, {name: value * factor for name, value in left[1].items() if factor}


def linear_size(item: Item | Block, sizes: Mapping[str, int]) -> Linear:
    """The size of an item, as a constant and the coefficients of the axes whose size isn't known."""
    match item:
        case Number(value):
            return value, {}
        case Axis(name):
            return (sizes[name], {}) if name in sizes else (0, {name: 1})
        case Group(items) | Block(_, items):
            return functools.reduce(_product, (linear_size(inner, sizes) for inner in items), _ONE)
        case Blocks(blocks):
            constant = 0
            unknowns: dict[str, int] = {}
            for block in blocks:
                part, coefficients = linear_size(block, sizes)
                constant += part
                for name, value in coefficients.items():
                    unknowns[name] = unknowns.get(name, 0) + value
            return constant, unknowns
        case Rest():
            raise AssertionError("'...' has no single size")


def _rest_shape(layout: Layout, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The dimensions that `...` stands for, `()` without one, None where the number of dimensions can't fit."""
    extra = len(shape) - (len(layout.dims) - layout.has_rest)
    if extra < 0 or (extra and not layout.has_rest):
        return None
    if not layout.has_rest:
        return ()
    position = next(index for index, item in enumerate(layout.dims) if isinstance(item, Rest))
    return shape[position : position + extra]


class _Equation(Struct, frozen=True):
    """One dimension of a source tensor: what the layout says stands there, and how long it is."""

    operand: Operand
    index: int
    item: Item
    size: int


def solve_sizes(
    sources: Sequence[Operand], shapes: Sequence[tuple[int, ...]], known: Mapping[str, int]
) -> tuple[dict[str, int], tuple[int, ...]]:
    """Every axis size, and the shape of `...`, from the known sizes and the shapes of the source tensors.

    Raises:
        LayoutMismatchError: shapes and sizes contradict each other.
        UnsolvedError: they don't, but leave some size open.
    """
    pending, rest = _equations(sources, shapes)
    sizes = dict(known)
    while pending:
        problems: list[tuple[Operand, str]] = []
        remaining = [equation for equation in pending if not _use(equation, sizes, problems)]
        if problems:
            raise LayoutMismatchError(problems)
        if len(remaining) == len(pending):
            raise UnsolvedError([_unsolved(equation, sizes) for equation in remaining])
        pending = remaining
    return sizes, rest


def _equations(
    sources: Sequence[Operand], shapes: Sequence[tuple[int, ...]]
) -> tuple[list[_Equation], tuple[int, ...]]:
    problems: list[tuple[Operand, str]] = []
    rest: tuple[int, ...] | None = None
    equations: list[_Equation] = []
    for operand, shape in zip(sources, shapes, strict=True):
        layout = operand.layout
        found = _rest_shape(layout, shape)
        if found is None:
            wanted = f"at least {len(layout.dims) - 1}" if layout.has_rest else len(layout.dims)
            have = f"the tensor has {len(shape)}: {list(shape)}"
            problems.append((operand, f"the layout '{layout}' wants {wanted} dimensions, but {have}"))
            continue
        if layout.has_rest and rest is not None and rest != found:
            other = f"{list(rest)} in another tensor of the rule"
            problems.append((operand, f"'...' stands for {list(found)} here and for {other}"))
            continue
        rest = found if layout.has_rest else rest
        for index, (item, size) in enumerate(zip(expand_rest(layout, found), shape, strict=True)):
            equations.append(_Equation(operand, index, item, size))
    if problems:
        raise LayoutMismatchError(problems)
    return equations, rest or ()


def _use(equation: _Equation, sizes: dict[str, int], problems: list[tuple[Operand, str]]) -> bool:
    """Check an equation without unknowns, or work out its only one; False where it has to wait."""
    item, size = equation.item, equation.size
    try:
        constant, unknowns = linear_size(item, sizes)
    except _NotLinearError:
        return False
    if len(unknowns) > 1:
        return False
    if not unknowns:
        if constant != size:
            what = "blocks sum to" if isinstance(item, Blocks) else f"'{item}' is"
            known = _sizes_text(item, sizes)
            message = f"{what} {constant} ({known}), but dim {equation.index} is {size}"
            problems.append((equation.operand, message))
        return True
    ((name, factor),) = unknowns.items()
    quotient, remainder = divmod(size - constant, factor)
    if quotient < 0 or remainder:
        known = _sizes_text(item, sizes)
        problems.append((equation.operand, f"dim {equation.index} is {size}, which '{item}' can't be with {known}"))
    sizes[name] = max(quotient, 0)
    return True


def _unsolved(equation: _Equation, sizes: Mapping[str, int]) -> tuple[Operand, str]:
    names = sorted(axis for axis in Layout((equation.item,)).axis_names() if axis not in sizes)
    where = f"dim {equation.index} = {equation.size}"
    return equation.operand, f"the sizes of {' and '.join(names)} can't be worked out from {where} alone"


def _sizes_text(item: Item, sizes: Mapping[str, int]) -> str:
    names = sorted(name for name in Layout((item,)).axis_names() if name in sizes)
    return ", ".join(f"{name}={sizes[name]}" for name in names) or "the numbers in it"
