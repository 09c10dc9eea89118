"""google/gemma_pytorch's layout against transformers' Gemma; the oracle for the former is in tests.models_gemma."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GemmaForCausalLM

import converters
from tests.mappings.proof import (
    assert_same_bytes,
    assert_same_logits,
    convert_there_and_back,
    load_strictly,
    read_config,
)
from tests.models_base import write_checkpoint
from tests.models_gemma import GemmaPyTorch, tiny_gemma, tiny_gemma_pytorch

NAME = "gemma_pytorch_to_hf"
SIZES: dict[str, dict[str, Any]] = {"grouped-query": {}, "multi-query": {"num_key_value_heads": 1}}


@pytest.mark.parametrize("overrides", SIZES.values(), ids=SIZES)
def test_forward(tmp_path: Path, overrides: dict[str, Any]) -> None:
    source = tiny_gemma_pytorch(1, **overrides)
    source.save_pretrained(tmp_path / "source", max_shard_size="60KB")
    there = convert_there_and_back(NAME, tmp_path / "source")
    gemma = load_strictly(GemmaForCausalLM, there)
    assert_same_logits(source, gemma, 257)


@pytest.mark.parametrize("overrides", SIZES.values(), ids=SIZES)
def test_reverse(tmp_path: Path, overrides: dict[str, Any]) -> None:
    gemma = tiny_gemma(2, **overrides)
    gemma.save_pretrained(tmp_path / "gemma", max_shard_size="60KB")
    there = convert_there_and_back(
        NAME, tmp_path / "gemma", reverse=True, lost={"use_bidirectional_attention"}, gained={"rope_theta": 10000.0}
    )
    assert not {"rope_parameters", "tie_word_embeddings", "hidden_act"} & read_config(there).keys()
    assert_same_logits(GemmaPyTorch.from_pretrained(there), gemma, 257)


def test_the_buffer_is_dropped_and_a_tied_head_may_be_there(tmp_path: Path) -> None:
    source = tiny_gemma_pytorch(3)
    spec = converters.load_spec(NAME)
    state = source.state_dict() | {"freqs_cis": torch.zeros(2048, 6, 2)}
    converted = converters.convert_state_dict(spec, state, config=source.config)
    write_checkpoint(tmp_path / "hf", source.config, converted)
    in_memory = converted | {"lm_head.weight": converted["model.embed_tokens.weight"]}
    config = tiny_gemma(4).config.to_dict()
    back = converters.convert_state_dict(spec, in_memory, reverse=True, config=config)
    assert_same_bytes(back, source.state_dict())
    in_memory["lm_head.weight"] = in_memory["lm_head.weight"] + 1
    with pytest.raises(converters.CoverageError, match="must be equal"):
        converters.convert_state_dict(spec, in_memory, reverse=True, config=config)


def test_other_positions_are_refused_on_the_way_back(tmp_path: Path) -> None:
    tiny_gemma(5, rope_parameters={"rope_type": "default", "rope_theta": 500.0}).save_pretrained(tmp_path / "gemma")
    with pytest.raises(converters.ConfigError, match=r"rope_theta is 500\.0"):
        converters.convert(converters.load_spec(NAME), tmp_path / "gemma", tmp_path / "out", reverse=True)
