"""Hugging Face's checkpoints to LitGPT and back, against LitGPT's model, its own conversions and its own scripts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import converters
from converters.manifest import MANIFEST
from tests.mappings.proof import (
    assert_same_bytes,
    assert_same_logits,
    convert_there_and_back,
    load_strictly,
    logits_of,
    prompts,
    read_config,
    read_tensors,
    tolerance,
)
from tests.models import randomize, tiny_mixformer, tiny_phi
from tests.models_gpt2 import tiny_gpt2
from tests.models_litgpt import (
    CONFIG,
    KINDS,
    SPEC,
    WEIGHTS,
    LitGPT,
    hf_from_litgpt,
    litgpt,
    litgpt_from_hf,
    save_interleaved,
    tiny_litgpt,
)
from tests.models_llama import tiny_llama, tiny_mistral
from tests.models_llama_style import tiny_falcon, tiny_neox

Build = Callable[..., Any]

HF_CLASS = {
    "phi": "PhiForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "falcon-7b": "FalconForCausalLM",
    "falcon-40b": "FalconForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
NEWER_FALCON = {"new_decoder_architecture": True, "num_kv_heads": 2}
MODELS: dict[str, tuple[str, Build, dict[str, Any]]] = {
    "phi": ("phi", tiny_phi, {}),
    "phi, grouped queries": ("phi", tiny_phi, {"num_key_value_heads": 2}),
    "phi, tied": ("phi", tiny_phi, {"tie_word_embeddings": True, "hidden_act": "gelu"}),
    "neox": ("gpt_neox", tiny_neox, {}),
    "neox, serial": ("gpt_neox", tiny_neox, {"use_parallel_residual": False, "hidden_act": "gelu_fast"}),
    "neox, tied": ("gpt_neox", tiny_neox, {"tie_word_embeddings": True}),
    "falcon 7B": ("falcon-7b", tiny_falcon, {}),
    "falcon 11B": ("falcon-7b", tiny_falcon, {**NEWER_FALCON, "num_ln_in_parallel_attn": 1}),
    "falcon 40B": ("falcon-40b", tiny_falcon, {**NEWER_FALCON, "tie_word_embeddings": False}),
    "llama": ("llama", tiny_llama, {}),
    "llama, wide heads, tied": ("llama", tiny_llama, {"head_dim": 12, "tie_word_embeddings": True}),
    "llama 3.1": ("llama", tiny_llama, {"rope_parameters": LLAMA3_ROPE}),
    "llama, longer": (
        "llama",
        tiny_llama,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}},
    ),
    "mistral": ("mistral", tiny_mistral, {}),
    "mistral, no window": ("mistral", tiny_mistral, {"sliding_window": None}),
}
"""Those that LitGPT's own conversion can read; for Llama it knows no biases, for Falcon no serial blocks."""

OTHERS: dict[str, tuple[str, Build, dict[str, Any]]] = {
    "falcon, serial": ("falcon-7b", tiny_falcon, {"parallel_attn": False}),
    "falcon, biases, each head its own": ("falcon-7b", tiny_falcon, {"multi_query": False, "bias": True}),
    "llama, biases": ("llama", tiny_llama, {"attention_bias": True, "mlp_bias": True}),
}


