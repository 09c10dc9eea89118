"""Which parameter of a model a checkpoint's key stands for, what has no place, and which parameters are one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from converters.errors import Problem
from converters.parts import split_key
from converters.storage.base import CheckpointReader
from converters.text import printable
from converters.verify.skeleton import ModelLoadError, Skeleton
from converters.verify.streaming import read_tensor


def name_in_model(key: str, state: Mapping[str, Any], prefix: str) -> str | None:
    """The name of a key in the model: transformers' checkpoints may leave the prefix out, or have it where none is.

    The key of a component, `unet:conv.weight`, is `unet.conv.weight` in a model made of them; that of an only part
    goes without its number.
    """
    label, inner = split_key(key)
    candidates = [key, *([f"{label}.{inner}", inner] if label else [])]
    candidates += [f"{prefix}.{key}", key.removeprefix(f"{prefix}.")] if prefix else []
    return next((name for name in candidates if name in state), None)


def misfits(
    skeleton: Skeleton, reader: CheckpointReader, state: Mapping[str, Tensor], name_of: Mapping[str, str]
) -> list[Problem]:
    """What of a checkpoint and a model has no counterpart in the other, or another shape there."""
    known, groups = set(name_of.values()), tied_parameters(skeleton.module)
    known |= {name for name, first in groups.items() if first in known}
    known |= {first for name, first in groups.items() if name in known}
    missing = (name for name in state if name not in known)
    found = [Problem("the model has this parameter, but the checkpoint doesn't", name) for name in missing]
    for key, info in reader.tensors.items():
        if key not in name_of:
            if not any(re.search(pattern, key) for pattern in skeleton.may_be_unexpected):
                found.append(Problem("the checkpoint has this tensor, but the model doesn't", printable(key)))
        elif tuple(state[name_of[key]].shape) != info.shape:
            shape = list(state[name_of[key]].shape)
            found.append(Problem(f"the model's is {shape}, the checkpoint's {list(info.shape)}", printable(key)))
    return found


def tied_parameters(module: nn.Module) -> dict[str, str]:
    """For each parameter that is the same one as an earlier: the name of that."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if other != name:
            tied[name] = other
    return tied


def check_tied(reader: CheckpointReader, name_of: Mapping[str, str], tied: Mapping[str, str]) -> None:
    """Compare what the checkpoint holds for parameters that are one.

    Raises:
        ModelLoadError: some of them differ.
    """
    keys = {name: key for key, name in name_of.items()}
    problems = []
    for name, first in tied.items():
        if name in keys and first in keys:
            raw = [read_tensor(reader, keys[each]).view(torch.uint8) for each in (name, first)]
            if not torch.equal(*raw):
                what = f"the model ties it to {printable(first)}, but the checkpoint holds other values"
                hint = "one of the two is stale; which one a loader takes is its own choice"
                problems.append(Problem(what, printable(keys[name]), hint))
    if problems:
        raise ModelLoadError(problems)


def tie(module: nn.Module, tied: Mapping[str, str]) -> None:
    """Make parameters one again, after each of them was set by itself."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, first in tied.items():
        source = first if parameters[first].device.type != "meta" else name
        for each in (name, first):
            path, _, last = each.rpartition(".")
            module.get_submodule(path)._parameters[last] = parameters[source]  # noqa: SLF001 - keeps one object
