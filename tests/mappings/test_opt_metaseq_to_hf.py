"""metaseq's layout against transformers' OPT; the oracle for the former is in tests.models_opt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import OPTForCausalLM

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
from tests.models_opt import Metaseq, tiny_metaseq, tiny_opt

NAME = "opt_metaseq_to_hf"


@pytest.mark.parametrize(
    "overrides",
    [{}, {"decoder_normalize_before": False, "decoder_input_dim": 24, "decoder_output_dim": 24}],
    ids=["OPT", "OPT-350m"],
)
def test_forward(tmp_path: Path, overrides: dict[str, Any]) -> None:
    source = tiny_metaseq(1, **overrides)
    source.save_pretrained(tmp_path / "source", max_shard_size="60KB")
    there = convert_there_and_back(NAME, tmp_path / "source")
    opt = load_strictly(OPTForCausalLM, there)
    assert_same_logits(source, opt, 257)


@pytest.mark.parametrize(
    "overrides", [{}, {"do_layer_norm_before": False, "word_embed_proj_dim": 20}], ids=["OPT", "OPT-350m"]
)
def test_reverse(tmp_path: Path, overrides: dict[str, Any]) -> None:
    opt = tiny_opt(2, **overrides)
    opt.save_pretrained(tmp_path / "opt", max_shard_size="60KB")
    there = convert_there_and_back(NAME, tmp_path / "opt", reverse=True)
    assert read_config(there)["decoder_output_dim"] == overrides.get("word_embed_proj_dim", 48)
    assert_same_logits(Metaseq.from_pretrained(there), opt, 251)


def test_a_second_copy_of_the_embedding_and_the_version_are_no_obstacle(tmp_path: Path) -> None:
    source = tiny_metaseq(3)
    spec, state = converters.load_spec(NAME), source.state_dict()
    expected = converters.convert_state_dict(spec, state, config=source.config)
    more = state | {
        "decoder.version": torch.tensor([3.0]),
        "decoder.output_projection.weight": state["decoder.embed_tokens.weight"],
    }
    write_checkpoint(tmp_path / "source", source.config, more)
    converters.convert(spec, tmp_path / "source", tmp_path / "out")
    assert_same_bytes(read_tensors(tmp_path / "out"), expected)


def test_a_vocabulary_that_the_config_leaves_out_is_the_paper_s() -> None:
    source = tiny_metaseq(4)
    config = {key: value for key, value in source.config.items() if key != "vocab_size"}
    with pytest.raises(converters.CoverageError, match=r"\[257, 40\].*'V' is 50272"):
        converters.convert_state_dict(converters.load_spec(NAME), source.state_dict(), config=config)
