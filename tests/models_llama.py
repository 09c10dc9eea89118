"""Small Llamas: transformers' own, and a plain one in the layout of Meta's and Mistral's releases.

The plain forward follows the papers: pre-norm blocks with RMSNorm, SwiGLU, grouped-query attention, and rotary
positions on neighbouring pairs of features (Touvron et al., 2023; Jiang et al., 2023), with a mixture of experts in
the place of the feed-forward where the config asks for one (Jiang et al., 2024).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from tests.models import randomize
from tests.models_base import (
    PlainModel,
    RMSNorm,
    attend,
    may_attend,
    rotary_frequencies,
    rotate_pairs,
    split_heads,
    swiglu,
)

TINY_LLAMA: dict[str, Any] = {
    "vocab_size": 253,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
}
META_LLAMA: dict[str, Any] = {
    "dim": 48,
    "n_layers": 3,
    "n_heads": 6,
    "n_kv_heads": 2,
    "vocab_size": 253,
    "multiple_of": 40,
    "ffn_dim_multiplier": 1.1,
    "norm_eps": 1e-5,
    "rope_theta": 5000.0,
}
# What config.json of a Mistral release calls params.json; heads need not fill the model's width there.
CONSOLIDATED_MISTRAL: dict[str, Any] = {
    "dim": 40,
    "n_layers": 3,
    "head_dim": 12,
    "hidden_dim": 72,
    "n_heads": 6,
    "n_kv_heads": 2,
    "norm_eps": 1e-5,
    "vocab_size": 257,
}
CONSOLIDATED_MIXTRAL: dict[str, Any] = {
    **CONSOLIDATED_MISTRAL,
    "moe": {"num_experts": 5, "num_experts_per_tok": 2},
}


def tiny_llama(seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
    """A small Llama with grouped-query attention, in float32; `overrides` go to `LlamaConfig`."""
    return _tiny(LlamaForCausalLM, LlamaConfig(**{**TINY_LLAMA, **overrides}), seed)


def tiny_mistral(seed: int = 0, **overrides: Any) -> MistralForCausalLM:
    """A small Mistral whose heads are wider than its hidden size gives; `overrides` go to `MistralConfig`."""
    sizes = {**TINY_LLAMA, "head_dim": 12, "sliding_window": 48}
    return _tiny(MistralForCausalLM, MistralConfig(**{**sizes, **overrides}), seed)


def tiny_mixtral(seed: int = 0, **overrides: Any) -> MixtralForCausalLM:
    """A small Mixtral with five experts; `overrides` go to `MixtralConfig`."""
    sizes = {**TINY_LLAMA, "head_dim": 12, "num_local_experts": 5, "num_experts_per_tok": 2}
    return _tiny(MixtralForCausalLM, MixtralConfig(**{**sizes, **overrides}), seed)


def _tiny(cls: Any, config: Any, seed: int) -> Any:
    config._attn_implementation = "eager"  # a config has no public setter for it
    config._experts_implementation = "eager"
    return randomize(cls(config), seed)


def tiny_meta_llama(seed: int = 0, **overrides: Any) -> MetaLlama:
    """A small Llama in Meta's layout; `overrides` go to its params.json."""
    return randomize(MetaLlama({**META_LLAMA, **overrides}), seed)


def tiny_consolidated(seed: int = 0, *, experts: bool = False, **overrides: Any) -> ConsolidatedMistral:
    """A small Mistral or Mixtral in the layout of consolidated.safetensors; `overrides` go to its params.json."""
    params = CONSOLIDATED_MIXTRAL if experts else CONSOLIDATED_MISTRAL
    return randomize(ConsolidatedMistral({**params, **overrides}), seed)


