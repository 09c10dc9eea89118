"""What a rule's layouts speak of: one tensor, or one family of tensors, on one side of the rule."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from converters.layout import Axis, Item, Layout, Rest


class Operand(Struct, frozen=True):
    """One tensor, or one family of tensors, of a rule: its label, its layout, and the axes that live in its key.

    `place` is what the spec's `layout:` calls it: the label, or else `from` or `to`.
    """

    label: str | None
    layout: Layout
    key_axes: tuple[str, ...] = ()
    place: str = ""

    def __str__(self) -> str:
        return self.label or "the tensor"

    @property
    def is_whole(self) -> bool:
        """Whether it is one tensor, of which nothing is said but that all of it is meant."""
        return not self.key_axes and self.layout.dims == (Rest(),)

    def axes(self) -> frozenset[str]:
        """The names of all its axes, those in the key included."""
        return self.layout.axis_names() | frozenset(self.key_axes)


class LayoutMismatchError(Exception):
    """Layouts and shapes don't fit; `problems` are pairs of an operand and a message."""

    def __init__(self, problems: Sequence[tuple[Operand, str]]) -> None:
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
