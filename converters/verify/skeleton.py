"""A model without its weights: made by transformers from a config.json, or by what an import path names.

No code is ever taken from a checkpoint: `trust_remote_code` stays off, and import paths come from the command line or
from the caller, never from a spec.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from converters.errors import WeightmapError
from converters.text import printable
from converters.verify.context import ModelSource


class ModelUnavailableError(WeightmapError):
    """There is no code for this model here, so nothing can be said of it."""


class ModelLoadError(WeightmapError):
    """There is code for this model, but these weights don't go into it."""


RUN_ERRORS = (RuntimeError, IndexError, TypeError, ValueError)
"""What models raise on inputs that they weren't made for, or on sizes that contradict each other."""


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A model, and whether its weights are in it already.

    Attributes:
        loaded: whether its own `from_pretrained` has read the weights; else its parameters are on the meta device.
        prefix: what transformers lets a checkpoint leave out at the start of each key, such as `transformer`.
        may_be_unexpected: patterns (regular expressions of transformers) of keys that the model recomputes.
        made_by: what a report says of where it came from.
    """

    module: nn.Module
    loaded: bool
    prefix: str
    may_be_unexpected: tuple[str, ...]
    made_by: str


def make_skeleton(source: ModelSource | None, directory: Path, config: Mapping[str, Any] | None) -> Skeleton:
    """Make a model.

    Args:
        source: an import path, or what makes a model from a config; None for transformers.
        directory: the checkpoint's.
        config: its config.json.

    Raises:
        ModelUnavailableError: there is no code for it.
        ModelLoadError: the code refuses the config or the weights.
    """
    if source is None:
        return _from_transformers(directory, config)
    make = resolve(source) if isinstance(source, str) else source
    name = source if isinstance(source, str) else getattr(source, "__qualname__", "the given function")
    # What other people's code raises on damaged weights can be anything.
    try:
        if hasattr(make, "from_pretrained"):
            module, loaded = make.from_pretrained(directory), True
        else:
            with parameters_on_meta():
                module, loaded = make(config or {}), False
    except Exception as error:
        raise ModelLoadError(_shorten(error), printable(str(directory)), f"{name} can't be loaded from it") from error
    if not isinstance(module, nn.Module):
        raise ModelUnavailableError(f"{name} makes a {type(module).__name__}, and no torch.nn.Module")
    return Skeleton(module.eval(), loaded, "", (), name)


def resolve(path: str) -> Any:  # noqa: ANN401 - whatever the user's path names
    """What an import path `package.module:Name` names.

    Raises:
        ModelUnavailableError: there is no such module or name.
    """
    package, colon, name = path.partition(":")
    hint = "write package.module:Class; the package must be importable from here"
    if not colon or not package or not name:
        raise ModelUnavailableError(f"{path!r} is no import path", hint=hint)
    try:
        found: Any = importlib.import_module(package)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ModelUnavailableError(f"{path!r} can't be imported: {error}", hint=hint) from error
    if not callable(found):
        raise ModelUnavailableError(f"{path!r} is a {type(found).__name__}, and nothing that makes a model", hint=hint)
    return found


def transformers_class(config: Mapping[str, Any] | None) -> tuple[Any, str | None]:
    """The class of transformers for a config.json, by its `architectures`, without loading anything.

    Returns:
        The class and None; or None and the reason why there is none.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

    kind = (config or {}).get("model_type")
    if config is None or not isinstance(kind, str):
        return None, "its config.json names no model_type"
    if kind not in transformers.CONFIG_MAPPING:
        return None, f"transformers {transformers.__version__} knows no model_type {kind!r}"
    names = [name for name in config.get("architectures") or () if isinstance(name, str)]
    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES):
        found = mapping.get(kind)
        names.extend([found] if isinstance(found, str) else list(found or ()))
    for name in names:
        made = getattr(transformers, name, None)
        if inspect.isclass(made) and issubclass(made, transformers.PreTrainedModel):
            return made, None
    return None, f"transformers {transformers.__version__} has none of its architectures ({', '.join(names)})"


def _from_transformers(directory: Path, config: Mapping[str, Any] | None) -> Skeleton:
    import transformers

    made, reason = transformers_class(config)
    if made is None:
        raise ModelUnavailableError(f"no model: {reason}", printable(str(directory)))
    try:
        settings = made.config_class.from_dict(dict(config or {}))
        # Eager attention: the same plain sums on every device. There is no public setter for it.
        settings._attn_implementation = "eager"  # noqa: SLF001
        settings._experts_implementation = "eager"  # noqa: SLF001
        settings.dtype = torch.float32
        with parameters_on_meta():
            module = made(settings)
    except Exception as error:
        raise ModelLoadError(
            _shorten(error), printable(str(directory)), f"{made.__name__} refuses its config"
        ) from error
    ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    name = f"transformers {transformers.__version__} {made.__name__}"
    return Skeleton(
        module.eval(), loaded=False, prefix=made.base_model_prefix, may_be_unexpected=tuple(ignored), made_by=name
    )


def _shorten(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {printable(text[:600])}"


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Parameters made in here take no memory; buffers are real, since what computes them isn't kept.

    `torch.device("meta")` would lose the buffers that no checkpoint holds, such as rotary frequencies.
    """
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        # One that is on meta already may be shared on purpose (tied); it must stay the same object.
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.to("meta"), requires_grad=False)
        original(module, name, param)

    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]