class MetaLlama(PlainModel):
    """Llama under the names of Meta's release, built from its params.json.

    Args:
        config: the keys of params.json; `with_freqs` adds the buffer `rope.freqs` of the first checkpoints.
    """

    config_name = "params.json"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        dim, vocab = config["dim"], config["vocab_size"]
        self.heads = config["n_heads"]
        self.tok_embeddings = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList(_Block(self.sizes()) for _ in range(config["n_layers"]))
        self.norm = RMSNorm(dim, config["norm_eps"])
        self.output = nn.Linear(dim, vocab, bias=False)
        if config.get("with_freqs"):
            self.rope = nn.Module()
            self.rope.register_buffer("freqs", torch.rand(dim // config["n_heads"] // 2))

    def save_pretrained(self, directory: str | Path, max_shard_size: str = "5GB", *, parts: int = 1) -> None:
        """Write params.json and `consolidated.{t}.pth`, as fairscale's layers split a model over so many devices.

        `max_shard_size` is only here because other models take it.
        """
        del max_shard_size
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "params.json").write_text(json.dumps(self.config, indent=2) + "\n")
        for part in range(parts):
            state = {name: self._part(name, tensor, part, parts) for name, tensor in self.state_dict().items()}
            torch.save(state, directory / f"consolidated.{part:02}.pth")

    def _part(self, name: str, tensor: Tensor, part: int, parts: int) -> Tensor:
        """A device's share: ColumnParallelLinear splits its rows, RowParallelLinear its columns; norms are whole.

        Llama 3 has VocabParallelEmbedding in place of ParallelEmbedding, and so splits the embedding's rows.
        """
        rows = name.endswith(("wq.weight", "wk.weight", "wv.weight", "w1.weight", "w3.weight", "output.weight"))
        columns = name.endswith(("wo.weight", "w2.weight"))
        if name == "tok_embeddings.weight":
            rows = self.config.get("rope_theta") == 500000.0
            columns = not rows
        if rows or columns:
            tensor = tensor.detach().chunk(parts, dim=0 if rows else 1)[part]
            assert tensor.shape[0 if rows else 1] > 0
        return tensor.detach().clone()

    def sizes(self) -> dict[str, Any]:
        """The keys that a block needs, with the defaults filled in."""
        config = self.config
        # The width of the feed-forward: two thirds of four times the model's, scaled, then rounded up.
        hidden = int(2 * (4 * config["dim"]) / 3)
        hidden = int((config.get("ffn_dim_multiplier") or 1) * hidden)
        multiple = config.get("multiple_of", 256)
        defaults = {
            "n_kv_heads": config.get("n_kv_heads") or config["n_heads"],
            "head_dim": config["dim"] // config["n_heads"],
            "hidden_dim": -(-hidden // multiple) * multiple,
            "rope_theta": config.get("rope_theta") or 10000.0,
        }
        return {**config, **defaults}

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits [batch, length, vocab] for token ids [batch, length]; the mask is zero at padding."""
        allowed = may_attend(input_ids.shape[1], attention_mask, self.config.get("sliding_window"))
        x = self.tok_embeddings(input_ids)
        for layer in self.layers:
            x = layer(x, allowed)
        logits: Tensor = self.output(self.norm(x))
        return logits


class ConsolidatedMistral(MetaLlama):
    """Mistral or Mixtral under the names of consolidated.safetensors, built from params.json."""

    def save_pretrained(self, directory: str | Path, max_shard_size: str = "5GB", *, parts: int = 1) -> None:
        """Write params.json and consolidated.safetensors, which is always one file."""
        del max_shard_size, parts
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "params.json").write_text(json.dumps(self.config, indent=2) + "\n")
        state = {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}
        save_file(state, directory / "consolidated.safetensors", metadata={"format": "pt"})

    def sizes(self) -> dict[str, Any]:
        """As in `MetaLlama`; sizes are spelled out here, and the rotary base depends on the window."""
        config = self.config
        theta = 10000.0 if config.get("sliding_window") else 1000000.0
        return {**config, "rope_theta": config.get("rope_theta") or theta}


def scaled(frequencies: Tensor, factor: float) -> Tensor:
    """Llama 3.1's frequencies for long texts: slow ones divided by `factor`, fast ones kept, a ramp in between.

    A pair is slow where it turns less than once in the 8192 tokens of the first training, and fast where it turns
    more than four times.
    """
    turns = 8192 * frequencies / (2 * math.pi)
    kept = ((turns - 1) / (4 - 1)).clamp(0, 1)
    return frequencies * kept + frequencies / factor * (1 - kept)


class _Block(nn.Module):
    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        self.attention = _Attention(sizes)
        feed_forward = _Experts if "moe" in sizes else _FeedForward
        self.feed_forward = feed_forward(sizes)
        self.attention_norm = RMSNorm(sizes["dim"], sizes["norm_eps"])
        self.ffn_norm = RMSNorm(sizes["dim"], sizes["norm_eps"])

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), allowed)
        out: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out


class _Attention(nn.Module):
    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        dim, head_dim = sizes["dim"], sizes["head_dim"]
        self.heads, self.kv_heads = sizes["n_heads"], sizes["n_kv_heads"]
        self.frequencies = rotary_frequencies(head_dim, sizes["rope_theta"])
        if sizes.get("use_scaled_rope"):
            self.frequencies = scaled(self.frequencies, sizes.get("rope_scaling_factor", 8.0))
        self.wq = nn.Linear(dim, self.heads * head_dim, bias=False)
        self.wk = nn.Linear(dim, self.kv_heads * head_dim, bias=False)
        self.wv = nn.Linear(dim, self.kv_heads * head_dim, bias=False)
        self.wo = nn.Linear(self.heads * head_dim, dim, bias=False)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        q = rotate_pairs(split_heads(self.wq(x), self.heads), self.frequencies)
        k = rotate_pairs(split_heads(self.wk(x), self.kv_heads), self.frequencies)
        out: Tensor = self.wo(attend(q, k, split_heads(self.wv(x), self.kv_heads), allowed))
        return out


class _FeedForward(nn.Module):
    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        self.w1 = nn.Linear(sizes["dim"], sizes["hidden_dim"], bias=False)
        self.w2 = nn.Linear(sizes["hidden_dim"], sizes["dim"], bias=False)
        self.w3 = nn.Linear(sizes["dim"], sizes["hidden_dim"], bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w2(swiglu(self.w1(x), self.w3(x)))
        return out


class _Experts(nn.Module):
    """The few best experts of each token, by the gate's softmax over those few."""

    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        self.per_token = sizes["moe"]["num_experts_per_tok"]
        self.gate = nn.Linear(sizes["dim"], sizes["moe"]["num_experts"], bias=False)
        self.experts = nn.ModuleList(_FeedForward(sizes) for _ in range(sizes["moe"]["num_experts"]))

    def forward(self, x: Tensor) -> Tensor:
        scores, chosen = self.gate(x).topk(self.per_token, dim=-1)
        weights = torch.zeros_like(self.gate(x)).scatter(-1, chosen, scores.softmax(dim=-1))
        # Every expert sees every token here: slow, and there is nothing to get wrong.
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-1)
        return (outputs * weights[..., None, :]).sum(dim=-1)
