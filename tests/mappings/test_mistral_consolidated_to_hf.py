"""Mistral AI's releases against transformers' Mistral and Mixtral; the oracle for theirs is in tests.models_llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import MistralForCausalLM, MixtralForCausalLM

import converters
from tests.mappings.proof import assert_same_logits, convert_there_and_back, load_strictly, read_config
from tests.models_base import write_checkpoint
from tests.models_llama import ConsolidatedMistral, tiny_consolidated, tiny_mistral, tiny_mixtral

SPECS: dict[bool, str] = {False: "mistral_consolidated_to_hf", True: "mixtral_consolidated_to_hf"}
CLASSES: dict[bool, Any] = {False: MistralForCausalLM, True: MixtralForCausalLM}
EXPERTS = pytest.mark.parametrize("experts", SPECS, ids=["mistral", "mixtral"])
# What the way back spells out, and what the releases have no key for.
GAINED = {"max_position_embeddings": 32768, "tied_embeddings": False}


@EXPERTS
@pytest.mark.parametrize(
    ("overrides", "theta"),
    [
        ({"sliding_window": 20}, 10000.0),
        ({"rope_theta": 500.0, "sliding_window": None, "n_kv_heads": 3}, 500.0),
        ({"head_dim": 8}, 1000000.0),
    ],
    ids=["window", "base", "neither"],
)
def test_forward(tmp_path: Path, experts: bool, overrides: dict[str, Any], theta: float) -> None:  # noqa: FBT001
    source = tiny_consolidated(1, experts=experts, **overrides)
    source.save_pretrained(tmp_path / "source", max_shard_size="60KB")
    lost = {key for key, value in source.config.items() if value is None}
    there = convert_there_and_back(
        SPECS[experts], tmp_path / "source", lost=lost, gained=GAINED | {"rope_theta": theta}
    )
    model = load_strictly(CLASSES[experts], there)
    assert model.config.rope_parameters["rope_theta"] == theta
    assert model.config.sliding_window == overrides.get("sliding_window")
    assert_same_logits(source, model, 257)


@EXPERTS
def test_reverse(tmp_path: Path, experts: bool) -> None:  # noqa: FBT001
    model = (tiny_mixtral if experts else tiny_mistral)(2)
    model.save_pretrained(tmp_path / "model", max_shard_size="60KB")
    there = convert_there_and_back(SPECS[experts], tmp_path / "model", reverse=True, gained={"rope_theta": 5000.0})
    params = read_config(there)
    assert (params["dim"], params["head_dim"], params["hidden_dim"], params["rope_theta"]) == (48, 12, 88, 5000.0)
    assert not {"rope_parameters", "intermediate_size", "hidden_size", "num_local_experts"} & params.keys()
    assert_same_logits(ConsolidatedMistral.from_pretrained(there), model, 253)


def test_a_missing_expert_is_noticed(tmp_path: Path) -> None:
    source = tiny_consolidated(3, experts=True)
    state = {key: value for key, value in source.state_dict().items() if ".1.feed_forward.experts.4." not in key}
    write_checkpoint(tmp_path / "source", source.config, state)
    with pytest.raises(converters.CoverageError, match="no key for i=1, e=4"):
        converters.convert(converters.load_spec(SPECS[True]), tmp_path / "source", tmp_path / "out")


@EXPERTS
def test_other_positions_are_refused_on_the_way_back(tmp_path: Path, experts: bool) -> None:  # noqa: FBT001
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    (tiny_mixtral if experts else tiny_mistral)(4, rope_parameters=rope).save_pretrained(tmp_path / "model")
    with pytest.raises(converters.ConfigError, match="rope_type is 'linear'"):
        converters.convert(converters.load_spec(SPECS[experts]), tmp_path / "model", tmp_path / "out", reverse=True)
