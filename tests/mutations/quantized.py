"""A Llama with q and k in 8 bits: integers and a scale for each row, in two orders of the rotary features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tests.models_base import PlainModel
from tests.models_llama import META_LLAMA, MetaLlama, tiny_meta_llama


class QuantizedLinear(nn.Module):
    """Rows of 8-bit integers [out, in], each with its scale [out]."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(rows, columns, dtype=torch.int8))
        self.scale = nn.Parameter(torch.ones(rows))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.get_buffer("weight").to(x.dtype) * self.scale.to(x.dtype)[:, None])


class QuantizedPairs(MetaLlama):
    """Turns neighbouring pairs of features, as Meta's Llama does."""

    # As safetensors with a config.json, which hold its integers; torch.save's files are the base class's.
    save_pretrained = PlainModel.save_pretrained
    config_name = PlainModel.config_name

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        for layer in self.layers.children():
            attention: Any = layer.get_submodule("attention")
            for name in ("wq", "wk"):
                linear: Any = getattr(attention, name)
                setattr(attention, name, QuantizedLinear(linear.in_features, linear.out_features))


class QuantizedHalves(QuantizedPairs):
    """Turns feature j with feature j + half, as transformers does: the rows come out in Meta's order, then as there."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        for layer in self.layers.children():
            attention: Any = layer.get_submodule("attention")
            attention.wq.register_forward_hook(_to_pairs(attention.heads))
            attention.wk.register_forward_hook(_to_pairs(attention.kv_heads))


def _to_pairs(heads: int) -> Any:
    def hook(_: nn.Module, __: tuple[Any, ...], out: Tensor) -> Tensor:
        return out.unflatten(-1, (heads, 2, -1)).transpose(-1, -2).flatten(-3)

    return hook


def tiny_quantized(seed: int = 0) -> QuantizedPairs:
    """A small one, with rows of very different sizes, so that a scale at the wrong row shows."""
    plain = tiny_meta_llama(seed, n_kv_heads=3)
    model = QuantizedPairs({**META_LLAMA, "n_kv_heads": 3, "model_type": "test_pairs"})
    generator = torch.Generator().manual_seed(seed)
    state = plain.state_dict()
    for key in [key for key in state if ".wq." in key or ".wk." in key]:
        rows = state[key] * (0.5 + torch.rand(len(state[key]), 1, generator=generator))
        scale = rows.abs().amax(1) / 127
        state[key] = (rows / scale[:, None]).round().to(torch.int8)
        state[key.replace("weight", "scale")] = scale
    model.load_state_dict(state, strict=True)
    return model.eval()
