"""transformers' GPT-2 against nanoGPT's layout, whose oracle is the plain forward in tests.models_gpt2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

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
from tests.models_gpt2 import NanoGPT, tiny_gpt2, tiny_nano_gpt

NAME = "gpt2_to_nanogpt"
# What nanoGPT has no key for, spelled out on the way back.
GAINED = {"n_inner": 192}


def without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("transformer."): value for key, value in state.items()}


@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_forward(tmp_path: Path, activation: str) -> None:
    gpt2 = tiny_gpt2(1, activation_function=activation)
    gpt2.save_pretrained(tmp_path / "gpt2", max_shard_size="60KB")
    there = convert_there_and_back(NAME, tmp_path / "gpt2", gained=GAINED, expected=without_prefix)
    nano = NanoGPT.from_pretrained(there)
    assert set(read_tensors(there)) == set(nano.state_dict())
    assert_same_logits(gpt2, nano, 251)
    with converters.prepare(converters.load_spec(NAME), tmp_path / "gpt2", converters.Options()) as prepared:
        assert any("exact GELU" in note for note in prepared.plan.notes) == (activation == "gelu_new")


def test_reverse(tmp_path: Path) -> None:
    nano = tiny_nano_gpt(2)
    nano.save_pretrained(tmp_path / "nano", max_shard_size="60KB")
    there = convert_there_and_back(NAME, tmp_path / "nano", reverse=True, gained={"activation_function": "gelu"})
    gpt2 = load_strictly(GPT2LMHeadModel, there)
    assert_same_logits(nano, gpt2, 259)


def test_with_prefix_and_buffers_or_without(tmp_path: Path) -> None:
    """The first release has no prefix, and old ones have buffers; all give the same."""
    gpt2 = tiny_gpt2(3)
    spec, config = converters.load_spec(NAME), gpt2.config.to_dict()
    gpt2.save_pretrained(tmp_path)
    saved = read_tensors(tmp_path)
    assert all(key.startswith("transformer.") for key in saved)
    expected = converters.convert_state_dict(spec, saved, config=config)
    assert_same_bytes(converters.convert_state_dict(spec, without_prefix(saved), config=config), expected)
    buffers = {f"h.{i}.attn.bias": torch.ones(1, 1, 512, 512).tril() for i in range(3)}
    buffers |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(3)}
    first = without_prefix(saved) | buffers | {"lm_head.weight": saved["transformer.wte.weight"]}
    assert_same_bytes(converters.convert_state_dict(spec, first, config=config), expected)


def test_compiled_and_with_the_mask(tmp_path: Path) -> None:
    nano = tiny_nano_gpt(4)
    state = {f"_orig_mod.{key}": value for key, value in nano.state_dict().items()}
    state |= {f"_orig_mod.transformer.h.{i}.attn.bias": torch.ones(1, 1, 512, 512).tril() for i in range(3)}
    write_checkpoint(tmp_path / "nano", nano.config, state)
    converters.convert(converters.load_spec(NAME), tmp_path / "nano", tmp_path / "gpt2", reverse=True)
    assert_same_logits(nano, load_strictly(GPT2LMHeadModel, tmp_path / "gpt2"), 259)


def test_an_untied_head_is_refused() -> None:
    gpt2 = tiny_gpt2(5, tie_word_embeddings=False)
    with pytest.raises(converters.CoverageError, match=r"lm_head\.weight must be equal"):
        converters.convert_state_dict(converters.load_spec(NAME), gpt2.state_dict(), config=gpt2.config.to_dict())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"n_inner": 80}, "n_inner is 80, but the way back would derive 192"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    ],
)
def test_what_nanogpt_can_not_compute_is_refused(overrides: dict[str, Any], message: str) -> None:
    gpt2 = tiny_gpt2(6, **overrides)
    with pytest.raises(converters.ConfigError, match=message):
        converters.convert_state_dict(converters.load_spec(NAME), gpt2.state_dict(), config=gpt2.config.to_dict())


def test_nanogpt_without_biases_is_refused(tmp_path: Path) -> None:
    nano = tiny_nano_gpt(7)
    write_checkpoint(tmp_path / "nano", nano.config | {"bias": False}, nano.state_dict())
    with pytest.raises(converters.ConfigError, match=r"bias: .* wants True"):
        converters.convert(converters.load_spec(NAME), tmp_path / "nano", tmp_path / "out", reverse=True)
    assert read_config(tmp_path / "nano")["bias"] is False
