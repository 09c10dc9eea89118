"""A side's model with its weights: loaded strictly from the checkpoint's own files, whole or block by block."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from converters.errors import CheckpointError, Problem
from converters.storage.base import CheckpointReader
from converters.text import printable
from converters.verify.context import VerifyContext
from converters.verify.model_keys import check_tied, misfits, name_in_model, tie, tied_parameters
from converters.verify.precision import Precision
from converters.verify.rounding import NO_ROUNDING, Rounding, rounding_of
from converters.verify.skeleton import (
    ModelLoadError,
    ModelUnavailableError,
    Skeleton,
    make_skeleton,
    resolve,
    transformers_class,
)
from converters.verify.streaming import BlockStream, find_blocks, read_tensor, set_tensor


@dataclass(frozen=True, slots=True)
class SideModel:
    """One side, ready to run.

    Attributes:
        name_of: for each key of the checkpoint, the parameter or buffer of `module` that holds it, where one does.
        tied: for each parameter that shares another's tensor, the other's name.
        blocks: by name, in order.
        stream: what brings the blocks' weights in and out; None where all of them are in memory.
        nbytes: of the weights, in the dtype that they are computed in.
        made_by: the code that it runs.
    """

    module: nn.Module
    precision: Precision
    name_of: Mapping[str, str]
    tied: Mapping[str, str]
    blocks: Mapping[str, nn.Module]
    stream: BlockStream | None
    nbytes: int
    made_by: str
    _parameters: frozenset[str] = field(default=frozenset())

    @property
    def takes_mask(self) -> bool:
        """Whether its forward takes an attention mask, so that prompts can be padded."""
        return "attention_mask" in self._parameters

    def logits(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits [batch, length, vocab] for token ids [batch, length] and a mask of the same shape, zero at padding."""
        device = self.precision.device
        options: dict[str, Any] = {"use_cache": False} if "use_cache" in self._parameters else {}
        if attention_mask is not None:
            options["attention_mask"] = attention_mask.to(device)
        out = self.module(input_ids.to(device), **options)
        for name in ("logits", "last_hidden_state"):
            if hasattr(out, name):
                out = getattr(out, name)
                break
        logits = out[0] if isinstance(out, tuple) else out
        if not isinstance(logits, Tensor):
            raise TypeError(f"it gives a {type(logits).__name__}, which has no logits")
        return logits


def why_not(context: VerifyContext) -> str | None:
    """Why the levels that run models can't be run; None where they can. Loads nothing."""
    if importlib.util.find_spec("transformers") is None and None in _sources(context):
        return "it needs transformers, which isn't installed: pip install 'weightmap[verify]'"
    sides = (("source", context.source_config), ("target", context.target_config))
    for (side, config), source in zip(sides, _sources(context), strict=True):
        if side == "source" and context.models.reference is not None:
            continue
        if isinstance(source, str):
            try:
                resolve(source)
            except ModelUnavailableError as error:
                return f"the {side}'s model: {error.problems[0].what}"
        elif source is None and (reason := transformers_class(config)[1]) is not None:
            return f"there is no model for the {side}: {reason}; give one with --{side}-model PACKAGE:CLASS"
    return None


def _sources(context: VerifyContext) -> tuple[object, object]:
    return context.models.source_model, context.models.target_model


@contextmanager
def open_source(context: VerifyContext, precision: Precision) -> Iterator[SideModel]:
    """The source's model, its weights rounded as the conversion rounds them; they are released at the end.

    Raises:
        ModelUnavailableError, ModelLoadError: it can't be made, or its weights don't go into it.
    """
    directory = _directory(context.source_path)
    skeleton = make_skeleton(context.models.source_model, directory, context.source_config)
    limit, rounding = context.models.resident_nbytes, rounding_of(context.plan)
    with _released(load_weights(skeleton, context.source_reader, directory, precision, limit, rounding)) as side:
        yield side


@contextmanager
def open_target(context: VerifyContext, precision: Precision) -> Iterator[SideModel]:
    """The target's model, as `open_source`."""
    directory = _directory(context.target_path)
    skeleton = make_skeleton(context.models.target_model, directory, context.target_config)
    limit = context.models.resident_nbytes
    with _released(load_weights(skeleton, context.target_reader, directory, precision, limit)) as side:
        yield side


@contextmanager
def _released(side: SideModel) -> Iterator[SideModel]:
    try:
        yield side
    finally:
        side.module.to("meta")
        if side.precision.device.type == "cuda":
            torch.cuda.empty_cache()


