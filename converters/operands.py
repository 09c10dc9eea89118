"""What a rule's layouts speak of: one tensor, or one family of tensors, on one side of the rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from converters.layout import Axis, Item, Layout, Rest


@dataclass(frozen=True, slots=True)
class Operand:
    """One tensor, or one family of tensors, of a rule: its label, its layout, and the axes that live in its key."""

    label: str | None
    layout: Layout
    key_axes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.label or "the tensor"


class LayoutMismatchError(Exception):
    """Layouts and shapes don't fit; `problems` are pairs of a side's operand (or None) and a message."""

    def __init__(self, problems: Sequence[tuple[Operand | None, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(message for _, message in problems))


def expand_rest(layout: Layout, rest: tuple[int, ...]) -> tuple[Item, ...]:
    """The layout's dimensions, with `...` replaced by one axis for each dimension that it stands for."""
    dims: list[Item] = []
    for item in layout.dims:
        if isinstance(item, Rest):
            dims.extend(Axis(f"...{index}") for index in range(len(rest)))
        else:
            dims.append(item)
    return tuple(dims)
