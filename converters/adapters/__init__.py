"""LoRA adapters: a spec for weights, applied to the factors of an update of them.

The spec becomes another one, for the adapter's tensors (`rules.py`, by the algebra of `factors.py`); planner and engine
see nothing unusual in it. The functions are imported when they are first used, since most sources are no adapters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from converters.adapters.config import explain_unequal
    from converters.adapters.planning import plan_adapter

__all__ = ["ADAPTER_CONFIG", "ADAPTER_NAME", "explain_unequal", "plan_adapter"]

ADAPTER_CONFIG: Final = "adapter_config.json"
"""What PEFT calls an adapter's config."""

ADAPTER_NAME: Final = "adapter_model"
"""What PEFT calls the file of an adapter's tensors, but for its suffix."""

_HOMES: Final = {"explain_unequal": "config", "plan_adapter": "planning"}

if not TYPE_CHECKING:  # a type checker would take it to mean that every name is there

    def __getattr__(name: str) -> object:
        """Import a function when it is first used."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
