"""Small models with weights that can't hide an error: sizes all different, no zeros, no ones, nothing symmetric."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PhiConfig, PhiForCausalLM

from mappings.tenny import Tenny, TennyConfig
from tests.models_base import PlainModel, attend, may_attend

Model = TypeVar("Model", bound=nn.Module)

TINY_PHI: dict[str, Any] = {
    "vocab_size": 251,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "partial_rotary_factor": 0.5,
    "max_position_embeddings": 1024,
}

# What config.json of microsoft/phi-2 held in its first release (model_type "phi-msft"), less the sizes.
# n_inner null means 4 * n_embd, n_head_kv null means n_head.
MIXFORMER_CONFIG: dict[str, Any] = {
    "activation_function": "gelu_new",
    "architectures": ["PhiForCausalLM"],
    "attn_pdrop": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_phi.PhiConfig",
        "AutoModelForCausalLM": "modeling_phi.PhiForCausalLM",
    },
    "embd_pdrop": 0.0,
    "flash_attn": False,
    "flash_rotary": False,
    "fused_dense": False,
    "img_processor": None,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "phi-msft",
    "n_head_kv": None,
    "n_inner": None,
    "resid_pdrop": 0.1,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.35.2",
}


def randomize(model: Model, seed: int) -> Model:
    """Give every parameter values that matter: swap, drop or mix up any two of them and the logits change.

    Matrices are scaled so that attention is far from uniform. Biases and norm weights are at least 0.1 away from zero
    and from one, since those two are what a forgotten bias or norm would look like.
    """
    generator = torch.Generator().manual_seed(seed)

    def away_from_zero(shape: torch.Size) -> Tensor:
        sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
        return sign * (0.1 + 0.5 * torch.rand(shape, generator=generator))

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                values = away_from_zero(parameter.shape)
            elif parameter.dim() == 1:
                values = 1 + away_from_zero(parameter.shape)
            else:
                values = torch.randn(parameter.shape, generator=generator) * 1.5 / parameter.shape[-1] ** 0.5
            parameter.copy_(values)
    return model.eval()


def tiny_phi(seed: int = 0, **overrides: Any) -> PhiForCausalLM:
    """A small Phi in float32, in eval mode, with eager attention; `overrides` go to `PhiConfig`.

    `num_key_value_heads=2` gives grouped-query attention; `num_hidden_layers`, `vocab_size` and so on as wished.
    Save it with `save_pretrained(directory, max_shard_size="40KB")` to get several shards.
    """
    config = PhiConfig(**{**TINY_PHI, **overrides})
    config._attn_implementation = "eager"  # a config has no public setter for it
    return randomize(PhiForCausalLM(config), seed)


def tiny_tenny(seed: int = 0, **overrides: Any) -> Tenny:
    """A small Tenny with Phi's block, whose two norms of a layer hold the same, as in a Phi."""
    sizes = {"vocab_size": 251, "embed_dim": 48, "num_heads": 6, "num_layers": 3, "ff_dim": 80, "block": "parallel"}
    tenny = randomize(Tenny(TennyConfig(**{**sizes, "num_key_value_heads": 2, **overrides})), seed)
    state = tenny.state_dict()
    copies = {key: state[key.replace(".norm2.", ".norm1.")] for key in state if ".norm2." in key}
    tenny.load_state_dict(state | copies)
    return tenny


def mixformer_config(**overrides: Any) -> dict[str, Any]:
    """config.json of Phi-2's first release, at `TINY_PHI`'s sizes."""
    sizes = {"n_embd": 48, "n_head": 6, "n_inner": 80, "n_layer": 3, "n_positions": 1024, "rotary_dim": 4}
    return {**MIXFORMER_CONFIG, **sizes, "vocab_size": 251, **overrides}


def tiny_mixformer(seed: int = 0, *, with_inv_freq: bool = False, **overrides: Any) -> MixFormer:
    """A small model in the layout of Phi-2's first release; `overrides` go to its config.json."""
    return randomize(MixFormer(mixformer_config(**overrides), with_inv_freq=with_inv_freq), seed)


