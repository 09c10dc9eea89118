"""weightmap: checkpoint conversion and key remapping, driven by mapping specs.

    spec = converters.load_spec("phi2_to_tenny.yaml")
    converters.convert(spec, "phi-2/", "tenny/")
    state_dict = converters.convert_state_dict(spec, model.state_dict())
    with converters.open_converted(spec, "phi-2/") as lazy: ...
    converters.load_into(model, spec, "phi-2/")
    converters.save_converted(spec, model.state_dict(), "phi-2-tuned/", reverse=True, config=config)
    converters.verify(spec, "phi-2/", "tenny/").raise_for_failure()

Importing this never imports torch; the calls that give tensors do. Each name is imported when it is first used, so that
`weightmap --help` doesn't wait for the engine.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converters.convert import Options, convert, prepare
    from converters.errors import (
        CheckpointError,
        ConfigError,
        CoverageError,
        Location,
        MemoryBudgetError,
        OutputError,
        OutputExistsError,
        Problem,
        SpecError,
        VerificationError,
        WeightmapError,
    )
    from converters.lazy import ConvertedCheckpoint, open_converted
    from converters.library import load_spec, shipped_specs
    from converters.load import load_into
    from converters.plan import Plan
    from converters.sharded import save_converted
    from converters.spec import Spec
    from converters.state_dict import convert_state_dict
    from converters.storage.checkpoint import open_checkpoint
    from converters.tensor_info import DType, TensorInfo
    from converters.verify.report import Report, Verdict
    from converters.verify.run import verify

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ConvertedCheckpoint",
    "CoverageError",
    "DType",
    "Location",
    "MemoryBudgetError",
    "Options",
    "OutputError",
    "OutputExistsError",
    "Plan",
    "Problem",
    "Report",
    "Spec",
    "SpecError",
    "TensorInfo",
    "Verdict",
    "VerificationError",
    "WeightmapError",
    "convert",
    "convert_state_dict",
    "load_into",
    "load_spec",
    "open_checkpoint",
    "open_converted",
    "prepare",
    "save_converted",
    "shipped_specs",
    "verify",
]

_NAMES_BY_HOME = {
    "convert": ("Options", "convert", "prepare"),
    "errors": (
        "CheckpointError",
        "ConfigError",
        "CoverageError",
        "Location",
        "MemoryBudgetError",
        "OutputError",
        "OutputExistsError",
        "Problem",
        "SpecError",
        "VerificationError",
        "WeightmapError",
    ),
    "lazy": ("ConvertedCheckpoint", "open_converted"),
    "library": ("load_spec", "shipped_specs"),
    "load": ("load_into",),
    "plan": ("Plan",),
    "sharded": ("save_converted",),
    "spec": ("Spec",),
    "state_dict": ("convert_state_dict",),
    "storage.checkpoint": ("open_checkpoint",),
    "tensor_info": ("DType", "TensorInfo"),
    "verify.report": ("Report", "Verdict"),
    "verify.run": ("verify",),
}
_HOME_OF = {name: f"{__name__}.{home}" for home, names in _NAMES_BY_HOME.items() for name in names}


class _Package(ModuleType):
    """This package, in which a public name always means what `__all__` promises."""

    def __setattr__(self, name: str, value: object) -> None:
        # Importing the module converters.convert would else hide the function converters.convert behind it.
        if not (name in _HOME_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

if not TYPE_CHECKING:  # a type checker would take it to mean that every name is there

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used."""
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        value = getattr(importlib.import_module(_HOME_OF[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
