"""BERT and DistilBERT against torch.nn.TransformerEncoder: two implementations that this project did not write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertForSequenceClassification, BertModel, DistilBertForSequenceClassification

import converters
from tests.mappings.proof import (
    ATOL,
    LENGTH,
    assert_same_bytes,
    convert_there_and_back,
    load_strictly,
    logits_of,
    padded,
    prompts,
    read_config,
)
from tests.models_base import write_checkpoint
from tests.models_encoder import TorchEncoder, tiny_bert, tiny_distilbert, tiny_torch_encoder


@dataclass(frozen=True)
class Family:
    spec: str
    build: Callable[..., nn.Module]
    cls: Any
    prefix: str
    vocab: int
    torch_config: dict[str, Any]
    derived: dict[str, Any]


BERT = Family(
    "bert_to_torch_encoder", tiny_bert, BertForSequenceClassification, "bert.", 251,
    {"type_vocab_size": 3, "pooler_activation": "tanh"}, {"position_embedding_type": "absolute"},
)  # fmt: skip
DISTILBERT = Family(
    "distilbert_to_torch_encoder", tiny_distilbert, DistilBertForSequenceClassification, "distilbert.", 253,
    {"pooler_activation": "relu"}, {},
)  # fmt: skip
FAMILIES = pytest.mark.parametrize("family", [BERT, DISTILBERT], ids=lambda family: family.spec)


def without_prefix(family: Family) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {key.removeprefix(family.prefix): value for key, value in state.items()}


def assert_same_answers(first: nn.Module, second: nn.Module, vocab: int) -> None:
    """Equal logits for eight texts, with padding on the right and without; the classifier reads the first token."""
    tokens = prompts(vocab, batch=8)
    mask = padded(8, LENGTH).flip(1)
    mask[1, 0] = 1
    for given in (None, mask):
        one, two = (logits_of(model, tokens, given) for model in (first, second))
        readable = torch.ones(8, dtype=torch.bool) if given is None else given[:, 0] == 1
        assert one[readable].std() > 0.1
        torch.testing.assert_close(one[readable], two[readable], atol=ATOL, rtol=0)


@FAMILIES
def test_forward(tmp_path: Path, family: Family) -> None:
    source = family.build(1)
    source.save_pretrained(tmp_path / "source", max_shard_size="60KB")
    there = convert_there_and_back(
        family.spec, tmp_path / "source", gained=family.derived, expected=without_prefix(family)
    )
    encoder = TorchEncoder.from_pretrained(there)
    assert_same_answers(source, encoder, family.vocab)


@FAMILIES
def test_reverse(tmp_path: Path, family: Family) -> None:
    encoder = tiny_torch_encoder(2, **family.torch_config)
    encoder.save_pretrained(tmp_path / "encoder", max_shard_size="60KB")
    there = convert_there_and_back(family.spec, tmp_path / "encoder", reverse=True)
    model = load_strictly(family.cls, there)
    assert model.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    assert_same_answers(encoder, model, 257)


def test_token_types(tmp_path: Path) -> None:
    bert = tiny_bert(3)
    bert.save_pretrained(tmp_path / "bert")
    converters.convert(converters.load_spec(BERT.spec), tmp_path / "bert", tmp_path / "encoder")
    encoder = TorchEncoder.from_pretrained(tmp_path / "encoder")
    tokens, types = prompts(251), prompts(2)
    with torch.no_grad():
        expected = bert(tokens, token_type_ids=types).logits
        torch.testing.assert_close(encoder(tokens, token_type_ids=types), expected, atol=ATOL, rtol=0)
        assert (expected - bert(tokens).logits).abs().max() > 0.05


def test_first_release_of_bert() -> None:
    """gamma and beta, position_ids, and the heads of pre-training: what bert-base-uncased on the Hub has."""
    bert = tiny_bert(4)
    spec, config = converters.load_spec(BERT.spec), bert.config.to_dict()
    expected = converters.convert_state_dict(spec, bert.state_dict(), config=config)
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in bert.state_dict().items()
    }
    assert sum(key.endswith("gamma") for key in old) == 7
    old |= {"bert.embeddings.position_ids": torch.arange(200)[None], "cls.predictions.bias": torch.zeros(251)}
    assert_same_bytes(converters.convert_state_dict(spec, old, config=config), expected)


def test_without_a_head(tmp_path: Path) -> None:
    """BertModel has no prefix and no classifier."""
    bert = tiny_bert(5)
    spec, config = converters.load_spec(BERT.spec), bert.config.to_dict()
    converted = converters.convert_state_dict(spec, bert.bert.state_dict(), config=config)
    assert "pooler.weight" in converted
    assert "classifier.weight" not in converted
    write_checkpoint(tmp_path / "bert", config, converters.convert_state_dict(
        spec, converted, reverse=True, config=tiny_config(spec, config)))  # fmt: skip
    model = load_strictly(BertModel, tmp_path / "bert")
    with torch.no_grad():
        assert torch.equal(model(prompts(251))[0], bert.bert(prompts(251))[0])


def tiny_config(spec: converters.Spec, config: dict[str, Any]) -> dict[str, Any]:
    renames = dict(spec.config.rename) if spec.config else {}
    return {renames.get(key, key): value for key, value in config.items()} | dict(spec.target.config)


@FAMILIES
def test_what_the_encoder_does_not_compute_is_refused(tmp_path: Path, family: Family) -> None:
    key = "hidden_act" if family is BERT else "activation"
    family.build(6, **{key: "relu"}).save_pretrained(tmp_path / "source")
    with pytest.raises(converters.ConfigError, match=f"{key} is 'relu'"):
        converters.convert(converters.load_spec(family.spec), tmp_path / "source", tmp_path / "out")


def test_the_two_families_are_told_apart(tmp_path: Path) -> None:
    tiny_torch_encoder(7, **DISTILBERT.torch_config).save_pretrained(tmp_path / "encoder")
    with pytest.raises(converters.ConfigError, match=r"pooler_activation: .* wants 'tanh'"):
        converters.convert(converters.load_spec(BERT.spec), tmp_path / "encoder", tmp_path / "out", reverse=True)
    assert read_config(tmp_path / "encoder")["pooler_activation"] == "relu"