def old_head(kind: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """GPT-NeoX's head under the name that it had before transformers 5, which LitGPT knows."""
    named = {"lm_head.weight": "embed_out.weight"} if kind == "gpt_neox" else {}
    return {named.get(key, key): tensor for key, tensor in state.items()}


def with_head(kind: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A tied checkpoint with both ends, as LitGPT's conversions for Phi, GPT-NeoX and Falcon want it."""
    ends = {
        "phi": ("lm_head.weight", "model.embed_tokens.weight"),
        "gpt_neox": ("embed_out.weight", "gpt_neox.embed_in.weight"),
        "falcon": ("lm_head.weight", "transformer.word_embeddings.weight"),
    }
    head, embedding = ends.get(kind.partition("-")[0], ("", ""))
    return {head: state[embedding], **state} if head else state


def of_version_4(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """The keys of older configs that come back beside those of newer ones, which transformers 5 leaves alone."""
    rope = config["rope_parameters"]
    theta, share = rope["rope_theta"], rope.get("partial_rotary_factor")
    if kind == "gpt_neox":
        return {"rotary_emb_base": theta, "rotary_pct": share}
    if kind == "phi":
        return {"rope_theta": theta, "partial_rotary_factor": share}
    scaling = {key: value for key, value in rope.items() if key != "rope_theta" and value != "default"}
    if scaling.get("rope_type") == "linear":
        scaling["type"] = "linear"
    return {"rope_theta": theta, **({"rope_scaling": scaling} if scaling else {})}


NAMES = {"phi": "phi", "gpt_neox": "pythia", "llama": "Llama", "mistral": "Mistral"}


@pytest.mark.parametrize("case", [*MODELS, *OTHERS])
def test_from_hugging_face_and_back(tmp_path: Path, case: str) -> None:
    kind, build, overrides = (MODELS | OTHERS)[case]
    model = build(1, **overrides)
    model.save_pretrained(tmp_path / "hf", max_shard_size="60KB")
    (tmp_path / "hf" / "tokenizer_config.json").write_text("{}")
    config = read_config(tmp_path / "hf")
    two_norms = config.get("new_decoder_architecture") and config.get("num_ln_in_parallel_attn") == 2
    name = NAMES.get(kind) or ("falcon-40b" if two_norms else "falcon-7b")
    gained = {"name": name, **of_version_4(kind, config)}
    there = convert_there_and_back(
        SPEC[kind], tmp_path / "hf", gained=gained, expected=lambda state: old_head(kind, state)
    )
    carried = {"generation_config.json", "tokenizer_config.json"}
    assert {file.name for file in there.iterdir()} == {WEIGHTS, CONFIG, MANIFEST, *carried}
    assert_same_logits(model, LitGPT.from_pretrained(there), config["vocab_size"], tolerance(SPEC[kind]))


@pytest.mark.parametrize("case", MODELS)
def test_the_bytes_of_litgpts_own_conversion(tmp_path: Path, case: str) -> None:
    kind, build, overrides = MODELS[case]
    build(2, **overrides).save_pretrained(tmp_path / "hf")
    spec = converters.load_spec(SPEC[kind])
    converters.convert(spec, tmp_path / "hf", tmp_path / "lit")
    config = litgpt("config").Config.from_file(tmp_path / "lit" / CONFIG)
    state = with_head(kind, old_head(kind, read_tensors(tmp_path / "hf")))
    ours, theirs = read_tensors(tmp_path / "lit"), litgpt_from_hf(kind, config, state)
    assert_same_bytes(ours, theirs)
    back = hf_from_litgpt(kind, config, ours)
    converters.convert(spec, tmp_path / "lit", tmp_path / "back", reverse=True)
    # A tied model is one matrix in our way back, and two in LitGPT's.
    assert_same_bytes(with_head(kind, read_tensors(tmp_path / "back")) | untied(kind, back), back)


def untied(kind: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"lm_head.weight": state["lm_head.weight"]} if kind in ("llama", "mistral") else {}


@pytest.mark.parametrize("kind", KINDS)
def test_litgpts_own_script_reads_what_is_written(tmp_path: Path, kind: str) -> None:
    """From our two files alone: it loads lazily, and chooses its conversion by the name in the config."""
    case = next(case for case, (of, *_) in MODELS.items() if of == kind)
    _, build, overrides = MODELS[case]
    build(3, **overrides).save_pretrained(tmp_path / "hf")
    converters.convert(converters.load_spec(SPEC[kind]), tmp_path / "hf", tmp_path / "lit")
    litgpt("utils").check_valid_checkpoint_dir(tmp_path / "lit", ignore_tokenizer_files=True, raise_error=True)
    litgpt("scripts.convert_lit_checkpoint").convert_lit_checkpoint(tmp_path / "lit", tmp_path / "out")
    expected = with_head(kind, old_head(kind, read_tensors(tmp_path / "hf")))
    assert_same_bytes(torch.load(tmp_path / "out" / "model.pth", weights_only=True), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_from_litgpt_and_back(tmp_path: Path, kind: str) -> None:
    """What LitGPT itself wrote, with an odd vocabulary in padded matrices."""
    model = tiny_litgpt(kind, 4)
    model.save_pretrained(tmp_path / "lit")
    before = read_config(tmp_path / "lit")
    assert (before["vocab_size"], before["padded_vocab_size"]) == (241, 249)
    spec = converters.load_spec(SPEC[kind])
    converters.convert(spec, tmp_path / "lit", tmp_path / "hf", reverse=True)
    back = getattr(transformers, HF_CLASS[kind])
    assert read_config(tmp_path / "hf")["vocab_size"] == 249
    assert_same_logits(model, load_strictly(back, tmp_path / "hf"), 249, tolerance(SPEC[kind]))
    converters.convert(spec, tmp_path / "hf", tmp_path / "again")
    assert_same_bytes(read_tensors(tmp_path / "again"), read_tensors(tmp_path / "lit"))
    again = LitGPT.from_pretrained(tmp_path / "again").gpt.config
    differing = {key for key, value in asdict(again).items() if value != before[key]}
    assert differing == {"hf_config", "vocab_size"}


def test_a_checkpoint_from_litgpts_training(tmp_path: Path) -> None:
    """It holds the weights under `model`, and torch.compile puts a prefix before each key."""
    model = tiny_litgpt("falcon-40b", 13)
    model.save_pretrained(tmp_path / "lit")
    spec = converters.load_spec("falcon_to_litgpt")
    converters.convert(spec, tmp_path / "lit", tmp_path / "plain", reverse=True)
    compiled = {f"_orig_mod.{key}": tensor for key, tensor in model.state_dict().items()}
    torch.save({"model": compiled}, tmp_path / "lit" / WEIGHTS)
    converters.convert(spec, tmp_path / "lit", tmp_path / "trained", reverse=True)
    assert_same_bytes(read_tensors(tmp_path / "trained"), read_tensors(tmp_path / "plain"))


def test_a_dtype_of_the_users_choice_stands_in_the_carried_config(tmp_path: Path) -> None:
    tiny_llama(5).save_pretrained(tmp_path / "hf")
    spec = converters.load_spec("llama_to_litgpt")
    converters.convert(spec, tmp_path / "hf", tmp_path / "lit", dtype="bfloat16")
    assert read_config(tmp_path / "lit")["hf_config"]["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in read_tensors(tmp_path / "lit").values()} == {torch.bfloat16}


def test_ends_that_differ_do_not_become_one(tmp_path: Path) -> None:
    """LitGPT trains the two ends of a tied model apart."""
    tiny_llama(8, tie_word_embeddings=True).save_pretrained(tmp_path / "hf")
    spec = converters.load_spec("llama_to_litgpt")
    converters.convert(spec, tmp_path / "hf", tmp_path / "lit")
    model = randomize(LitGPT.from_pretrained(tmp_path / "lit"), 9)
    torch.save(model.gpt.state_dict(), tmp_path / "lit" / WEIGHTS)
    with pytest.raises(converters.CoverageError, match="must be equal"):
        converters.convert(spec, tmp_path / "lit", tmp_path / "tied", reverse=True)
    apart = {"tie_word_embeddings": False}
    converters.convert(spec, tmp_path / "lit", tmp_path / "back", reverse=True, set_config=apart)
    back = load_strictly(transformers.LlamaForCausalLM, tmp_path / "back")
    assert_same_logits(model, back, 253, tolerance("llama_to_litgpt"))


@pytest.mark.parametrize("overrides", [{}, {"n_head_kv": 2}, {"tie_word_embeddings": True}, {"n_inner": None}])
def test_the_first_release_of_phi(tmp_path: Path, overrides: dict[str, Any]) -> None:
    tied = "tie_word_embeddings" in overrides
    model = tiny_mixformer(10, **overrides)
    if tied:
        model.lm_head["linear"].weight = model.get_submodule("transformer.embd.wte").weight
    model.save_pretrained(tmp_path / "first", "60KB")
    config = read_config(tmp_path / "first")
    gained: dict[str, Any] = {"name": "phi", "n_inner": config["n_inner"] or 4 * config["n_embd"]}
    spec = "phi2_mixformer_to_litgpt"
    one_end = (lambda state: {key: state[key] for key in state if key != "lm_head.linear.weight"}) if tied else dict
    there = convert_there_and_back(spec, tmp_path / "first", gained=gained, expected=one_end)
    assert_same_logits(model, LitGPT.from_pretrained(there), 251, tolerance(spec))
    # The same as by way of Hugging Face's layout.
    through = converters.load_spec("phi2_mixformer_to_phi2"), converters.load_spec("phi2_to_litgpt")
    converters.convert(through[0], tmp_path / "first", tmp_path / "hf")
    converters.convert(through[1], tmp_path / "hf", tmp_path / "lit")
    assert_same_bytes(read_tensors(there), read_tensors(tmp_path / "lit"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_layout_of_older_versions(tmp_path: Path, kind: str) -> None:
    """LitGPT reads its old files too, and turns them into the new layout on loading: that is what is compared."""
    model = tiny_litgpt(kind, 11)
    save_interleaved(model, tmp_path / "old")
    old = read_tensors(tmp_path / "old")
    key = "transformer.h.0.attn.attn.weight"
    assert old[key].equal(model.gpt.state_dict()[key.replace("attn.attn", "attn.qkv")]) == (kind == "falcon-7b")
    there = convert_there_and_back("litgpt_interleaved_to_litgpt", tmp_path / "old")
    assert_same_bytes(read_tensors(there), LitGPT.from_pretrained(tmp_path / "old").gpt.state_dict())
    assert_same_bytes(read_tensors(there), model.gpt.state_dict())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rotary", [1.0, 0.5, 0.0])
def test_why_there_is_no_gpt2(kind: str, rotary: float) -> None:
    """LitGPT adds nothing to a token's embedding; its positions only weigh values. With one token throughout, all
    values are equal, so the weights can't matter, and every position has the same logits whatever the parameters are.
    GPT-2's learned positions tell them apart: no weights of LitGPT's compute that.
    """
    tokens = torch.full((1, 40), 17)
    lit = logits_of(tiny_litgpt(kind, 12, rotary_percentage=rotary), tokens)[0]
    gpt2 = logits_of(tiny_gpt2(12), tokens)[0]
    assert (lit - lit[:1]).abs().max() < 1e-4
    assert (gpt2 - gpt2[:1]).abs().max() > 1
    different = logits_of(tiny_litgpt(kind, 12, rotary_percentage=rotary), prompts(241, 1, 40))[0]
    assert (different - different[:1]).abs().max() > 1
