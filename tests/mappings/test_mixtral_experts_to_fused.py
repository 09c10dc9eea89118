"""Mixtral's two layouts of one model in transformers: what it saves, and what it has in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import MixtralForCausalLM

import converters
from tests.mappings.proof import (
    assert_same_bytes,
    assert_same_logits,
    convert_there_and_back,
    load_strictly,
    read_config,
    read_tensors,
)
from tests.models_base import write_checkpoint
from tests.models_llama import tiny_mixtral

NAME = "mixtral_experts_to_fused"


@pytest.mark.parametrize("tied", [False, True])
def test_it_makes_what_transformers_has_in_memory(tmp_path: Path, tied: bool) -> None:  # noqa: FBT001
    model = tiny_mixtral(1, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "model", max_shard_size="60KB")
    assert "model.layers.2.block_sparse_moe.experts.4.w2.weight" in read_tensors(tmp_path / "model")
    there = convert_there_and_back(NAME, tmp_path / "model")
    in_memory = {key: value for key, value in model.state_dict().items() if not tied or key != "lm_head.weight"}
    assert_same_bytes(read_tensors(there), in_memory)
    assert_same_logits(load_strictly(MixtralForCausalLM, there), model, 253)


def test_reverse_makes_what_transformers_saves(tmp_path: Path) -> None:
    model = tiny_mixtral(2)
    model.save_pretrained(tmp_path / "saved")
    write_checkpoint(tmp_path / "fused", read_config(tmp_path / "saved"), model.state_dict())
    there = convert_there_and_back(NAME, tmp_path / "fused", reverse=True)
    assert_same_bytes(read_tensors(there), read_tensors(tmp_path / "saved"))
    assert_same_logits(load_strictly(MixtralForCausalLM, there), model, 253)


@pytest.mark.parametrize(("expert", "with_config"), [(1, True), (4, True), (1, False)])
def test_a_missing_expert_is_noticed(tmp_path: Path, expert: int, with_config: bool) -> None:  # noqa: FBT001
    """Without a config nobody knows how many there are, so there only a gap shows."""
    tiny_mixtral(3).save_pretrained(tmp_path)
    state = {
        key: value
        for key, value in read_tensors(tmp_path).items()
        if f"1.block_sparse_moe.experts.{expert}." not in key
    }
    spec, config = converters.load_spec(NAME), read_config(tmp_path)
    with pytest.raises(converters.CoverageError, match=rf"w1\.weight' lacks e = {expert}"):
        converters.convert_state_dict(spec, state, config=config if with_config else None)


def test_swapping_gate_and_up_shows(tmp_path: Path) -> None:
    """The oracle tells the two apart, so equal logits mean the right order."""
    model = tiny_mixtral(4)
    model.save_pretrained(tmp_path / "model")
    state = converters.convert_state_dict(
        converters.load_spec(NAME), read_tensors(tmp_path / "model"), config=read_config(tmp_path / "model")
    )
    key = "model.layers.1.mlp.experts.gate_up_proj"
    state[key] = torch.cat(state[key].chunk(2, dim=1)[::-1], dim=1)
    swapped = tiny_mixtral(5)
    swapped.load_state_dict(state)
    with pytest.raises(AssertionError):
        assert_same_logits(swapped, model, 253)