class MixFormer(PlainModel):
    """Phi-2 as first released, before transformers had it: the same function under other names, q, k and v fused.

    Args:
        config: the keys of its config.json, see `mixformer_config`.
        with_inv_freq: whether each layer's rotary frequencies are in the state dict, as in the oldest checkpoints.
    """

    def __init__(self, config: dict[str, Any], *, with_inv_freq: bool = False) -> None:
        super().__init__(config)
        hidden, vocab = config["n_embd"], config["vocab_size"]
        blocks = [_MixFormerBlock(config, with_inv_freq=with_inv_freq) for _ in range(config["n_layer"])]
        embedding = nn.ModuleDict({"wte": nn.Embedding(vocab, hidden)})
        self.transformer = nn.ModuleDict({"embd": embedding, "h": nn.ModuleList(blocks)})
        self.lm_head = nn.ModuleDict(
            {"ln": nn.LayerNorm(hidden, eps=config["layer_norm_epsilon"]), "linear": nn.Linear(hidden, vocab)}
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits [batch, length, vocab] for token ids [batch, length]; the mask is zero at padding."""
        allowed = may_attend(input_ids.shape[1], attention_mask)
        x = functional.embedding(input_ids, self.get_parameter("transformer.embd.wte.weight"))
        for block in self.transformer.get_submodule("h").children():
            x = block(x, allowed)
        return self.lm_head["linear"](self.lm_head["ln"](x))


class _MixFormerBlock(nn.Module):
    def __init__(self, config: dict[str, Any], *, with_inv_freq: bool) -> None:
        super().__init__()
        hidden = config["n_embd"]
        inner = config["n_inner"] or 4 * hidden
        self.ln = nn.LayerNorm(hidden, eps=config["layer_norm_epsilon"])
        self.mixer = _MixFormerAttention(config, with_inv_freq=with_inv_freq)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(hidden, inner), "fc2": nn.Linear(inner, hidden)})

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        normed = self.ln(x)
        feed_forward = self.mlp["fc2"](functional.gelu(self.mlp["fc1"](normed), approximate="tanh"))
        return self.mixer(normed, allowed) + feed_forward + x


class _MixFormerAttention(nn.Module):
    def __init__(self, config: dict[str, Any], *, with_inv_freq: bool) -> None:
        super().__init__()
        hidden, self.heads = config["n_embd"], config["n_head"]
        self.kv_heads = config["n_head_kv"] or self.heads
        self.head_dim = hidden // self.heads
        self.Wqkv = nn.Linear(hidden, (self.heads + 2 * self.kv_heads) * self.head_dim)
        self.out_proj = nn.Linear(hidden, hidden)
        rotary_dim = config["rotary_dim"]
        inv_freq = 10000.0 ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)
        self.rotary_emb = nn.Module()
        self.rotary_emb.register_buffer("inv_freq", inv_freq, persistent=with_inv_freq)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        rows = [heads * self.head_dim for heads in (self.heads, self.kv_heads, self.kv_heads)]
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in self.Wqkv(x).split(rows, dim=-1))
        return self.out_proj(attend(self.rotate(q), self.rotate(k), v, allowed))

    def rotate(self, x: Tensor) -> Tensor:
        """Turn pairs (j, j + half) of the first `rotary_dim` features of [batch, heads, length, head_dim]."""
        inv_freq = self.get_buffer("rotary_emb.inv_freq")
        half = len(inv_freq)
        angles = torch.outer(torch.arange(x.shape[2], dtype=torch.float32), inv_freq)
        turn = torch.polar(torch.ones_like(angles), angles)
        pairs = torch.complex(x[..., :half].float(), x[..., half : 2 * half].float()) * turn
        return torch.cat((pairs.real.to(x.dtype), pairs.imag.to(x.dtype), x[..., 2 * half :]), dim=-1)
