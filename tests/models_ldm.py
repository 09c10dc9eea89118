"""A plain latent diffusion model under the names of the original's single file (Rombach et al., 2022).

It is written from the description of the architecture; its `state_dict` has the keys of the released checkpoints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from tests.models_base import attend, split_heads
from tests.models_diffusion import TINY, DiffusionSizes, randomize_convolutions
from tests.models_ldm_unet import UNet, Upsample, conv, everywhere


class LatentDiffusion(nn.Module):
    """The three components under the names of the original's single file."""

    def __init__(self, sizes: DiffusionSizes) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"diffusion_model": UNet(sizes)})
        self.first_stage_model = _Autoencoder(sizes)
        self.cond_stage_model = nn.ModuleDict({"transformer": nn.ModuleDict({"text_model": _TextEncoder(sizes)})})

    @classmethod
    def from_pretrained(cls, directory: Path) -> Self:
        """Load the weights of the tiny model strictly."""
        ldm = cls(TINY)
        ldm.load_state_dict(load_file(directory / "model.safetensors"))
        return ldm.eval()

    def save_pretrained(self, directory: Path) -> None:
        """Save it as a single file."""
        directory.mkdir()
        save_file(
            {key: value.contiguous() for key, value in self.state_dict().items()}, directory / "model.safetensors"
        )

    def denoise(self, latents: Tensor, step: Tensor, text: Tensor) -> Tensor:
        """The noise [batch, latent, height, width] in latents, at a step [batch], for a text [batch, tokens, text]."""
        noise: Tensor = self.model["diffusion_model"](latents, step, text)
        return noise

    def embed(self, tokens: Tensor) -> Tensor:
        """Features [batch, tokens, text] of tokens [batch, tokens]."""
        text: Tensor = self.cond_stage_model["transformer"]["text_model"](tokens)
        return text

    def encode(self, image: Tensor) -> Tensor:
        """Mean and log variance [batch, 2 * latent, height / 8, width / 8] of the code of an image."""
        return self.first_stage_model.encode(image)

    def decode(self, latents: Tensor) -> Tensor:
        """The image [batch, 3, 8 * height, 8 * width] of a code."""
        return self.first_stage_model.decode(latents)


def tiny_ldm(seed: int = 0) -> LatentDiffusion:
    """A small model with random weights."""
    return randomize_convolutions(LatentDiffusion(TINY), seed)


class _PlainResNet(nn.Module):
    """The autoencoder's, which knows of no time."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(groups, size, eps=1e-6) for size in (channels_in, channels_out))
        self.conv1, self.conv2 = conv(channels_in, channels_out), conv(channels_out, channels_out)
        if channels_in != channels_out:
            self.nin_shortcut = conv(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(functional.silu(self.norm1(x)))
        inner = self.conv2(functional.silu(self.norm2(inner)))
        out: Tensor = inner + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)
        return out


class _PixelAttention(nn.Module):
    """One head over all pixels, by convolutions of one pixel."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (conv(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (layer(normed).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        pixels = attend(q, k, v, everywhere(q, k)).transpose(1, 2).unflatten(2, x.shape[2:])
        out: Tensor = x + self.proj_out(pixels)
        return out


