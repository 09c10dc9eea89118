"""Google's BERT, exported from TensorFlow to .npz, against transformers' BERT with both heads of pre-training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertForPreTraining

import converters
from tests.answers import difference
from tests.mappings.proof import (
    ATOL,
    assert_same_bytes,
    convert_there_and_back,
    load_strictly,
    read_config,
    read_tensors,
)
from tests.models_base import write_checkpoint
from tests.models_bert_tf import GoogleBert, of_pretraining, tiny_google_bert, tiny_pretraining_bert, write_npz

SPEC = "bert_tf_to_hf"
DERIVED = {"position_embedding_type": "absolute"}


@pytest.mark.parametrize("compressed", [False, True])
def test_from_npz_and_back(tmp_path: Path, compressed: bool) -> None:  # noqa: FBT001
    source = tiny_google_bert(1)
    npz = write_npz(tmp_path / "source", source.config, source.state_dict(), compressed=compressed)
    spec = converters.load_spec(SPEC)
    converters.convert(spec, npz, tmp_path / "there", max_shard_size="60KB")
    model = load_strictly(BertForPreTraining, tmp_path / "there")
    assert difference(of_pretraining(251)(source), of_pretraining(251)(model)) <= ATOL
    assert model.config.architectures == ["BertForPreTraining"]
    assert model.config.layer_norm_eps == 1e-12
    converters.convert(spec, tmp_path / "there", tmp_path / "back", reverse=True)
    assert_same_bytes(read_tensors(tmp_path / "back"), source.state_dict())
    assert read_config(tmp_path / "back") == source.config


def test_reverse(tmp_path: Path) -> None:
    model = tiny_pretraining_bert(2)
    model.save_pretrained(tmp_path / "model", max_shard_size="60KB")
    there = convert_there_and_back(SPEC, tmp_path / "model", reverse=True, gained=DERIVED)
    google = GoogleBert.from_pretrained(there)
    assert difference(of_pretraining(241)(model), of_pretraining(241)(google)) <= ATOL


def test_the_optimizer_is_left_out_with_reasons(tmp_path: Path) -> None:
    source = tiny_google_bert(3)
    weights = source.state_dict()
    slots = {f"{name}/adam_{moment}": torch.full_like(value, 7) for name, value in weights.items() for moment in "mv"}
    npz = write_npz(tmp_path / "source", source.config, weights | slots | {"global_step": torch.tensor(100)})
    spec = converters.load_spec(SPEC)
    plan = converters.convert(spec, npz, tmp_path / "there")
    assert len(plan.dropped) == 2 * len(weights) + 1
    assert all(dropped.reason for dropped in plan.dropped)
    expected = converters.convert_state_dict(spec, weights, config=source.config)
    assert_same_bytes(read_tensors(tmp_path / "there"), expected)


def test_the_biases_of_keys_go_where_they_belong() -> None:
    """A bias of all keys adds the same to every score of a query, so no answer can show where it went."""
    source = tiny_google_bert(8)
    converted = converters.convert_state_dict(converters.load_spec(SPEC), source.state_dict(), config=source.config)
    for layer in range(3):
        original = source.get_parameter(f"bert/encoder/layer_{layer}/attention/self/key/bias")
        assert torch.equal(converted[f"bert.encoder.layer.{layer}.attention.self.key.bias"], original)


def test_older_files_of_transformers_on_the_way_back() -> None:
    """gamma and beta, position_ids and the head under keys of its own: what the Hub has of 2018 and 2019."""
    model = tiny_pretraining_bert(4)
    spec, config = converters.load_spec(SPEC), model.config.to_dict()
    state = model.state_dict()
    assert {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"} <= state.keys()
    expected = converters.convert_state_dict(spec, state, reverse=True, config=config)
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in state.items()
        if "decoder" not in key
    }
    assert sum(key.endswith("gamma") for key in old) == 6
    old["bert.embeddings.position_ids"] = torch.arange(200)[None]
    assert_same_bytes(converters.convert_state_dict(spec, old, reverse=True, config=config), expected)


def test_a_head_that_is_not_the_embedding_is_refused(tmp_path: Path) -> None:
    model = tiny_pretraining_bert(5)
    state = dict(model.state_dict())
    state["cls.predictions.decoder.weight"] = state["cls.predictions.decoder.weight"] + 1
    write_checkpoint(tmp_path / "model", model.config.to_dict(), state)
    with pytest.raises(converters.CoverageError, match="must be equal to become one tensor"):
        converters.convert(converters.load_spec(SPEC), tmp_path / "model", tmp_path / "out", reverse=True)


def test_the_note_on_gelu_says_what_is_measured(tmp_path: Path) -> None:
    """Google's later code, and the config that makes transformers compute the same."""
    source = tiny_google_bert(6, hidden_act="gelu_new")
    named = tiny_google_bert(6)
    npz = write_npz(tmp_path / "source", named.config, named.state_dict())
    spec = converters.load_spec(SPEC)
    plan = converters.convert(spec, npz, tmp_path / "exact")
    assert any("hidden_act=gelu_new" in note for note in plan.notes)
    converters.convert(spec, npz, tmp_path / "tanh", set_config={"hidden_act": "gelu_new"})
    exact, tanh = (load_strictly(BertForPreTraining, tmp_path / name) for name in ("exact", "tanh"))
    answers = of_pretraining(251)
    assert difference(answers(source), answers(tanh)) <= ATOL
    assert difference(answers(source), answers(exact)) > 10 * ATOL


@pytest.mark.parametrize(("key", "value"), [("layer_norm_eps", 1e-5), ("is_decoder", True)])
def test_what_googles_code_does_not_compute_is_refused(tmp_path: Path, key: str, value: object) -> None:
    tiny_pretraining_bert(7, **{key: value}).save_pretrained(tmp_path / "model")
    with pytest.raises(converters.ConfigError, match=f"{key}"):
        converters.convert(converters.load_spec(SPEC), tmp_path / "model", tmp_path / "out", reverse=True)
