"""Small OPTs: transformers' own, and a plain one in metaseq's layout.

The plain forward follows the paper (Zhang et al., 2022): learned positions from 2 on, ReLU, a head that is the
embedding, and norms before each block, or after it as in OPT-350m, whose embedding is narrower than the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import OPTConfig, OPTForCausalLM

from tests.models import randomize
from tests.models_base import PlainModel, attend, may_attend, split_heads

TINY_OPT: dict[str, Any] = {
    "vocab_size": 251,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "ffn_dim": 80,
    "max_position_embeddings": 200,
    "num_attention_heads": 6,
}
METASEQ: dict[str, Any] = {
    "activation_fn": "relu",
    "decoder_attention_heads": 5,
    "decoder_embed_dim": 40,
    "decoder_ffn_embed_dim": 72,
    "decoder_input_dim": 40,
    "decoder_layers": 3,
    "decoder_normalize_before": True,
    "decoder_output_dim": 40,
    "max_target_positions": 200,
    "share_decoder_input_output_embed": True,
    "vocab_size": 257,
}


def tiny_opt(seed: int = 0, **overrides: Any) -> OPTForCausalLM:
    """A small OPT in float32; `overrides` go to `OPTConfig`."""
    config = OPTConfig(**{**TINY_OPT, **overrides})
    config._attn_implementation = "eager"  # a config has no public setter for it
    return randomize(OPTForCausalLM(config), seed)


def tiny_metaseq(seed: int = 0, **overrides: Any) -> Metaseq:
    """A small OPT in metaseq's layout; `overrides` go to its config."""
    return randomize(Metaseq({**METASEQ, **overrides}), seed)


class Metaseq(PlainModel):
    """OPT under metaseq's names, with k, v and q fused in this order."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        dim, width = config["decoder_embed_dim"], config.get("decoder_input_dim") or config["decoder_embed_dim"]
        self.before = config.get("decoder_normalize_before", True)
        parts: dict[str, nn.Module] = {
            "embed_tokens": nn.Embedding(config["vocab_size"], width),
            "embed_positions": nn.Embedding(config["max_target_positions"] + 2, dim),
            "layers": nn.ModuleList(_Layer(self.config, before=self.before) for _ in range(config["decoder_layers"])),
        }
        if width != dim:
            parts["project_in_dim"] = nn.Linear(width, dim, bias=False)
            parts["project_out_dim"] = nn.Linear(dim, width, bias=False)
        if self.before:
            parts["layer_norm"] = nn.LayerNorm(dim)
        self.decoder = nn.ModuleDict(parts)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits [batch, length, vocab] for token ids [batch, length]; positions count from the first token."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        allowed = may_attend(input_ids.shape[1], attention_mask)
        x = self.decoder["embed_tokens"](input_ids)
        if "project_in_dim" in self.decoder:
            x = self.decoder["project_in_dim"](x)
        x = x + self.decoder["embed_positions"](mask.cumsum(dim=1) * mask + 1)
        for layer in self.decoder.get_submodule("layers").children():
            x = layer(x, allowed)
        if self.before:
            x = self.decoder["layer_norm"](x)
        if "project_out_dim" in self.decoder:
            x = self.decoder["project_out_dim"](x)
        return functional.linear(x, self.decoder.get_parameter("embed_tokens.weight"))


class _Layer(nn.Module):
    def __init__(self, config: dict[str, Any], *, before: bool) -> None:
        super().__init__()
        dim, inner = config["decoder_embed_dim"], config["decoder_ffn_embed_dim"]
        self.before = before
        self.heads = config["decoder_attention_heads"]
        self.self_attn = nn.ModuleDict({"qkv_proj": nn.Linear(dim, 3 * dim), "out_proj": nn.Linear(dim, dim)})
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, inner), nn.Linear(inner, dim)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        if self.before:
            x = x + self.attention(self.self_attn_layer_norm(x), allowed)
            return x + self.feed_forward(self.final_layer_norm(x))
        x = self.self_attn_layer_norm(x + self.attention(x, allowed))
        out: Tensor = self.final_layer_norm(x + self.feed_forward(x))
        return out

    def attention(self, x: Tensor, allowed: Tensor) -> Tensor:
        k, v, q = (split_heads(part, self.heads) for part in self.self_attn["qkv_proj"](x).chunk(3, dim=-1))
        out: Tensor = self.self_attn["out_proj"](attend(q, k, v, allowed))
        return out

    def feed_forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(functional.relu(self.fc1(x)))
        return out
