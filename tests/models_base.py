"""What the plain reference models of the tests share: files in and out, causal attention, rotary positions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

CONFIG_NAMES = ("config.json", "params.json", "model_config.yaml", "bert_config.json")


class PlainModel(nn.Module):
    """A model that is built from a config and loads its own checkpoint; its module names are the keys' prefixes."""

    config_name = "config.json"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Load the config (by its own name, else config.json) and every file with weights beside it, strictly."""
        directory = Path(directory)
        named = directory / cls.config_name
        model = cls(json.loads((named if named.exists() else directory / "config.json").read_text()))
        state: dict[str, Tensor] = {}
        for tensors in read_files(directory).values():
            state |= tensors
        model.load_state_dict(state, strict=True, assign=True)
        return model.eval()

    def save_pretrained(self, directory: str | Path, max_shard_size: str = "5GB") -> None:
        """Write the config and safetensors shards, every key on its own even where two parameters are one."""
        write_checkpoint(directory, self.config, self.state_dict(), max_shard_size)


def read_files(directory: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of each file in a directory, by the libraries that define the formats.

    A component's tensors have its directory and a colon before their names.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for file in sorted(directory.rglob("*.safetensors")):
        place = file.relative_to(directory)
        component = f"{place.parent.as_posix()}:" if place.parent.name else ""
        with safe_open(file, framework="pt") as shard:
            names = shard.keys()
            found[place.as_posix()] = {f"{component}{name}": shard.get_tensor(name) for name in names}
    for file in sorted(directory.glob("*.pth")):
        found[file.name] = torch.load(file, weights_only=True)
    for file in sorted(directory.glob("*.npz")):
        with np.load(file, allow_pickle=False) as arrays:
            found[file.name] = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return found


def write_checkpoint(
    directory: str | Path, config: Mapping[str, Any], state: Mapping[str, Tensor], max_shard_size: str = "5GB"
) -> Path:
    """Write config.json and safetensors shards."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
    # A copy of each tensor, since the writer would leave out all keys but one of those that share memory.
    state = {key: value.detach().clone().contiguous() for key, value in state.items()}
    save_torch_state_dict(state, directory, max_shard_size=max_shard_size)
    return directory


class RMSNorm(nn.Module):
    """Scale to a root mean square of one, computed in float32 (Zhang and Sennrich, 2019)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def may_attend(length: int, attention_mask: Tensor | None, window: int | None = None) -> Tensor:
    """Which key each query may see, [batch or 1, 1, query, key]: none after it, none of the padding.

    `window` is how many keys it sees at most, its own position among them.
    """
    position = torch.arange(length)
    distance = position[:, None] - position[None, :]
    allowed = (distance >= 0) & (distance < (window or length))
    allowed = allowed[None, None]
    return allowed if attention_mask is None else allowed & (attention_mask[:, None, None, :] != 0)


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Attention for [batch, heads, length, features]; fewer k and v heads than q heads are shared by groups of them."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    # The lowest number and not -inf: padding that may see nothing then gives no NaN.
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    out = scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype) @ v
    return out.transpose(1, 2).flatten(2)


def rotary_frequencies(dim: int, theta: float) -> Tensor:
    """Radians that each pair of `dim` features turns by from one position to the next, [dim / 2]."""
    return 1 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def rotate_pairs(x: Tensor, frequencies: Tensor) -> Tensor:
    """Rotary positions of [batch, heads, length, features], features 2j and 2j + 1 being the pair.

    Source: Su et al., 2021, "RoFormer", equation 15: each pair is a complex number, turned by its angle.
    """
    angles = torch.outer(torch.arange(x.shape[-2], dtype=torch.float32), frequencies)
    turn = torch.polar(torch.ones_like(angles), angles)
    turned = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous()) * turn
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def rotate_halves(x: Tensor, frequencies: Tensor) -> Tensor:
    """The same with feature j and feature j + features / 2 as the pair."""
    pairs = x.unflatten(-1, (2, -1)).transpose(-2, -1).flatten(-2)
    return rotate_pairs(pairs, frequencies).unflatten(-1, (-1, 2)).transpose(-2, -1).flatten(-2)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[batch, length, heads * features] to [batch, heads, length, features]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """SiLU of the gate, times up (Shazeer, 2020)."""
    return functional.silu(gate) * up
