"""The models of the benchmarks: names, shapes and configs, at each size; pure.

Depth alone makes the sizes: a layer is as wide as the real model's, so that a tensor of `medium` is one of `full`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Size:
    """How large the benchmarks' checkpoints are.

    Attributes:
        phi_layers: of Phi-2 in 16 bits; `phi_wide_layers` in 32 bits, of about as many bytes.
        llama_layers: of a Llama of the width of Llama 3.2 3B.
        divisor: of every width; 1 is the real one.
        matrix: the shape of the one tensor that is larger than the memory.
    """

    phi_layers: int
    phi_wide_layers: int
    llama_layers: int
    divisor: int
    vocabulary: int
    matrix: tuple[int, int]


SIZES = {
    "full": Size(32, 14, 25, 1, 51200, (40960, 48829)),  # 5.56 GB each; the matrix has 4 GB
    "medium": Size(8, 2, 6, 1, 51200, (20480, 24415)),  # 1.78 GB each; 1 GB
    "small": Size(2, 1, 2, 1, 6007, (10240, 12211)),  # 0.4 GB each; 0.25 GB
    "toy": Size(2, 1, 2, 20, 101, (1024, 1237)),  # a few megabytes, for the tests
}
PHI_HEADS, LLAMA_HEADS, LLAMA_GROUPS = 32, 24, 8


def phi(size: Size, layers: int) -> tuple[Shapes, dict[str, Any]]:
    """Phi-2 as transformers names it, and its config."""
    width, inner = 2560 // size.divisor, 10240 // size.divisor
    shapes: Shapes = {"model.embed_tokens.weight": (size.vocabulary, width)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name, rows, columns in (
            *((f"self_attn.{part}", width, width) for part in ("q_proj", "k_proj", "v_proj", "dense")),
            ("mlp.fc1", inner, width),
            ("mlp.fc2", width, inner),
        ):
            shapes |= {f"{prefix}.{name}.weight": (rows, columns), f"{prefix}.{name}.bias": (rows,)}
        shapes |= _norm(f"{prefix}.input_layernorm", width)
    shapes |= _norm("model.final_layernorm", width)
    shapes |= {"lm_head.weight": (size.vocabulary, width), "lm_head.bias": (size.vocabulary,)}
    config = {
        "architectures": ["PhiForCausalLM"],
        "model_type": "phi",
        "vocab_size": size.vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": PHI_HEADS,
        "num_key_value_heads": PHI_HEADS,
        "max_position_embeddings": 2048,
        "hidden_act": "gelu_new",
        "partial_rotary_factor": 0.4,
        "rope_theta": 10000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.4},
        "tie_word_embeddings": False,
        "dtype": "float16",
    }
    return shapes, config


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def llama(size: Size) -> tuple[Shapes, dict[str, Any]]:
    """A Llama with grouped-query attention as transformers names it, and its config; heads of 128 features."""
    head = 128 // size.divisor // 2 * 2
    width, inner, grouped = LLAMA_HEADS * head, 8192 // size.divisor, LLAMA_GROUPS * head
    shapes: Shapes = {"model.embed_tokens.weight": (size.vocabulary, width)}
    for layer in range(size.llama_layers):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.self_attn.q_proj.weight": (width, width),
            f"{prefix}.self_attn.k_proj.weight": (grouped, width),
            f"{prefix}.self_attn.v_proj.weight": (grouped, width),
            f"{prefix}.self_attn.o_proj.weight": (width, width),
            f"{prefix}.mlp.gate_proj.weight": (inner, width),
            f"{prefix}.mlp.up_proj.weight": (inner, width),
            f"{prefix}.mlp.down_proj.weight": (width, inner),
            f"{prefix}.input_layernorm.weight": (width,),
            f"{prefix}.post_attention_layernorm.weight": (width,),
        }
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (size.vocabulary, width)}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": size.vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": size.llama_layers,
        "num_attention_heads": LLAMA_HEADS,
        "num_key_value_heads": LLAMA_GROUPS,
        "head_dim": head,
        "max_position_embeddings": 8192,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    return shapes, config
