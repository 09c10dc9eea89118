"""Adapters on disk, as PEFT writes them, of a few matrices whose products are exact in float32."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["q"], "fan_in_fan_out": False, "bias": "none",
    "base_model_name_or_path": "somewhere", "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None,
}  # fmt: skip
PREFIX = "base_model.model."


def whole(generator: torch.Generator, *shape: int) -> Tensor:
    """Whole numbers as floats, so that sums of their products are exact."""
    return torch.randint(-9, 10, shape, generator=generator).float()


def write_adapter(directory: Path, tensors: Mapping[str, Tensor], **config: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    prefixed = {PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(prefixed, directory / "adapter_model.safetensors", {"format": "pt"})
    (directory / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    return directory


def read_adapter(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, without PEFT's prefix, and the config."""
    found = load_file(directory / "adapter_model.safetensors")
    assert all(name.startswith(PREFIX) for name in found)
    config: dict[str, Any] = json.loads((directory / "adapter_config.json").read_text())
    return {name.removeprefix(PREFIX): tensor for name, tensor in found.items()}, config
