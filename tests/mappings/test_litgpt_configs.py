"""LitGPT's configs against those that LitGPT has for released models; what one side has no word for is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import converters
from converters.bind import bind
from tests.models import tiny_phi
from tests.models_litgpt import SPEC, litgpt, tiny_litgpt
from tests.models_llama import tiny_llama
from tests.models_llama_style import tiny_falcon, tiny_neox

Build = Callable[..., Any]

# What config.json of these releases says of the model, as of transformers 4.
RELEASED: dict[str, tuple[str, dict[str, Any]]] = {
    "phi-2": (
        "phi2_to_litgpt",
        {
            "hidden_act": "gelu_new",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": 2048,
            "model_type": "phi",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "partial_rotary_factor": 0.4,
            "qk_layernorm": False,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "vocab_size": 51200,
        },
    ),
    "pythia-160m": (
        "gpt_neox_to_litgpt",
        {
            "hidden_act": "gelu",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": 2048,
            "model_type": "gpt_neox",
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "rotary_emb_base": 10000,
            "rotary_pct": 0.25,
            "tie_word_embeddings": False,
            "use_parallel_residual": True,
            "vocab_size": 50304,
        },
    ),
    "falcon-7b": (
        "falcon_to_litgpt",
        {
            "alibi": False,
            "bias": False,
            "hidden_size": 4544,
            "layer_norm_epsilon": 1e-05,
            "model_type": "falcon",
            "multi_query": True,
            "new_decoder_architecture": False,
            "num_attention_heads": 71,
            "num_hidden_layers": 32,
            "parallel_attn": True,
            "vocab_size": 65024,
        },
    ),
    "falcon-40b": (
        "falcon_to_litgpt",
        {
            "alibi": False,
            "bias": False,
            "hidden_size": 8192,
            "layer_norm_epsilon": 1e-05,
            "model_type": "falcon",
            "multi_query": True,
            "new_decoder_architecture": True,
            "num_attention_heads": 128,
            "num_hidden_layers": 60,
            "num_kv_heads": 8,
            "parallel_attn": True,
            "vocab_size": 65024,
        },
    ),
    "Llama-3.2-1B": (
        "llama_to_litgpt",
        {
            "attention_bias": False,
            "head_dim": 64,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": 32,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "vocab_size": 128256,
        },
    ),
    "Mistral-7B-v0.1": (
        "mistral_to_litgpt",
        {
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "model_type": "mistral",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
    ),
}
SAYS_NOTHING_HERE = {"name", "hf_config", "vocab_size", "padding_multiple"}
"""Names, and what only says how padded_vocab_size, which is compared, was found."""


@pytest.mark.parametrize("name", RELEASED)
def test_the_config_is_the_one_that_litgpt_has_for_the_release(name: str) -> None:
    spec_name, config = RELEASED[name]
    spec = converters.load_spec(spec_name)
    found = bind(spec, config).target_config
    assert found is not None
    classes = litgpt("config").Config
    ours, theirs = asdict(classes(**found)), asdict(classes.from_name(name))
    differing = {key for key, value in ours.items() if theirs[key] != value} - SAYS_NOTHING_HERE
    # LitGPT keeps a shorter context for this one, since its attention had no window once.
    assert differing == ({"block_size"} if name == "Mistral-7B-v0.1" else set())
    # And what LitGPT wrote of it itself gives the model's own config back.
    saved = json.loads(json.dumps(theirs))
    back = bind(spec.inverse(), saved).target_config
    assert back is not None
    skipped = {
        "torch_dtype",
        "rope_scaling",
        "tie_word_embeddings",
        *(["max_position_embeddings"] if differing else []),
    }
    assert {key: back.get(key) for key in config if key not in skipped} == {
        key: value for key, value in config.items() if key not in skipped
    }


REFUSED: dict[str, tuple[Build, dict[str, Any], str]] = {
    "another activation": (tiny_phi, {"hidden_act": "relu"}, "hidden_act is 'relu'"),
    "norms of q and k": (tiny_phi, {"qk_layernorm": True}, "qk_layernorm is True"),
    "no attention biases": (tiny_neox, {"attention_bias": False}, "attention_bias is False"),
    "alibi": (tiny_falcon, {"alibi": True}, "alibi is True"),
    "biases in one half": (tiny_llama, {"mlp_bias": True}, "attention_bias is False"),
    "a gate that isn't SiLU": (tiny_llama, {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "yarn": (
        tiny_llama,
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0}},
        r"rope_parameters\.rope_type is 'yarn'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_function_that_litgpt_has_no_word_for_is_refused(tmp_path: Path, case: str) -> None:
    build, overrides, message = REFUSED[case]
    model = build(6, **overrides)
    model.save_pretrained(tmp_path / "hf")
    kind = {"gpt_neox": "gpt_neox", "phi": "phi2"}.get(model.config.model_type, model.config.model_type)
    with pytest.raises(converters.ConfigError, match=message):
        converters.convert(converters.load_spec(f"{kind}_to_litgpt"), tmp_path / "hf", tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        ("llama", {"norm_qk": True}, "norm_qk is True"),
        ("llama", {"rope_condense_ratio": 8}, "rope_condense_ratio is 8"),
        ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ("llama", {"attn_bias": True}, "attn_bias is True"),
        ("llama", {"sliding_window_size": 24}, "sliding_window_size is 24"),
        ("mistral", {"sliding_window_indices": [1, 0, 1]}, "sliding_window_size is 24"),
        ("phi", {"scale_embeddings": True}, "scale_embeddings is True"),
        ("falcon-40b", {"rotary_percentage": 0.5}, "rotary_percentage is 0.5"),
        ("gpt_neox", {"shared_attention_norm": True}, "shared_attention_norm: gpt_neox_to_litgpt"),
    ],
)
def test_a_function_that_hugging_face_has_no_word_for_is_refused(
    tmp_path: Path, kind: str, overrides: dict[str, Any], message: str
) -> None:
    tiny_litgpt(kind, 7, **overrides).save_pretrained(tmp_path / "lit")
    spec = converters.load_spec(SPEC[kind])
    with pytest.raises(converters.ConfigError, match=message):
        converters.convert(spec, tmp_path / "lit", tmp_path / "out", reverse=True)
