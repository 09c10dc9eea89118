"""What every level of a verification is given, and what a level is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct, field

from converters.engine import Progress
from converters.plan import Plan
from converters.schedule import Budget
from converters.spec import Spec
from converters.storage.base import CheckpointReader
from converters.verify.report import LevelResult

DEFAULT_PROMPT_TOKENS = 512
"""Long enough for errors of position to show."""

ModelSource = str | Callable[[Mapping[str, Any]], Any]
"""Where a model comes from: an import path `package.module:Class`, or what makes one from a config."""


class ModelOptions(Struct, frozen=True):
    """How the levels that run models run them.

    Attributes:
        device: such as `cpu` or `cuda`; None for the best there is.
        dtype: what to compute in, such as `float16`; None for float32, in which every stored 16-bit value is exact.
        source_model: the source's model; None for what transformers makes of its config.
        target_model: the target's model; None likewise.
        prompt_file: prompts to run, in place of the built-in ones.
        prompt_tokens: the length in tokens of the longest built-in prompts.
        save_reference: where to store the source model's outputs.
        reference: outputs that `save_reference` stored, in place of running the source model.
        tolerances: bounds in place of the built-in ones, by gate.
        seed: of the built-in prompts.
        resident_nbytes: bytes of one model's weights above which its blocks are streamed from disk.
    """

    device: str | None = None
    dtype: str | None = None
    source_model: ModelSource | None = None
    target_model: ModelSource | None = None
    prompt_file: Path | None = None
    prompt_tokens: int = DEFAULT_PROMPT_TOKENS
    save_reference: Path | None = None
    reference: Path | None = None
    tolerances: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    resident_nbytes: int = 1 << 30


class VerifyContext(Struct, frozen=True):
    """Both sides, opened, and the plans between them.

    Attributes:
        spec: from the source's layout to the target's; inverted already where the user asked for the reverse.
        source_path: what the user gave: a file or a directory.
        source_reader: the opened source; `target_reader` the opened target. Levels don't close them.
        source_config: the source's config.json (or what the user gave in its place); None without one.
        target_config: the config.json that lies beside the target; None without one.
        plan: from source to target, as the spec gives it for the source's headers. `plan.config` is what the
            target's config.json should be, `plan.targets` what its tensors should be.
        plan_back: from the target, as `plan` says that it should be, to the source; None where there is none.
        no_way_back: why `plan_back` is None.
        asked_dtype: the dtype to which the conversion was told to cast everything; None if it wasn't.
        dims: values that took the place of the spec's dims.
        budget: bytes of memory for tensor data, and threads.
        models: for the levels that run models.
        progress: called with the number of bytes just compared, from several threads.
    """

    spec: Spec
    source_path: Path
    target_path: Path
    source_reader: CheckpointReader
    target_reader: CheckpointReader
    source_config: Mapping[str, Any] | None
    target_config: Mapping[str, Any] | None
    plan: Plan
    plan_back: Plan | None
    no_way_back: str | None
    asked_dtype: str | None
    budget: Budget
    dims: Mapping[str, int] | None = None
    models: ModelOptions = ModelOptions()
    progress: Progress = lambda _: None


class Level(Protocol):
    """A level: looks at both sides and says what it found. It never raises for what is wrong with the target."""

    def __call__(self, context: VerifyContext, /) -> LevelResult:
        """Look at both sides."""
        ...
