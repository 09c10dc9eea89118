"""The plain UNet of the latent diffusion models of the tests, under the names of the original (Rombach et al., 2022).

Four levels of ResNet blocks, and attention to a text on all but the deepest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.models_base import attend, split_heads
from tests.models_diffusion import DiffusionSizes


def conv(channels_in: int, channels_out: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)


class _ResNet(nn.Module):
    """Two normed convolutions beside a shortcut; the time's features are added between the two."""

    def __init__(self, channels_in: int, channels_out: int, time: int, groups: int) -> None:
        super().__init__()
        norms = nn.GroupNorm(groups, channels_in, eps=1e-5), nn.GroupNorm(groups, channels_out, eps=1e-5)
        self.in_layers = nn.Sequential(norms[0], nn.SiLU(), conv(channels_in, channels_out))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, channels_out))
        self.out_layers = nn.Sequential(norms[1], nn.SiLU(), nn.Dropout(0.0), conv(channels_out, channels_out))
        same = channels_in == channels_out
        self.skip_connection = nn.Identity() if same else conv(channels_in, channels_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        inner = self.in_layers(x) + self.emb_layers(time)[..., None, None]
        out: Tensor = self.skip_connection(x) + self.out_layers(inner)
        return out


class _CrossAttention(nn.Module):
    def __init__(self, dim: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k, self.to_v = (nn.Linear(context, dim, bias=False) for _ in range(2))
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in (self.to_q(x), self.to_k(context), self.to_v(context)))
        out: Tensor = self.to_out(attend(q, k, v, everywhere(q, k)))
        return out


def everywhere(q: Tensor, k: Tensor) -> Tensor:
    return torch.ones(1, 1, q.shape[-2], k.shape[-2], dtype=torch.bool)


class _GEGLU(nn.Module):
    """A linear layer whose second half gates the first (Shazeer, 2020)."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        values, gate = self.proj(x).chunk(2, dim=-1)
        out: Tensor = values * functional.gelu(gate)
        return out


class _TransformerBlock(nn.Module):
    def __init__(self, dim: int, context: int, heads: int) -> None:
        super().__init__()
        self.attn1, self.attn2 = _CrossAttention(dim, dim, heads), _CrossAttention(dim, context, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        net = nn.Sequential(_GEGLU(dim, 4 * dim), nn.Dropout(0.0), nn.Linear(4 * dim, dim))
        self.ff = nn.ModuleDict({"net": net})

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        own = self.norm1(x)
        x = x + self.attn1(own, own)
        x = x + self.attn2(self.norm2(x), text)
        out: Tensor = x + self.ff["net"](self.norm3(x))
        return out


class _SpatialTransformer(nn.Module):
    """Each pixel is a token, which attends to the other pixels and to the text."""

    def __init__(self, dim: int, sizes: DiffusionSizes) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(sizes.unet_groups, dim, eps=1e-6)
        self.proj_in, self.proj_out = conv(dim, dim, 1), conv(dim, dim, 1)
        self.transformer_blocks = nn.ModuleList([_TransformerBlock(dim, sizes.text, sizes.heads)])

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        pixels = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            pixels = block(pixels, text)
        out: Tensor = x + self.proj_out(pixels.transpose(1, 2).unflatten(2, x.shape[2:]))
        return out


class _Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0))
        return out


class UNet(nn.Module):
    """Four levels of two blocks, the way up with one block more; all but the deepest level attend to the text."""

    def __init__(self, sizes: DiffusionSizes) -> None:
        super().__init__()
        first, deepest = sizes.unet[0], sizes.unet[-1]
        time, groups, last = 4 * first, sizes.unet_groups, len(sizes.unet) - 1
        self.width = first
        self.time_embed = nn.Sequential(nn.Linear(first, time), nn.SiLU(), nn.Linear(time, time))
        blocks: list[list[nn.Module]] = [[conv(sizes.latent, first)]]
        kept, now = [first], first
        for level, channels in enumerate(sizes.unet):
            for _ in range(2):
                attention = [_SpatialTransformer(channels, sizes)] if level < last else []
                blocks.append([_ResNet(now, channels, time, groups), *attention])
                now = channels
                kept.append(now)
            if level < last:
                blocks.append([_Downsample(now)])
                kept.append(now)
        self.input_blocks = _blocks(blocks)
        middle = (_ResNet(deepest, deepest, time, groups) for _ in range(2))
        self.middle_block = nn.ModuleList([next(middle), _SpatialTransformer(deepest, sizes), next(middle)])
        blocks = []
        for level, channels in reversed([*enumerate(sizes.unet)]):
            for place in range(3):
                attention = [_SpatialTransformer(channels, sizes)] if level < last else []
                upsample = [Upsample(channels)] if level and place == 2 else []
                blocks.append([_ResNet(now + kept.pop(), channels, time, groups), *attention, *upsample])
                now = channels
        self.output_blocks = _blocks(blocks)
        self.out = nn.Sequential(nn.GroupNorm(groups, first, eps=1e-5), nn.SiLU(), conv(first, sizes.latent))

    def forward(self, x: Tensor, step: Tensor, text: Tensor) -> Tensor:
        half = self.width // 2
        angles = step[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        time = self.time_embed(torch.cat((angles.cos(), angles.sin()), dim=-1))
        kept = []
        for block in self.input_blocks:
            x = _run(block, x, time, text)
            kept.append(x)
        x = _run(self.middle_block, x, time, text)
        for block in self.output_blocks:
            x = _run(block, torch.cat((x, kept.pop()), dim=1), time, text)
        out: Tensor = self.out(x)
        return out


def _blocks(blocks: Sequence[Sequence[nn.Module]]) -> nn.ModuleList:
    return nn.ModuleList(nn.ModuleList(block) for block in blocks)


def _run(block: nn.Module, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
    for layer in block.children():
        extra = {_ResNet: (time,), _SpatialTransformer: (text,)}.get(type(layer), ())
        x = layer(x, *extra)
    return x
