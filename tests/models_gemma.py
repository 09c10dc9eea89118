"""Small Gemmas: transformers' own, and a plain one in the layout of google/gemma_pytorch.

The plain forward follows the report (Gemma Team, 2024): Llama's blocks with GELU in the place of SiLU, embeddings
scaled by the root of their width, norm weights stored minus one, and a head that is the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GemmaConfig, GemmaForCausalLM

from tests.models import Model, randomize
from tests.models_base import PlainModel, attend, may_attend, rotary_frequencies, rotate_halves, split_heads

GEMMA: dict[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 40,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
}


def tiny_gemma(seed: int = 0, **overrides: Any) -> GemmaForCausalLM:
    """A small Gemma in float32; `overrides` go to `GemmaConfig`."""
    config = GemmaConfig(**{**GEMMA, **overrides})
    config._attn_implementation = "eager"  # a config has no public setter for it
    return _norms_minus_one(randomize(GemmaForCausalLM(config), seed))


def tiny_gemma_pytorch(seed: int = 0, **overrides: Any) -> GemmaPyTorch:
    """A small Gemma in google's layout; `overrides` go to its config."""
    return _norms_minus_one(randomize(GemmaPyTorch({**GEMMA, **overrides}), seed))


def _norms_minus_one(model: Model) -> Model:
    """`randomize` draws norm weights around one; Gemma stores them minus one."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.sub_(1)
    return model


class GemmaPyTorch(PlainModel):
    """Gemma under the names of google/gemma_pytorch, q, k and v fused."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.embedder = nn.Embedding(config["vocab_size"], config["hidden_size"])
        blocks = nn.ModuleList(_Block(self.config) for _ in range(config["num_hidden_layers"]))
        self.model = nn.ModuleDict({"layers": blocks, "norm": _Norm(self.config)})

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits [batch, length, vocab] for token ids [batch, length]; the mask is zero at padding."""
        allowed = may_attend(input_ids.shape[1], attention_mask)
        x = self.embedder(input_ids) * self.config["hidden_size"] ** 0.5
        for layer in self.model.get_submodule("layers").children():
            x = layer(x, allowed)
        return functional.linear(self.model["norm"](x), self.embedder.weight)


class _Norm(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.eps = config["rms_norm_eps"]
        self.weight = nn.Parameter(torch.zeros(config["hidden_size"]))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (1 + self.weight)


class _Block(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden, inner, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.rows = [count * head_dim for count in (self.heads, self.kv_heads, self.kv_heads)]
        self.frequencies = rotary_frequencies(head_dim, 10000.0)
        self.self_attn = nn.ModuleDict(
            {
                "qkv_proj": nn.Linear(hidden, sum(self.rows), bias=False),
                "o_proj": nn.Linear(self.rows[0], hidden, bias=False),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(hidden, inner, bias=False),
                "up_proj": nn.Linear(hidden, inner, bias=False),
                "down_proj": nn.Linear(inner, hidden, bias=False),
            }
        )
        self.input_layernorm, self.post_attention_layernorm = _Norm(config), _Norm(config)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        parts = self.self_attn["qkv_proj"](self.input_layernorm(x)).split(self.rows, dim=-1)
        q, k, v = (split_heads(part, n) for part, n in zip(parts, (self.heads, *[self.kv_heads] * 2), strict=True))
        q, k = rotate_halves(q, self.frequencies), rotate_halves(k, self.frequencies)
        x = x + self.self_attn["o_proj"](attend(q, k, v, allowed))
        normed = self.post_attention_layernorm(x)
        gate = functional.gelu(self.mlp["gate_proj"](normed), approximate="tanh")
        out: Tensor = x + self.mlp["down_proj"](gate * self.mlp["up_proj"](normed))
        return out
