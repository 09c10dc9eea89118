"""The source's outputs in a file, so that the target can be compared on a machine that the source doesn't fit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from converters.errors import WeightmapError
from converters.text import printable
from converters.verify.prompts import PromptBatch

FORMAT = "weightmap-reference-1"


@dataclass(frozen=True, slots=True)
class Reference:
    """Prompts and what the source's model made of them.

    Attributes:
        logits: for each batch, float [batch, length, vocab].
        metadata: where they come from: spec, source digest, device, dtype, versions.
    """

    batches: tuple[PromptBatch, ...]
    logits: tuple[Tensor, ...]
    metadata: Mapping[str, str]


def save_reference(
    path: Path, batches: Sequence[PromptBatch], logits: Sequence[Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a reference as safetensors.

    Raises:
        WeightmapError: it can't be written.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for number, (batch, out) in enumerate(zip(batches, logits, strict=True)):
        tensors[f"{number}.input_ids"] = batch.input_ids
        tensors[f"{number}.logits"] = out.contiguous()
        if batch.attention_mask is not None:
            tensors[f"{number}.attention_mask"] = batch.attention_mask
    names = json.dumps([batch.names for batch in batches])
    try:
        save_file(tensors, path, {"format": FORMAT, "names": names, **metadata})
    except OSError as error:
        raise WeightmapError(f"the reference can't be written: {error}", printable(str(path))) from error


def load_reference(path: Path) -> Reference:
    """Read what `save_reference` wrote.

    Raises:
        WeightmapError: it can't be read, or is no reference.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            if metadata.pop("format", None) != FORMAT:
                raise WeightmapError(
                    "this file is no reference", printable(str(path)), "make one with --save-reference FILE"
                )
            held = set(file.keys())
            batches, logits = [], []
            for number, names in enumerate(json.loads(metadata.pop("names"))):
                mask = file.get_tensor(f"{number}.attention_mask") if f"{number}.attention_mask" in held else None
                batches.append(PromptBatch(tuple(names), file.get_tensor(f"{number}.input_ids"), mask))
                logits.append(file.get_tensor(f"{number}.logits").to(torch.float32))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise WeightmapError(f"the reference can't be read: {error}", printable(str(path))) from error
    return Reference(tuple(batches), tuple(logits), metadata)
