"""Small GPT-NeoXes and Falcons of transformers, and a plain model with separate q, k and v under Llama's names.

The plain forward has LayerNorms, a feed-forward without a gate, partial rotary positions, and attention and feed-
forward either side by side or one after the other (Black et al., 2022; Almazrouei et al., 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import FalconConfig, FalconForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

from tests.models import randomize
from tests.models_base import PlainModel, attend, may_attend, rotary_frequencies, rotate_halves, split_heads

TINY_NEOX: dict[str, Any] = {
    "vocab_size": 251,
    "hidden_size": 60,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "intermediate_size": 80,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5},
}
TINY_FALCON: dict[str, Any] = {
    "vocab_size": 253,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "ffn_hidden_size": 88,
}
LLAMA_STYLE: dict[str, Any] = {
    "model_type": "llama-style",
    "vocab_size": 257,
    "hidden_size": 60,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "intermediate_size": 72,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
    "linear_bias": True,
    "use_parallel_residual": True,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5},
}


def tiny_neox(seed: int = 0, **overrides: Any) -> GPTNeoXForCausalLM:
    """A small GPT-NeoX in float32; `overrides` go to `GPTNeoXConfig`."""
    config = GPTNeoXConfig(**{**TINY_NEOX, **overrides})
    config._attn_implementation = "eager"  # a config has no public setter for it
    return randomize(GPTNeoXForCausalLM(config), seed)


def tiny_falcon(seed: int = 0, **overrides: Any) -> FalconForCausalLM:
    """A small Falcon in float32, like Falcon 7B unless `overrides` to `FalconConfig` say otherwise."""
    config = FalconConfig(**{**TINY_FALCON, **overrides})
    config._attn_implementation = "eager"  # a config has no public setter for it
    return randomize(FalconForCausalLM(config), seed)


def tiny_llama_style(seed: int = 0, **overrides: Any) -> LlamaStyle:
    """The plain model, small; `overrides` go to its config."""
    return randomize(LlamaStyle({**LLAMA_STYLE, **overrides}), seed)


class LlamaStyle(PlainModel):
    """GPT-NeoX or Falcon under Llama's names. A tied checkpoint has no head."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        hidden, vocab = config["hidden_size"], config["vocab_size"]
        parts = {
            "embed_tokens": nn.Embedding(vocab, hidden),
            "layers": nn.ModuleList(_Layer(self.config) for _ in range(config["num_hidden_layers"])),
            "norm": nn.LayerNorm(hidden, eps=config["layer_norm_eps"]),
        }
        self.model = nn.ModuleDict(parts)
        if not config["tie_word_embeddings"]:
            self.lm_head = nn.Linear(hidden, vocab, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits [batch, length, vocab] for token ids [batch, length]; the mask is zero at padding."""
        allowed = may_attend(input_ids.shape[1], attention_mask)
        x = self.model["embed_tokens"](input_ids)
        for layer in self.model.get_submodule("layers").children():
            x = layer(x, allowed)
        tied = self.config["tie_word_embeddings"]
        head = self.model.get_parameter("embed_tokens.weight") if tied else self.lm_head.weight
        return functional.linear(self.model["norm"](x), head)


class _Layer(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden, inner, bias = config["hidden_size"], config["intermediate_size"], config["linear_bias"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.parallel = config["use_parallel_residual"]
        head_dim, rope = hidden // self.heads, config["rope_parameters"]
        self.rotary = int(head_dim * rope["partial_rotary_factor"])
        self.frequencies = rotary_frequencies(self.rotary, rope["rope_theta"])
        rows = {
            "q_proj": hidden,
            "k_proj": self.kv_heads * head_dim,
            "v_proj": self.kv_heads * head_dim,
            "o_proj": hidden,
        }
        self.self_attn = nn.ModuleDict({name: nn.Linear(hidden, size, bias=bias) for name, size in rows.items()})
        self.mlp = nn.ModuleDict(
            {"up_proj": nn.Linear(hidden, inner, bias=bias), "down_proj": nn.Linear(inner, hidden, bias=bias)}
        )
        self.input_layernorm = nn.LayerNorm(hidden, eps=config["layer_norm_eps"])
        self.post_attention_layernorm = nn.LayerNorm(hidden, eps=config["layer_norm_eps"])

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        attended = self.attention(self.input_layernorm(x), allowed)
        normed = self.post_attention_layernorm(x if self.parallel else x + attended)
        out: Tensor = x + attended + self.mlp["down_proj"](functional.gelu(self.mlp["up_proj"](normed)))
        return out

    def attention(self, x: Tensor, allowed: Tensor) -> Tensor:
        q = self.rotate(split_heads(self.self_attn["q_proj"](x), self.heads))
        k = self.rotate(split_heads(self.self_attn["k_proj"](x), self.kv_heads))
        v = split_heads(self.self_attn["v_proj"](x), self.kv_heads)
        out: Tensor = self.self_attn["o_proj"](attend(q, k, v, allowed))
        return out

    def rotate(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[..., : self.rotary] = rotate_halves(x[..., : self.rotary], self.frequencies)
        return x
