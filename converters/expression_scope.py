"""What an expression sees and what it comes out as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Unresolved:
    """A value that can't be known, and why; neither true nor false, so that no condition takes it by mistake.

    Attributes:
        reason: a sentence such as `config.num_attention_heads is not in config.json`.
    """

    reason: str

    def __bool__(self) -> bool:
        raise TypeError(f"an unresolved value is neither true nor false: {self.reason}")


Value: TypeAlias = bool | int | float | str | Sequence[object] | Mapping[str, object] | Unresolved | None


@dataclass(frozen=True, slots=True)
class Scope:
    """What an expression can see; see `Expression.evaluate`."""

    names: Mapping[str, Value]
    config: Mapping[str, object] | None
    target_config: Mapping[str, object] | None
