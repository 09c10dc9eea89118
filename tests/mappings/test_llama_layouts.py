"""Llama under the names of training packages against transformers' Llama; the packages themselves are the oracles.

Each package computes the logits of its own layout, and where it has a converter of its own, that gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import converters
from tests.mappings.proof import (
    assert_same_bytes,
    assert_same_logits,
    convert_there_and_back,
    load_strictly,
    read_config,
    read_tensors,
)
from tests.models_llama import tiny_llama
from tests.models_packages import (
    MegatronLlama,
    OlmoLlama,
    PackageModel,
    TitanLlama,
    TuneLlama,
    tiny_megatron,
    tiny_olmo_core,
    tiny_titan,
    tiny_tune,
    transformer_engine_names,
)
from tests.oracles import oracle

TUNE, TITAN = "llama_torchtune_to_hf", "llama_torchtitan_to_hf"
OLMO, MEGATRON = "llama_olmo_core_to_hf", "llama_megatron_core_to_hf"
CLASSES: dict[str, type[PackageModel]] = {TUNE: TuneLlama, TITAN: TitanLlama, OLMO: OlmoLlama, MEGATRON: MegatronLlama}
UNTIED = {"tie_word_embeddings": False}
# What Megatron-Core takes for granted and the way back spells out.
SPELT_OUT = {
    "add_qkv_bias": False,
    "qk_layernorm": False,
    "rotary_interleaved": False,
    "rotary_percent": 1.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SCALING_ARGS = {
    "scaling_factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("overrides", "gained"),
    [
        ({}, {}),
        ({"intermediate_dim": None, "rope_base": None, "num_kv_heads": 6}, {"intermediate_dim": 256, "rope_base": 5e5}),
        ({"scale_factor": 8, "rope_base": 1000000, "num_heads": 3, "num_kv_heads": 1}, {}),
        ({"scale_factor": 32, "tie_word_embeddings": True}, {"tie_word_embeddings": True}),
    ],
    ids=["grouped-query", "defaults", "Llama 3.1", "Llama 3.2"],
)
def test_torchtune(tmp_path: Path, overrides: dict[str, Any], gained: dict[str, Any]) -> None:
    source = tiny_tune(1, **overrides)
    source.save_pretrained(tmp_path / "source", max_shard_size="60KB")
    there = convert_there_and_back(TUNE, tmp_path / "source", gained=UNTIED | gained)
    assert_same_logits(source, load_strictly(LlamaForCausalLM, there), 253)
    theirs = oracle("torchtune.models.convert_weights").tune_to_hf(source.state_dict(), **heads(source))
    found = read_tensors(there)
    assert_same_bytes(found, theirs)


@pytest.mark.parametrize(
    ("overrides", "gained"),
    [
        ({}, {}),
        ({"n_kv_heads": None, "ffn_dim_multiplier": None, "multiple_of": None, "rope_theta": None},
         {"ffn_dim_multiplier": 2.0, "multiple_of": 256, "rope_theta": 10000.0}),
        ({"rope_scaling_args": None, "rope_theta": 1e6, "n_heads": 3, "n_kv_heads": 1},
         {"rope_scaling_args": SCALING_ARGS}),
    ],
    ids=["grouped-query", "defaults", "scaled"],
)  # fmt: skip
def test_torchtitan(tmp_path: Path, overrides: dict[str, Any], gained: dict[str, Any]) -> None:
    source = tiny_titan(2, **overrides)
    source.save_pretrained(tmp_path / "source", max_shard_size="60KB")
    there = convert_there_and_back(TITAN, tmp_path / "source", gained=UNTIED | gained)
    assert_same_logits(source, load_strictly(LlamaForCausalLM, there), 253)
    assert_same_bytes(read_tensors(there), adapter(source).to_hf(source.state_dict()))


@pytest.mark.parametrize(
    "overrides",
    [{}, {"n_kv_heads": None, "head_dim": 12}, {"rope_theta": 1000000, "n_heads": 3, "n_kv_heads": 1, "scaled": True},
     {"tie_word_embeddings": True}],
    ids=["grouped-query", "wide heads", "scaled", "tied"],
)  # fmt: skip
def test_olmo_core(tmp_path: Path, overrides: dict[str, Any]) -> None:
    if overrides.pop("scaled", False):
        overrides["rope_scaling"] = oracle("olmo_core.nn.rope").StepwiseRoPEScalingConfig(factor=8.0)
    source = tiny_olmo_core(3, **overrides)
    source.save_pretrained(tmp_path / "source", max_shard_size="60KB")
    gained = {"model": without_training(source.config["model"]), "max_position_embeddings": 4096}
    there = convert_there_and_back(OLMO, tmp_path / "source", lost=["run_name"], gained=gained)
    llama = load_strictly(LlamaForCausalLM, there)
    assert_same_logits(source, llama, 253)
    theirs = oracle("olmo_core.nn.hf.convert").convert_state_to_hf(llama.config, source.state_dict())
    if overrides.get("tie_word_embeddings"):
        del theirs["lm_head.weight"]  # transformers stores a tied pair once
    assert_same_bytes(read_tensors(there), theirs)


@pytest.mark.parametrize(
    ("overrides", "gained"),
    [
        ({}, {"rope_scaling": False}),
        ({"num_query_groups": 1, "kv_channels": None, "transformer_impl": "transformer_engine"},
         {"rope_scaling": False}),
        ({"rope_scaling": True, "rope_scaling_factor": 32.0, "rotary_base": 1000000, "kv_channels": 16}, {}),
        ({"share_embeddings_and_output_weights": True}, {"rope_scaling": False}),
    ],
    ids=["grouped-query", "Transformer Engine", "scaled", "shared"],
)  # fmt: skip
def test_megatron_core(tmp_path: Path, overrides: dict[str, Any], gained: dict[str, Any]) -> None:
    source = tiny_megatron(4, **overrides)
    source.save_pretrained(tmp_path / "source", max_shard_size="60KB")
    there = convert_there_and_back(MEGATRON, tmp_path / "source", gained=SPELT_OUT | gained)
    assert_same_logits(source, load_strictly(LlamaForCausalLM, there), 253)


def test_transformer_engine_s_layers_hold_the_norms_and_an_extra_state() -> None:
    source = tiny_megatron(5)
    names = transformer_engine_names()
    assert len(names) == 2
    spec, state = converters.load_spec(MEGATRON), source.state_dict()
    expected = converters.convert_state_dict(spec, state, config=source.config)
    for ours, theirs in names.items():
        state = {key.replace(ours, theirs): tensor for key, tensor in state.items()}
    state["decoder.layers.0.self_attention.linear_qkv._extra_state"] = torch.zeros(7, dtype=torch.uint8)
    engine = source.config | {"transformer_impl": "transformer_engine"}
    assert_same_bytes(converters.convert_state_dict(spec, state, config=engine), expected)
    del engine["transformer_impl"]  # TransformerConfig's default
    assert_same_bytes(converters.convert_state_dict(spec, state, config=engine), expected)
    with pytest.raises(converters.CoverageError, match="input_layernorm"):
        converters.convert_state_dict(spec, state, config=source.config)


@pytest.mark.parametrize("overrides", [{}, {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
                                       {"tie_word_embeddings": True}], ids=["default", "scaled", "tied"])  # fmt: skip
@pytest.mark.parametrize("name", CLASSES)
def test_reverse(tmp_path: Path, name: str, overrides: dict[str, Any]) -> None:
    llama = tiny_llama(6, **overrides)
    llama.save_pretrained(tmp_path / "llama", max_shard_size="60KB")
    gained: dict[str, Any] = {"rope_theta": llama.config.rope_parameters["rope_theta"]}
    if "rope_parameters" in overrides:
        gained["rope_scaling"] = LLAMA3
    if name == TITAN:
        gained |= {"multiple_of": 88, "ffn_dim_multiplier": 88 / 128}
    if name == MEGATRON:
        gained |= {"transformer_impl": "transformer_engine"}
    there = convert_there_and_back(name, tmp_path / "llama", reverse=True, gained=gained)
    assert not {"rope_parameters", "intermediate_size", "rms_norm_eps"} & read_config(there).keys()
    assert_same_logits(CLASSES[name].from_pretrained(there), llama, 253)


def test_reverse_gives_the_bytes_of_the_packages_own_converters(tmp_path: Path) -> None:
    llama = tiny_llama(7)
    llama.save_pretrained(tmp_path / "llama")
    state = llama.state_dict()
    expected = {
        TUNE: lambda model: oracle("torchtune.models.convert_weights").hf_to_tune(state, **heads(model)),
        TITAN: lambda model: adapter(model).from_hf(state),
        OLMO: lambda _: oracle("olmo_core.nn.hf.convert").convert_state_from_hf(
            llama.config, state, model_type="llama"
        ),
    }
    for name, theirs in expected.items():
        converters.convert(converters.load_spec(name), tmp_path / "llama", tmp_path / name, reverse=True)
        assert_same_bytes(read_tensors(tmp_path / name), theirs(CLASSES[name].from_pretrained(tmp_path / name)))


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "rope_type is 'linear'"),
    ],
)
def test_what_a_package_can_not_say_is_refused(
    tmp_path: Path, name: str, overrides: dict[str, Any], message: str
) -> None:
    tiny_llama(8, **overrides).save_pretrained(tmp_path / "llama")
    with pytest.raises(converters.ConfigError, match=message):
        converters.convert(converters.load_spec(name), tmp_path / "llama", tmp_path / "out", reverse=True)


@pytest.mark.parametrize("name", [TUNE, TITAN])
def test_heads_that_do_not_fill_the_width_are_refused(tmp_path: Path, name: str) -> None:
    tiny_llama(8, head_dim=12).save_pretrained(tmp_path / "llama")
    with pytest.raises(converters.ConfigError, match="head_dim is 12, but the way back would derive 8"):
        converters.convert(converters.load_spec(name), tmp_path / "llama", tmp_path / "out", reverse=True)


@pytest.mark.parametrize(
    ("name", "model", "changes", "message"),
    [
        (MEGATRON, tiny_megatron, {"rotary_interleaved": True}, "rotary_interleaved is True"),
        (MEGATRON, tiny_megatron, {"qk_layernorm": True}, "qk_layernorm is True"),
        (MEGATRON, tiny_megatron, {"activation_func": "gelu"}, "activation_func: .* wants 'silu'"),
        (OLMO, tiny_olmo_core, {"model.block.name": "reordered_norm"}, "name: .* wants 'default'"),
        (OLMO, tiny_olmo_core, {"model.embed_scale": 2.0}, "embed_scale is 2.0"),
        (OLMO, tiny_olmo_core, {"model.block.sequence_mixer.softmax_scale": 0.5}, "softmax_scale is 0.5"),
    ],
)
def test_what_llama_does_not_compute_is_refused(
    tmp_path: Path, name: str, model: Any, changes: Mapping[str, Any], message: str
) -> None:
    source = model(9)
    for path, value in changes.items():
        *parents, last = path.split(".")
        holder = source.config
        for key in parents:
            holder = holder[key]
        holder[last] = value
    source.save_pretrained(tmp_path / "source")
    with pytest.raises(converters.ConfigError, match=message):
        converters.convert(converters.load_spec(name), tmp_path / "source", tmp_path / "out")


def heads(model: PackageModel) -> dict[str, int]:
    """What torchtune's converters want to know."""
    names = {"num_heads": "num_heads", "num_kv_heads": "num_kv_heads", "dim": "embed_dim"}
    return {theirs: model.config[ours] for theirs, ours in names.items()}


def adapter(model: PackageModel) -> Any:
    """torchtitan's converter."""
    assert isinstance(model, TitanLlama)
    package = oracle("torchtitan.models.llama3.model.state_dict_adapter")
    return package.Llama3StateDictAdapter(model.arguments(), None)


def without_training(config: Any) -> Any:
    """OLMo-core's config of a model without what only its training needs."""
    training = {"backend", "dtype", "full_precision", "init_method", "init_seed", "init_std", "loss_implementation"}
    if not isinstance(config, dict):
        return config
    return {key: without_training(value) for key, value in config.items() if key not in training}
