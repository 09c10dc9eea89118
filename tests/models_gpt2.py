"""Small GPT-2s: transformers' own, and a plain one in nanoGPT's layout.

The plain forward follows the paper (Radford et al., 2019): learned positions, pre-norm blocks with LayerNorm and GELU,
q, k and v from one linear layer, and a head that is the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from tests.models import randomize
from tests.models_base import PlainModel, attend, may_attend, split_heads

TINY_GPT2: dict[str, Any] = {"vocab_size": 251, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 512}
NANO_GPT: dict[str, Any] = {
    "block_size": 512,
    "vocab_size": 259,
    "n_layer": 3,
    "n_head": 5,
    "n_embd": 40,
    "dropout": 0.0,
    "bias": True,
}


def tiny_gpt2(seed: int = 0, **overrides: Any) -> GPT2LMHeadModel:
    """A small GPT-2 in float32; `overrides` go to `GPT2Config`."""
    config = GPT2Config(**{**TINY_GPT2, **overrides})
    config._attn_implementation = "eager"  # a config has no public setter for it
    model = randomize(GPT2LMHeadModel(config), seed)
    for block in model.transformer.h:
        # Stored as [in, out], so `randomize` scaled them by the wrong side.
        for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            layer.weight.data *= (layer.weight.shape[1] / layer.weight.shape[0]) ** 0.5
    return model


def tiny_nano_gpt(seed: int = 0, **overrides: Any) -> NanoGPT:
    """A small nanoGPT; `overrides` go to its config."""
    return randomize(NanoGPT({**NANO_GPT, **overrides}), seed)


class NanoGPT(PlainModel):
    """GPT-2 under nanoGPT's names. It has the exact GELU, unless the config carries GPT-2's `activation_function`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        dim = config["n_embd"]
        approximate = "tanh" if config.get("activation_function") == "gelu_new" else "none"
        parts = {
            "wte": nn.Embedding(config["vocab_size"], dim),
            "wpe": nn.Embedding(config["block_size"], dim),
            "h": nn.ModuleList(_Block(dim, config["n_head"], approximate) for _ in range(config["n_layer"])),
            "ln_f": nn.LayerNorm(dim),
        }
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = nn.Linear(dim, config["vocab_size"], bias=False)
        self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits [batch, length, vocab] for token ids [batch, length]; the mask is zero at padding."""
        length = input_ids.shape[1]
        allowed = may_attend(length, attention_mask)
        x = self.transformer["wte"](input_ids) + self.transformer["wpe"](torch.arange(length))
        for block in self.transformer.get_submodule("h").children():
            x = block(x, allowed)
        logits: Tensor = self.lm_head(self.transformer["ln_f"](x))
        return logits


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, approximate: str) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(dim, 3 * dim), "c_proj": nn.Linear(dim, dim)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(dim, 4 * dim), "c_proj": nn.Linear(4 * dim, dim)})
        self.gelu = nn.GELU(approximate=approximate)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.attn["c_attn"](self.ln_1(x)).chunk(3, dim=-1))
        x = x + self.attn["c_proj"](attend(q, k, v, allowed))
        out: Tensor = x + self.mlp["c_proj"](self.gelu(self.mlp["c_fc"](self.ln_2(x))))
        return out
