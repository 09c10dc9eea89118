"""Where in a model a tensor or module is, read off its name alone."""

from __future__ import annotations

from converters.keys import is_index


def layer_of(name: str) -> int | None:
    """The layer that a dotted name belongs to: its first number; None where it has none.

    Example:
        >>> layer_of("model.layers.12.experts.3.up.weight")
        12
    """
    return next((int(part) for part in name.split(".") if is_index(part)), None)


def part_of(name: str) -> str:
    """The name within its layer: what follows its first number; the whole name where it has none.

    Example:
        >>> part_of("model.layers.12.experts.3.up.weight")
        'experts.3.up.weight'
    """
    parts = name.split(".")
    first = next((position for position, part in enumerate(parts) if is_index(part)), None)
    return name if first is None else ".".join(parts[first + 1 :])
