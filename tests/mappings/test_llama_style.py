"""transformers' GPT-NeoX and Falcon against the plain model with separate q, k and v in tests.models_llama_style."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import FalconForCausalLM, GPTNeoXForCausalLM

import converters
from tests.mappings.proof import (
    assert_same_bytes,
    assert_same_logits,
    convert_there_and_back,
    load_strictly,
    read_config,
    read_tensors,
)
from tests.models_llama_style import LlamaStyle, tiny_falcon, tiny_llama_style, tiny_neox

NEOX, FALCON = "gpt_neox_to_llama_style", "falcon_to_llama_style"
NEOXES: dict[str, dict[str, Any]] = {
    "parallel": {},
    "serial": {"use_parallel_residual": False},
    "tied": {"tie_word_embeddings": True},
}
FALCONS: dict[str, dict[str, Any]] = {
    "7B": {},
    "40B": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "11B": {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    "each head its own": {"multi_query": False, "bias": True, "tie_word_embeddings": False},
    "serial": {"parallel_attn": False},
}


def old_name(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {("embed_out.weight" if key == "lm_head.weight" else key): value for key, value in state.items()}


@pytest.mark.parametrize("overrides", NEOXES.values(), ids=NEOXES)
def test_neox_forward(tmp_path: Path, overrides: dict[str, Any]) -> None:
    neox = tiny_neox(1, **overrides)
    neox.save_pretrained(tmp_path / "neox", max_shard_size="60KB")
    there = convert_there_and_back(NEOX, tmp_path / "neox", expected=old_name)
    assert_same_logits(neox, LlamaStyle.from_pretrained(there), 251)


def test_neox_reverse(tmp_path: Path) -> None:
    plain = tiny_llama_style(2)
    plain.save_pretrained(tmp_path / "plain", max_shard_size="60KB")
    there = convert_there_and_back(NEOX, tmp_path / "plain", reverse=True)
    assert_same_logits(plain, load_strictly(GPTNeoXForCausalLM, there), 257)


def test_neox_with_the_buffers_and_the_config_of_older_releases(tmp_path: Path) -> None:
    neox = tiny_neox(3)
    neox.save_pretrained(tmp_path)
    spec, config, state = converters.load_spec(NEOX), read_config(tmp_path), read_tensors(tmp_path)
    expected = converters.convert_state_dict(spec, state, config=config)
    for i in range(3):
        prefix = f"gpt_neox.layers.{i}.attention"
        state[f"{prefix}.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
        state[f"{prefix}.masked_bias"] = torch.tensor(-1e9)
        state[f"{prefix}.rotary_emb.inv_freq"] = torch.ones(3)
    assert_same_bytes(converters.convert_state_dict(spec, state, config=config), expected)
    del config["rope_parameters"]
    with_old = config | {"rotary_pct": 0.5, "rotary_emb_base": 5000}
    (tmp_path / "config.json").write_text(json.dumps(with_old))
    with converters.prepare(spec, tmp_path, converters.Options()) as prepared:
        rope = (prepared.plan.config or {})["rope_parameters"]
    assert rope == {"rope_type": "default", "rope_theta": 5000, "partial_rotary_factor": 0.5}


@pytest.mark.parametrize("overrides", FALCONS.values(), ids=FALCONS)
def test_falcon_forward(tmp_path: Path, overrides: dict[str, Any]) -> None:
    falcon = tiny_falcon(4, **overrides)
    falcon.save_pretrained(tmp_path / "falcon", max_shard_size="60KB")
    rope = {"rope_parameters": {**falcon.config.rope_parameters, "partial_rotary_factor": 1.0}}
    there = convert_there_and_back(FALCON, tmp_path / "falcon", gained=rope)
    assert_same_logits(falcon, LlamaStyle.from_pretrained(there), 253)


@pytest.mark.parametrize(
    "overrides",
    [
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_key_value_heads": 2, "multi_query": True},
        {"new_decoder_architecture": False, "num_kv_heads": 6, "num_key_value_heads": 6, "multi_query": False,
         "use_parallel_residual": False},
    ],
    ids=["40B", "serial"],
)  # fmt: skip
def test_falcon_reverse(tmp_path: Path, overrides: dict[str, Any]) -> None:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    sizes = {"num_attention_heads": 6, "linear_bias": False, "rope_parameters": rope}
    plain = tiny_llama_style(5, **sizes, **overrides)
    plain.save_pretrained(tmp_path / "plain", max_shard_size="60KB")
    there = convert_there_and_back(FALCON, tmp_path / "plain", reverse=True)
    assert_same_logits(plain, load_strictly(FalconForCausalLM, there), 257)


def test_norms_that_differ_do_not_become_one(tmp_path: Path) -> None:
    """Falcon 7B has one norm for both; two that differ have no place in it."""
    sizes = {"num_attention_heads": 6, "num_key_value_heads": 1, "linear_bias": False}
    plain = tiny_llama_style(6, **sizes, multi_query=True, new_decoder_architecture=False)
    plain.save_pretrained(tmp_path / "plain")
    with pytest.raises(converters.CoverageError, match="must be equal"):
        converters.convert(converters.load_spec(FALCON), tmp_path / "plain", tmp_path / "out", reverse=True)


def test_alibi_is_refused(tmp_path: Path) -> None:
    tiny_falcon(7, alibi=True).save_pretrained(tmp_path / "falcon")
    with pytest.raises(converters.ConfigError, match="alibi is True"):
        converters.convert(converters.load_spec(FALCON), tmp_path / "falcon", tmp_path / "out")
