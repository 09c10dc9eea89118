"""What an expression sees and what it comes out as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from msgspec import Struct


class Unresolved(Struct, frozen=True):
    """A value that can't be known, and why; neither true nor false, so that no condition takes it by mistake.

    Attributes:
        reason: a sentence such as `config.num_attention_heads is not in config.json`.
    """

    reason: str

    def __bool__(self) -> bool:
        raise TypeError(f"an unresolved value is neither true nor false: {self.reason}")


Value: TypeAlias = bool | int | float | str | Sequence[object] | Mapping[str, object] | Unresolved | None


class Scope(Struct, frozen=True):
    """What an expression can see; see `Expression.evaluate`."""

    names: Mapping[str, Value]
    config: Mapping[str, object] | None
    target_config: Mapping[str, object] | None
