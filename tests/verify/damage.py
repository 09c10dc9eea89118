"""Correct conversions of small models, and ways to damage the files that came out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import converters
from tests.models import tiny_phi

Tensors = dict[str, Tensor]

SPEC = "phi2_to_tenny"
LAYER = "transformer_encoder.layers.1"
IN_PROJ = f"{LAYER}.self_attn.multihead_attn.in_proj_weight"
Q_ROWS, KV_ROWS, HEAD_DIM = 48, 16, 8


def make_source(directory: Path, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any) -> Path:
    """A small Phi with grouped-query attention, in several shards."""
    model = tiny_phi(seed, **{"num_key_value_heads": 2, **overrides}).to(dtype)
    model.config.dtype = dtype
    model.save_pretrained(directory, max_shard_size="60KB")
    return directory


def make_target(source: Path, directory: Path, **options: Any) -> Path:
    """What the spec makes of it, in several shards."""
    converters.convert(converters.load_spec(SPEC), source, directory, max_shard_size="80KB", **options)
    return directory


def edit(directory: Path, change: Callable[[Tensors], None]) -> None:
    """Change tensors of a checkpoint in place: each stays in its shard, new ones go to the first; the index follows."""
    index_path = directory / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    files = sorted(set(index["weight_map"].values()))
    tensors = {name: tensor for file in files for name, tensor in load_file(directory / file).items()}
    change(tensors)
    home = {name: index["weight_map"].get(name, files[0]) for name in tensors}
    for file in files:
        inside = {name: tensor.contiguous().clone() for name, tensor in tensors.items() if home[name] == file}
        save_file(inside, directory / file, metadata={"format": "pt"})
    index["weight_map"] = home
    index["metadata"]["total_size"] = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index_path.write_text(json.dumps(index))


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file in place."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
