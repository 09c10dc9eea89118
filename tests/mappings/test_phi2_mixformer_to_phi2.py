"""Phi-2's first release against transformers' Phi; the oracle for the first release is its forward in tests.models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PhiForCausalLM

import converters
from tests.mappings.proof import (
    assert_same_logits,
    convert_there_and_back,
    load_strictly,
    read_config,
    read_tensors,
)
from tests.models import MixFormer, tiny_mixformer, tiny_phi
from tests.models_base import write_checkpoint

NAME = "phi2_mixformer_to_phi2"
LOST = {"auto_map", "flash_attn", "flash_rotary", "fused_dense", "img_processor"}
SIZES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped-query": {"n_head_kv": 2, "n_inner": None},
    "multi-query": {"n_head_kv": 1, "n_head": 5, "n_embd": 60, "rotary_dim": 10},
}


@pytest.mark.parametrize("overrides", SIZES.values(), ids=SIZES)
def test_forward(tmp_path: Path, overrides: dict[str, Any]) -> None:
    source = tiny_mixformer(1, with_inv_freq=True, **overrides)
    source.save_pretrained(tmp_path / "source", max_shard_size="60KB")
    inner = source.config["n_inner"] or 4 * source.config["n_embd"]
    there = convert_there_and_back(
        NAME,
        tmp_path / "source",
        lost=LOST,
        gained={"n_inner": inner},
        expected=lambda state: {key: value for key, value in state.items() if "inv_freq" not in key},
    )
    phi = load_strictly(PhiForCausalLM, there)
    assert phi.config.intermediate_size == inner
    assert (
        int(phi.config.rope_parameters["partial_rotary_factor"] * phi.model.layers[0].self_attn.head_dim)
        == (source.config["rotary_dim"])
    )
    assert_same_logits(source, phi, 251)


@pytest.mark.parametrize("overrides", [{}, {"num_key_value_heads": 2, "partial_rotary_factor": 0.75}])
def test_reverse(tmp_path: Path, overrides: dict[str, Any]) -> None:
    phi = tiny_phi(2, **overrides)
    phi.save_pretrained(tmp_path / "phi", max_shard_size="60KB")
    derived = {
        "partial_rotary_factor": overrides.get("partial_rotary_factor", 0.5),
        "rope_theta": 10000.0,
    }
    there = convert_there_and_back(NAME, tmp_path / "phi", reverse=True, gained=derived)
    config = read_config(there)
    assert config["model_type"] == "phi-msft"
    assert not {"rope_parameters", "rope_theta", "intermediate_size", "hidden_size"} & config.keys()
    assert_same_logits(MixFormer.from_pretrained(there), phi, 251)


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    source = tiny_mixformer(3, tie_word_embeddings=True)
    with torch.no_grad():
        source.lm_head["linear"].weight.copy_(source.get_parameter("transformer.embd.wte.weight"))
    state = {key: value for key, value in source.state_dict().items() if key != "lm_head.linear.weight"}
    write_checkpoint(tmp_path / "source", source.config, state)
    there = convert_there_and_back(NAME, tmp_path / "source", lost=LOST)
    assert "lm_head.weight" not in read_tensors(there)
    assert_same_logits(source, load_strictly(PhiForCausalLM, there), 251)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_theta": 500.0}, r"rope_parameters\.rope_theta is 500\.0"),
        ({"rope_type": "linear", "factor": 2.0}, r"rope_parameters\.rope_type is 'linear'"),
    ],
)
def test_what_the_first_release_can_not_say_is_refused(tmp_path: Path, rope: dict[str, Any], message: str) -> None:
    parameters = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5} | rope
    tiny_phi(2, rope_parameters=parameters).save_pretrained(tmp_path / "phi")
    with pytest.raises(converters.ConfigError, match=message):
        converters.convert(converters.load_spec(NAME), tmp_path / "phi", tmp_path / "out", reverse=True)


def test_a_missing_layer_is_noticed(tmp_path: Path) -> None:
    source = tiny_mixformer(4)
    state = {key: value for key, value in source.state_dict().items() if ".h.1." not in key}
    write_checkpoint(tmp_path / "source", source.config, state)
    with pytest.raises(converters.CoverageError, match="no key for i=1"):
        converters.convert(converters.load_spec(NAME), tmp_path / "source", tmp_path / "out")
