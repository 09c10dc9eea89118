"""Small vision transformers: transformers' own, and a plain one under timm's names (Dosovitskiy et al., 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import ViTConfig, ViTForImageClassification

from tests.models import randomize
from tests.models_base import PlainModel, attend, split_heads

TINY_VIT: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "image_size": [24, 40],
    "patch_size": 8,
    "num_channels": 2,
    "num_labels": 7,
    "layer_norm_eps": 1e-5,
}
TIMM_VIT: dict[str, Any] = {
    "img_size": [32, 24],
    "patch_size": 8,
    "in_chans": 3,
    "num_classes": 5,
    "embed_dim": 40,
    "depth": 3,
    "num_heads": 5,
    "mlp_ratio": 1.8,
}


def tiny_vit(seed: int = 0, **overrides: Any) -> ViTForImageClassification:
    """A small ViT with a classifier, in float32; `overrides` go to `ViTConfig`."""
    config = ViTConfig(**{**TINY_VIT, **overrides})
    config._attn_implementation = "eager"  # a config has no public setter for it
    return randomize(ViTForImageClassification(config), seed)


def tiny_timm_vit(seed: int = 0, **overrides: Any) -> TimmViT:
    """A small ViT under timm's names; `overrides` go to its config."""
    return randomize(TimmViT({**TIMM_VIT, **overrides}), seed)


class TimmViT(PlainModel):
    """ViT under timm's names, q, k and v fused; the config is what timm's `VisionTransformer` takes."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        dim, patch, eps = config["embed_dim"], config["patch_size"], config.get("norm_eps", 1e-6)
        patches = config["img_size"][0] // patch * (config["img_size"][1] // patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, dim))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(config["in_chans"], dim, patch, stride=patch)})
        self.blocks = nn.ModuleList(_Block(self.config, eps) for _ in range(config["depth"]))
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.head = nn.Linear(dim, config["num_classes"])

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits [batch, classes] for images [batch, channels, height, width]."""
        x = self.patch_embed["proj"](pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


class _Block(nn.Module):
    def __init__(self, config: dict[str, Any], eps: float) -> None:
        super().__init__()
        dim, inner = config["embed_dim"], int(config["embed_dim"] * config["mlp_ratio"])
        self.heads = config["num_heads"]
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, inner), "fc2": nn.Linear(inner, dim)})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.attn["qkv"](self.norm1(x)).chunk(3, dim=-1))
        everywhere = torch.ones(1, 1, x.shape[1], x.shape[1], dtype=torch.bool)
        x = x + self.attn["proj"](attend(q, k, v, everywhere))
        out: Tensor = x + self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(x))))
        return out