class _Middle(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = (_PlainResNet(channels, channels, groups) for _ in range(2))
        self.attn_1 = _PixelAttention(channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class _Encoder(nn.Module):
    def __init__(self, sizes: DiffusionSizes) -> None:
        super().__init__()
        groups, now, deepest = sizes.vae_groups, sizes.vae[0], sizes.vae[-1]
        self.conv_in = conv(3, now)
        self.down = nn.ModuleList()
        for channels in sizes.vae:
            level = nn.Module()
            level.block = nn.ModuleList([_PlainResNet(now, channels, groups), _PlainResNet(channels, channels, groups)])
            now = channels
            if len(self.down) < len(sizes.vae) - 1:
                level.downsample = nn.ModuleDict({"conv": nn.Conv2d(now, now, 3, stride=2)})
            self.down.append(level)
        self.mid = _Middle(deepest, groups)
        self.norm_out = nn.GroupNorm(groups, deepest, eps=1e-6)
        self.conv_out = conv(deepest, 2 * sizes.latent)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            for block in level.block:
                x = block(x)
            if hasattr(level, "downsample"):
                x = level.downsample["conv"](functional.pad(x, (0, 1, 0, 1)))
        out: Tensor = self.conv_out(functional.silu(self.norm_out(self.mid(x))))
        return out


class _Decoder(nn.Module):
    def __init__(self, sizes: DiffusionSizes) -> None:
        super().__init__()
        groups, now, first = sizes.vae_groups, sizes.vae[-1], sizes.vae[0]
        self.conv_in = conv(sizes.latent, now)
        self.mid = _Middle(now, groups)
        levels: list[nn.Module] = []
        for channels in reversed(sizes.vae):
            level = nn.Module()
            level.block = nn.ModuleList(_PlainResNet(before, channels, groups) for before in (now, channels, channels))
            now = channels
            if len(levels) < len(sizes.vae) - 1:
                level.upsample = Upsample(now)
            levels.append(level)
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = nn.GroupNorm(groups, first, eps=1e-6)
        self.conv_out = conv(first, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed([*self.up]):
            for block in level.block:
                x = block(x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        out: Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return out


class _Autoencoder(nn.Module):
    def __init__(self, sizes: DiffusionSizes) -> None:
        super().__init__()
        self.encoder, self.decoder = _Encoder(sizes), _Decoder(sizes)
        self.quant_conv = conv(2 * sizes.latent, 2 * sizes.latent, 1)
        self.post_quant_conv = conv(sizes.latent, sizes.latent, 1)

    def encode(self, image: Tensor) -> Tensor:
        """Mean and log variance [batch, 2 * latent, height / 8, width / 8] of an image's code."""
        moments: Tensor = self.quant_conv(self.encoder(image))
        return moments

    def decode(self, latents: Tensor) -> Tensor:
        """The image [batch, 3, height, width]."""
        image: Tensor = self.decoder(self.post_quant_conv(latents))
        return image


class _TextEncoder(nn.Module):
    """CLIP's (Radford et al., 2021): pre-norm, causal, with the sigmoid's approximation of GELU."""

    def __init__(self, sizes: DiffusionSizes) -> None:
        super().__init__()
        dim, self.heads = sizes.text, sizes.text_heads
        tokens, positions = nn.Embedding(sizes.vocab, dim), nn.Embedding(sizes.text_length, dim)
        self.embeddings = nn.ModuleDict({"token_embedding": tokens, "position_embedding": positions})
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(_layer(sizes) for _ in range(sizes.text_layers))})
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = self.embeddings["token_embedding"](tokens) + self.embeddings["position_embedding"].weight[:length]
        before = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        for layer in self.encoder["layers"]:
            own, normed = layer["self_attn"], layer["layer_norm1"](x)
            q, k, v = (split_heads(own[f"{name}_proj"](normed), self.heads) for name in "qkv")
            x = x + own["out_proj"](attend(q, k, v, before))
            inner = layer["mlp"]["fc1"](layer["layer_norm2"](x))
            x = x + layer["mlp"]["fc2"](inner * torch.sigmoid(1.702 * inner))
        out: Tensor = self.final_layer_norm(x)
        return out


def _layer(sizes: DiffusionSizes) -> nn.ModuleDict:
    dim, inner = sizes.text, sizes.text_inner
    return nn.ModuleDict(
        {
            "self_attn": nn.ModuleDict({f"{name}_proj": nn.Linear(dim, dim) for name in ("q", "k", "v", "out")}),
            "mlp": nn.ModuleDict({"fc1": nn.Linear(dim, inner), "fc2": nn.Linear(inner, dim)}),
            "layer_norm1": nn.LayerNorm(dim),
            "layer_norm2": nn.LayerNorm(dim),
        }
    )
