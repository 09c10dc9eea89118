"""Tenny, the reference model: one transformer, two blocks, one set of parameter names.

The classic block is the post-norm encoder of "Attention Is All You Need" (Vaswani et al., 2017), bidirectional. The
parallel block is Phi's: causal, attention and feed-forward side by side, partial rotary positions. Either loads a file
written for the other, since names and shapes are the same; only the function differs. Read top to bottom:
config, positions, attention, layer, model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")  # two names in config.json for one function


@dataclass(frozen=True, slots=True, kw_only=True)
class TennyConfig:
    """Sizes, and which block to compute.

    Raises:
        ValueError: the sizes contradict each other, or the block can't have them.
    """

    vocab_size: int
    embed_dim: int
    num_heads: int
    num_layers: int
    ff_dim: int
    num_key_value_heads: int | None = None
    """Heads of keys and values, each shared by a group of query heads; None means `num_heads`."""
    max_len: int = 5000
    layer_norm_eps: float = 1e-5
    block: Literal["classic", "parallel"] = "classic"
    rope_theta: float = 10000.0
    """Base of the rotary frequencies; parallel block only."""
    partial_rotary_factor: float = 0.5
    """Share of each head that is rotated; parallel block only."""

    def __post_init__(self) -> None:
        if self.block not in {"classic", "parallel"}:
            raise ValueError(f"block is {self.block!r}, expected 'classic' or 'parallel'")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        if self.num_heads % self.kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_key_value_heads {self.kv_heads}")
        if self.block == "classic" and self.kv_heads != self.num_heads:
            raise ValueError(
                f"the classic block's nn.MultiheadAttention knows no grouped-query attention, but num_heads is "
                f"{self.num_heads} and num_key_value_heads {self.kv_heads}: set block to 'parallel'"
            )
        if self.block == "parallel" and self.rotary_dim % 2:
            raise ValueError(f"partial_rotary_factor {self.partial_rotary_factor} rotates {self.rotary_dim} features")

    @property
    def kv_heads(self) -> int:
        """Number of key heads, which is the number of value heads."""
        return self.num_key_value_heads or self.num_heads

    @property
    def head_dim(self) -> int:
        """Features of one head."""
        return self.embed_dim // self.num_heads

    @property
    def rotary_dim(self) -> int:
        """Features of one head that are rotated; the rest passes by. Rounded down, as transformers does."""
        return int(self.head_dim * self.partial_rotary_factor)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read a config.json's content; keys that Tenny doesn't know (carried over from another model) are ignored.

        The rotary settings may be top-level keys, or in `rope_parameters` as transformers 5 writes them.

        Raises:
            ValueError: another model's config, a key missing, or a setting that changes the function and that
                Tenny doesn't compute.
        """
        if values.get("model_type", "tenny") != "tenny":
            raise ValueError(f"model_type is {values['model_type']!r}, expected 'tenny': convert the checkpoint first")
        rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
        known = {field.name for field in fields(cls)}
        given = {key: value for key, value in (dict(values) | dict(rope)).items() if key in known}
        if missing := [field.name for field in fields(cls) if field.default is MISSING and field.name not in given]:
            raise ValueError(f"the config lacks {', '.join(missing)}")
        config = cls(**given)
        if config.block == "parallel":
            rope_type = rope.get("rope_type", rope.get("type", "default"))
            activation = values.get("hidden_act", TANH_GELU[0])
            if rope_type != "default":
                raise ValueError(f"rope_type is {rope_type!r}; Tenny computes 'default' alone")
            if activation not in TANH_GELU:
                raise ValueError(f"hidden_act is {activation!r}; Tenny's parallel block computes tanh-GELU alone")
        return config

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Read config.json, given its path or its directory."""
        path = Path(path)
        return cls.from_dict(json.loads((path / "config.json" if path.is_dir() else path).read_text("utf-8")))

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds; `from_dict` gives the same config back."""
        return {"model_type": "tenny", **asdict(self)}