def _directory(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def load_weights(
    skeleton: Skeleton,
    reader: CheckpointReader,
    directory: Path,
    precision: Precision,
    resident_nbytes: int,
    rounding: Rounding = NO_ROUNDING,
) -> SideModel:
    """Put a checkpoint's weights into a model, every key in its place and none left over.

    Raises:
        ModelLoadError: keys are missing or unexpected, shapes differ, or tied tensors contradict each other.
    """
    module = skeleton.module
    state = module.state_dict(keep_vars=True)
    name_of = {key: name for key in reader.tensors if (name := name_in_model(key, state, skeleton.prefix)) is not None}
    problems = misfits(skeleton, reader, state, name_of)
    tied = tied_parameters(module)
    if problems and not skeleton.loaded:
        # transformers has tables of its own for layouts that it renames while loading; what it says then counts.
        module = _by_transformers(skeleton, directory, problems)
        state, tied = module.state_dict(keep_vars=True), tied_parameters(module)
        name_of = {key: name for key, name in name_of.items() if name in state}
    elif not skeleton.loaded:
        check_tied(reader, name_of, tied)
    streams = not problems and _nbytes(module, precision) > resident_nbytes
    blocks = find_blocks(module)
    keys = {name: key for key, name in reversed(list(name_of.items()))}

    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}

    def read(name: str) -> Tensor:
        tensor = rounding.apply(keys[name], read_tensor(reader, keys[name]))
        # Buffers keep their dtype: positions and frequencies are float32 by design.
        return _placed(tensor, precision) if name in parameters else tensor.to(precision.device)

    per_block = {block: [name for name in keys if name.startswith(f"{block}.")] for block in blocks}
    streamed = {name for names in per_block.values() for name in names} if streams else set()
    if not skeleton.loaded and not problems:
        for name in keys:
            if name not in streamed and tied.get(name) not in keys:
                set_tensor(module, name, read(name))
        tie(module, tied)
    stream = BlockStream(module, blocks, read, per_block) if streams else None
    if rounding is not NO_ROUNDING and (skeleton.loaded or problems):
        for name, parameter in module.named_parameters():
            if name not in streamed:
                parameter.data = rounding.apply(keys.get(name), parameter.data)
    _place_the_rest(module, precision, streamed)
    return SideModel(
        module.eval().requires_grad_(requires_grad=False),
        precision,
        name_of,
        tied,
        blocks,
        stream,
        _nbytes(module, precision),
        skeleton.made_by,
        frozenset(inspect.signature(module.forward).parameters),
    )


def _by_transformers(skeleton: Skeleton, directory: Path, problems: list[Problem]) -> nn.Module:
    make = type(skeleton.module)
    load: Callable[..., Any] | None = getattr(make, "from_pretrained", None)
    if load is None:
        raise ModelLoadError(problems)
    # Whatever it raises, this checkpoint doesn't go into this model; the list of keys says it best.
    options = {"attn_implementation": "eager", "dtype": torch.float32, "output_loading_info": True}
    try:
        with _silent_transformers():
            module, info = load(directory, local_files_only=True, use_safetensors=True, **options)
    except Exception as error:
        raise ModelLoadError(problems) from error
    if any(info.get(kind) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")):
        raise ModelLoadError(problems)
    loaded: nn.Module = module
    return loaded


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """Without its progress bar and its table of keys: the findings say it."""
    from transformers.utils import logging as their_logging

    logging: Any = their_logging  # its functions have no annotations

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _placed(tensor: Tensor, precision: Precision) -> Tensor:
    return tensor.to(precision.device, precision.dtype if tensor.is_floating_point() else None)


def _place_the_rest(module: nn.Module, precision: Precision, streamed: set[str]) -> None:
    """Move what isn't streamed."""
    parameters = module.named_parameters(remove_duplicate=True)
    for name, parameter in parameters:
        if name not in streamed and parameter.device.type == "meta":
            raise CheckpointError(f"{printable(name)} has no weights after loading")
        if name not in streamed:
            parameter.data = _placed(parameter.data, precision)
    for name, buffer in list(module.named_buffers()):
        if name not in streamed and buffer.device.type != "meta":
            set_tensor(module, name, buffer.to(precision.device))


def _nbytes(module: nn.Module, precision: Precision) -> int:
    return sum(parameter.numel() for parameter in module.parameters()) * precision.dtype.itemsize


__all__ = ["ModelLoadError", "ModelUnavailableError", "SideModel", "open_source", "open_target", "why_not"]
