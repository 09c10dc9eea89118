"""What a spec says of configs, as data: how one side's becomes the other's. `config_map.py` does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from converters.dims import Expression


class ConfigSide(Struct, frozen=True):
    """What one side's config.json has beyond the keys that both share.

    Attributes:
        set: values that are written to it, and not carried from it.
        derive: values that are computed from the other side's config when writing it.
        default: likewise, but only where no value is carried; what it computes isn't checked on the way back.
        delete: keys that are left out when reading it, with reasons.
        carry_under: the key below which this side keeps what nothing names; empty where that stays at the top.
    """

    set: Mapping[str, Any] = field(default_factory=dict)
    derive: Mapping[str, Expression] = field(default_factory=dict)
    default: Mapping[str, Expression] = field(default_factory=dict)
    delete: Mapping[str, str] = field(default_factory=dict)
    carry_under: str = ""

    def __hash__(self) -> int:
        return hash(self.carry_under)  # mappings have no hash


class ConfigMapping(Struct, frozen=True):
    """How the source's config.json becomes the target's; keys that nothing names are carried as they are.

    `rename` pairs dotted paths of the source's config with those of the target's.
    """

    rename: tuple[tuple[str, str], ...] = ()
    source: ConfigSide = ConfigSide()
    target: ConfigSide = ConfigSide()

    def inverse(self) -> ConfigMapping:
        """The mapping for the way back."""
        return ConfigMapping(tuple((new, old) for old, new in self.rename), self.target, self.source)