def sinusoidal_positions(length: int, dim: int) -> Tensor:
    """Positions as float32 [length, 1, dim]: sine at even features, cosine at odd ones.

    Source: Vaswani et al., 2017, section 3.5. Computed in float64: in float32, large angles lose four digits.
    """
    position = torch.arange(length, dtype=torch.float64).unsqueeze(1)
    angles = position / 10000.0 ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    table = torch.empty(length, 1, dim, dtype=torch.float64)
    table[:, 0, 0::2] = angles.sin()
    table[:, 0, 1::2] = angles[:, : dim // 2].cos()
    return table.float()


def rotary_positions(config: TennyConfig, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, rotary_dim / 2], in `like`'s dtype and on its device.

    Source: Su et al., 2021, "RoFormer", equation 15. Angles are float32 whatever the dtype.
    """
    dim = config.rotary_dim
    frequencies = 1.0 / config.rope_theta ** (torch.arange(0, dim, 2, device=like.device).float() / dim)
    angles = torch.outer(torch.arange(length, device=like.device).float(), frequencies)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first features of each head [..., length, head_dim], feature j paired with j + rotary_dim / 2."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


class GroupedQueryAttention(nn.Module):
    """Causal attention with rotary positions, with the parameter names of `nn.MultiheadAttention`.

    The rows of in_proj are q, then k, then v: [embed_dim + 2 * kv_heads * head_dim, embed_dim].
    """

    def __init__(self, config: TennyConfig) -> None:
        super().__init__()
        self.config = config
        self.rows = [heads * config.head_dim for heads in (config.num_heads, config.kv_heads, config.kv_heads)]
        self.in_proj_weight = nn.Parameter(torch.empty(sum(self.rows), config.embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(sum(self.rows)))
        self.out_proj = nn.Linear(config.embed_dim, config.embed_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, may_attend: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend within `x` [batch, length, embed_dim] where `may_attend` [batch or 1, 1, query, key] is true."""
        batch, length, _ = x.shape
        parts = torch.split(functional.linear(x, self.in_proj_weight, self.in_proj_bias), self.rows, dim=-1)
        # [batch, length, heads * head_dim] to [batch, heads, length, head_dim]
        q, k, v = (part.view(batch, length, -1, self.config.head_dim).transpose(1, 2) for part in parts)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = self.config.num_heads // self.config.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)

        scores = q @ k.transpose(-2, -1) * self.config.head_dim**-0.5
        # The lowest number and not -inf: a padding token that may attend to nothing then gives no NaN.
        scores = scores.masked_fill(~may_attend, torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(x.dtype)
        out: Tensor = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """Two linear layers, with ReLU (classic) or tanh-GELU (parallel) between them."""

    def __init__(self, config: TennyConfig) -> None:
        super().__init__()
        self.linear1 = nn.Linear(config.embed_dim, config.ff_dim)
        self.linear2 = nn.Linear(config.ff_dim, config.embed_dim)
        self.activation = nn.ReLU() if config.block == "classic" else nn.GELU(approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., embed_dim] to the same shape."""
        out: Tensor = self.linear2(self.activation(self.linear1(x)))
        return out


class Layer(nn.Module):
    """The parameters of one layer; the two blocks differ in what they compute from them."""

    def __init__(self, config: TennyConfig, attention: nn.Module) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({"multihead_attn": attention})
        self.ff = FeedForward(config)
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)


class ClassicLayer(Layer):
    """Post-norm encoder layer: attend, add, normalize; feed forward, add, normalize."""

    def __init__(self, config: TennyConfig) -> None:
        super().__init__(config, nn.MultiheadAttention(config.embed_dim, config.num_heads, batch_first=True))

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Map `x` [batch, length, embed_dim] to the same shape; `padding` [batch, length] is true where ignored."""
        attended, _ = self.self_attn["multihead_attn"](x, x, x, key_padding_mask=padding, need_weights=False)
        x = self.norm1(x + attended)
        out: Tensor = self.norm2(x + self.ff(x))
        return out


class ParallelLayer(Layer):
    """Phi's layer: attention and feed-forward both read the layer's input, and all three are added."""

    def __init__(self, config: TennyConfig) -> None:
        super().__init__(config, GroupedQueryAttention(config))

    def forward(self, x: Tensor, may_attend: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map `x` [batch, length, embed_dim] to the same shape; the rest is as in `GroupedQueryAttention`."""
        attended = self.self_attn["multihead_attn"](self.norm1(x), may_attend, cos, sin)
        out: Tensor = attended + self.ff(self.norm2(x)) + x
        return out


class Tenny(nn.Module):
    """Token ids to logits. `config.block` says how; the names and shapes of the parameters are the same either way."""

    def __init__(self, config: TennyConfig) -> None:
        super().__init__()
        self.config = config
        layer = ClassicLayer if config.block == "classic" else ParallelLayer
        self.pos_encoder = nn.Module()
        self.pos_encoder.register_buffer("pe", sinusoidal_positions(config.max_len, config.embed_dim))
        self.encoder = nn.Embedding(config.vocab_size, config.embed_dim)
        self.transformer_encoder = nn.Module()
        self.transformer_encoder.layers = nn.ModuleList(layer(config) for _ in range(config.num_layers))
        self.transformer_encoder.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.embed_dim, config.vocab_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Compute logits [batch, length, vocab_size].

        Args:
            input_ids: token ids [batch, length].
            attention_mask: [batch, length], zero at padding, left or right. Positions count padding too, as in Phi.

        Raises:
            ValueError: more tokens than the classic block has positions.
        """
        context: tuple[Tensor | None, ...]
        length = input_ids.shape[1]
        x = self.encoder(input_ids)
        if self.config.block == "classic":
            if length > self.config.max_len:
                raise ValueError(f"{length} tokens, but max_len is {self.config.max_len}")
            positions = self.pos_encoder.get_buffer("pe")[:length].transpose(0, 1)
            x = x * math.sqrt(self.config.embed_dim) + positions.to(x.dtype)
            context = (None if attention_mask is None else attention_mask == 0,)
        else:
            may_attend = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()[None, None]
            if attention_mask is not None:
                may_attend = may_attend & (attention_mask[:, None, None, :] != 0)
            context = (may_attend, *rotary_positions(self.config, length, like=x))
        for layer in self.transformer_encoder.get_submodule("layers").children():
            x = layer(x, *context)
        logits: Tensor = self.decoder(self.transformer_encoder.get_submodule("norm")(x))
        return logits

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> Self:
        """Load config.json and model.safetensors, or the shards that model.safetensors.index.json lists.

        Args:
            directory: where the files are.
            dtype: of the parameters; None keeps what is stored. The sinusoidal positions stay as stored.
            device: where the weights go, tensor by tensor, so that they are never in memory twice.

        Raises:
            FileNotFoundError: a file is missing.
            RuntimeError: the checkpoint's keys or shapes are not exactly the model's.
            ValueError: the config is not one that Tenny can compute.
        """
        directory = Path(directory)
        with torch.device("meta"):
            model = cls(TennyConfig.from_json(directory))
        parameters = dict(model.named_parameters())
        state: dict[str, Tensor] = {}
        for file in shard_files(directory):
            with safe_open(file, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 -- it is not a mapping
                    state[name] = shard.get_tensor(name).to(device, dtype if name in parameters else None)
        model.load_state_dict(state, strict=True, assign=True)
        return model.eval()


def shard_files(directory: Path) -> list[Path]:
    """Every safetensors file of a checkpoint, by its index where it has one."""
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return [directory / "model.safetensors"]
    return [directory / name for name in sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))]
