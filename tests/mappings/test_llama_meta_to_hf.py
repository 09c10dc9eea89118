"""Meta's Llama against transformers' Llama; the oracle for Meta's layout is the plain forward in tests.models_llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import converters
from converters.commands import main
from tests.mappings.proof import (
    assert_same_bytes,
    assert_same_logits,
    convert_there_and_back,
    load_strictly,
    read_config,
    read_tensors,
)
from tests.models_base import read_files, write_checkpoint
from tests.models_llama import MetaLlama, tiny_llama, tiny_meta_llama

NAME = "llama_meta_to_hf"
# The way back spells these out.
GAINED = {"max_position_embeddings": 4096, "tie_word_embeddings": False, "use_scaled_rope": False}
METAS: dict[str, dict[str, Any]] = {
    "grouped-query": {},
    "Llama 1 and 2, 7B": {"n_kv_heads": None, "ffn_dim_multiplier": None, "rope_theta": None, "multiple_of": 16},
    "multi-query": {"n_heads": 4, "dim": 40, "n_kv_heads": 1},
}


@pytest.mark.parametrize("overrides", METAS.values(), ids=METAS)
def test_forward(tmp_path: Path, overrides: dict[str, Any]) -> None:
    source = tiny_meta_llama(1, with_freqs=True, **overrides)
    source.save_pretrained(tmp_path / "source", max_shard_size="60KB")
    theta = source.config["rope_theta"] or 10000.0
    there = convert_there_and_back(
        NAME,
        tmp_path / "source",
        gained=GAINED | {"rope_theta": theta},
        expected=lambda state: {key: value for key, value in state.items() if key != "rope.freqs"},
    )
    llama = load_strictly(LlamaForCausalLM, there)
    assert llama.config.rope_parameters == {"rope_type": "default", "rope_theta": theta}
    assert_same_logits(source, llama, 253)


@pytest.mark.parametrize("factor", [None, 32.0])
def test_scaled_positions(tmp_path: Path, factor: float | None) -> None:
    """Llama 3.1 and 3.2; with a small base, all three kinds of frequencies occur in sixteen features."""
    changes = {"use_scaled_rope": True, "rope_theta": 1e6, "n_heads": 3, "n_kv_heads": 1}
    source = tiny_meta_llama(2, **changes, **({"rope_scaling_factor": factor} if factor else {}))
    source.save_pretrained(tmp_path / "source")
    gained = {"max_position_embeddings": 131072, "tie_word_embeddings": False, "rope_scaling_factor": factor or 8.0}
    there = convert_there_and_back(NAME, tmp_path / "source", gained=gained)
    llama = load_strictly(LlamaForCausalLM, there)
    assert llama.config.rope_parameters["rope_type"] == "llama3"
    assert_same_logits(source, llama, 253)


@pytest.mark.parametrize(
    "overrides",
    [{}, {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0,
                              "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}],
    ids=["default", "llama3"],
)  # fmt: skip
def test_reverse(tmp_path: Path, overrides: dict[str, Any]) -> None:
    llama = tiny_llama(3, **overrides)
    llama.save_pretrained(tmp_path / "llama", max_shard_size="60KB")
    gained = {"rope_theta": llama.config.rope_parameters["rope_theta"], "multiple_of": 88,
              "ffn_dim_multiplier": 88 / 128}  # fmt: skip
    if overrides:
        gained["rope_scaling"] = {k: v for k, v in overrides["rope_parameters"].items() if k != "rope_theta"}
    there = convert_there_and_back(NAME, tmp_path / "llama", reverse=True, gained=gained)
    params = read_config(there)
    assert (params["dim"], params["n_kv_heads"], params["multiple_of"]) == (48, 2, 88)
    assert not {"rope_parameters", "intermediate_size", "hidden_size", "head_dim"} & params.keys()
    assert_same_logits(MetaLlama.from_pretrained(there), llama, 253)


def test_tied_embeddings(tmp_path: Path) -> None:
    """Tied, transformers stores one matrix and Meta stores two."""
    llama = tiny_llama(4, tie_word_embeddings=True)
    llama.save_pretrained(tmp_path / "llama")
    there = convert_there_and_back(
        NAME, tmp_path / "llama", reverse=True,
        gained={"rope_theta": 5000.0, "multiple_of": 88, "ffn_dim_multiplier": 88 / 128},
    )  # fmt: skip
    state = read_tensors(there)
    assert torch.equal(state["tok_embeddings.weight"], state["output.weight"])
    assert_same_logits(MetaLlama.from_pretrained(there), llama, 253)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"head_dim": 12}, "head_dim is 12, but the way back would derive 8"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "rope_type is 'linear'"),
    ],
)
def test_what_meta_can_not_say_is_refused(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    tiny_llama(5, **overrides).save_pretrained(tmp_path / "llama")
    with pytest.raises(converters.ConfigError, match=message):
        converters.convert(converters.load_spec(NAME), tmp_path / "llama", tmp_path / "out", reverse=True)


def test_transformers_4_configs_say_their_scaling_elsewhere(tmp_path: Path) -> None:
    llama = tiny_llama(5)
    llama.save_pretrained(tmp_path / "llama")
    config = read_config(tmp_path / "llama")
    del config["rope_parameters"]
    spec = converters.load_spec(NAME)
    for scaling in ({"type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 2.0}):
        with pytest.raises(converters.ConfigError, match=r"rope_scaling\.(rope_)?type is '(linear|yarn)'"):
            converters.convert_state_dict(
                spec, llama.state_dict(), reverse=True, config=config | {"rope_theta": 1e4, "rope_scaling": scaling}
            )


def test_llama_2_leaves_the_vocabulary_to_the_tokenizer_and_the_tensors_tell(tmp_path: Path) -> None:
    source = tiny_meta_llama(7)
    write_checkpoint(tmp_path / "source", source.config | {"vocab_size": -1}, source.state_dict())
    converters.convert(converters.load_spec(NAME), tmp_path / "source", tmp_path / "out")
    assert read_config(tmp_path / "out")["vocab_size"] == 253
    assert_same_logits(source, load_strictly(LlamaForCausalLM, tmp_path / "out"), 253)


def test_a_wrong_width_is_noticed_before_a_byte_is_read(tmp_path: Path) -> None:
    source = tiny_meta_llama(6)
    write_checkpoint(tmp_path / "source", source.config | {"ffn_dim_multiplier": 1.3}, source.state_dict())
    with pytest.raises(converters.CoverageError, match=r"w1\.weight \[160, 48\].*'f' is 200"):
        converters.convert(converters.load_spec(NAME), tmp_path / "source", tmp_path / "out")


PARTS: dict[str, dict[str, Any]] = {
    "Llama 2, 13B": {"n_kv_heads": None, "rope_theta": None, "vocab_size": 254},
    "Llama 3, 70B": {"rope_theta": 500000.0, "vocab_size": 254},
}


@pytest.mark.parametrize("overrides", PARTS.values(), ids=PARTS)
def test_parts_of_a_tensor_parallel_model(tmp_path: Path, overrides: dict[str, Any]) -> None:
    """Merged on the way in, split on the way out, against fairscale's way to split, and against the model in one."""
    whole = tiny_meta_llama(6, **overrides)
    whole.save_pretrained(tmp_path / "whole")
    whole.save_pretrained(tmp_path / "parts", parts=2)
    assert sorted(read_files(tmp_path / "parts")) == ["consolidated.00.pth", "consolidated.01.pth"]
    spec = converters.load_spec(NAME)
    for name in ("whole", "parts"):
        converters.convert(spec, tmp_path / name, tmp_path / f"{name}-there")
    assert_same_bytes(read_tensors(tmp_path / "parts-there"), read_tensors(tmp_path / "whole-there"))
    assert_same_logits(whole, load_strictly(LlamaForCausalLM, tmp_path / "parts-there"), 254)
    command = ["convert", str(tmp_path / "parts-there"), str(tmp_path / "back"), "--spec", NAME, "--reverse"]
    main([*command, "--tensor-parallel", "2"], standalone_mode=False)
    back, before = read_files(tmp_path / "back"), read_files(tmp_path / "parts")
    assert sorted(back) == sorted(before)
    for file, tensors in before.items():
        assert_same_bytes(back[file], tensors)
    converters.convert(spec, tmp_path / "parts-there", tmp_path / "joined", reverse=True)
    assert_same_bytes(read_tensors(tmp_path / "joined"), read_tensors(tmp_path / "whole"))


def test_a_part_that_is_missing_or_differs_is_noticed(tmp_path: Path) -> None:
    spec = converters.load_spec(NAME)
    whole = tiny_meta_llama(7, vocab_size=255, n_heads=6, n_kv_heads=3, multiple_of=24)
    whole.save_pretrained(tmp_path / "three", parts=3)
    middle = tmp_path / "three" / "consolidated.01.pth"
    kept = middle.read_bytes()
    middle.unlink()
    with pytest.raises(converters.CoverageError, match=r"lacks t = 1; there are 0, 2"):
        converters.convert(spec, tmp_path / "three", tmp_path / "out")
    middle.write_bytes(kept)
    state = torch.load(middle, weights_only=True)
    torch.save({name: tensor for name, tensor in state.items() if "layers.1.attention_norm" not in name}, middle)
    with pytest.raises(converters.CoverageError, match=r"1:layers\.1\.attention_norm\.weight is missing"):
        converters.convert(spec, tmp_path / "three", tmp_path / "out")
    state["norm.weight"] += 1
    torch.save(state, middle)
    with pytest.raises(converters.CoverageError, match=r"0:norm\.weight and 1:norm\.weight must be equal"):
        converters.convert(spec, tmp_path / "three", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_single_part_of_several_is_not_taken_for_all(tmp_path: Path) -> None:
    tiny_meta_llama(8, vocab_size=254).save_pretrained(tmp_path / "two", parts=2)
    with pytest.raises(converters.CheckpointError, match="one part of 2"):
        converters.convert(converters.load_spec(NAME), tmp_path / "two" / "consolidated.00.pth", tmp_path / "out")
