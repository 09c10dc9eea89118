"""Google's BERT under its TensorFlow names, and transformers' BERT with both heads of pre-training.

The plain forward follows the paper (Devlin et al., 2018) and Google's description of the checkpoint: dense layers
multiply by a kernel [in, out] from the right, the head of the masked words by the word embeddings, and the one of the
next sentence by the transpose of its weights [2, hidden].
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForPreTraining

from tests.answers import Answers, padded, prompts
from tests.models import randomize
from tests.models_base import PlainModel, split_heads

GOOGLE_BERT: dict[str, Any] = {
    "attention_probs_dropout_prob": 0.1,
    "directionality": "bidi",
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 48,
    "initializer_range": 0.02,
    "intermediate_size": 80,
    "max_position_embeddings": 200,
    "num_attention_heads": 6,
    "num_hidden_layers": 3,
    "pooler_fc_size": 48,
    "pooler_type": "first_token_transform",
    "type_vocab_size": 3,
    "vocab_size": 251,
}
TINY_BERT: dict[str, Any] = {
    "vocab_size": 241,
    "hidden_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "intermediate_size": 72,
    "max_position_embeddings": 200,
}


def tiny_google_bert(seed: int = 0, **overrides: Any) -> GoogleBert:
    """A small BERT in float32 under Google's names; `overrides` go to its config."""
    model = randomize(GoogleBert({**GOOGLE_BERT, **overrides}), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        # `randomize` knows torch's names of a bias, and layers stored as [out, in].
        if name.endswith(("beta", "output_bias")):
            parameter.data -= 1
        if name.endswith("kernel"):
            values = torch.randn(parameter.shape, generator=generator)
            parameter.data = values * 1.5 / parameter.shape[0] ** 0.5
    return model


def tiny_pretraining_bert(seed: int = 0, **overrides: Any) -> BertForPreTraining:
    """A small BERT of transformers with both heads, in float32; `overrides` go to `BertConfig`."""
    config = BertConfig(**{**TINY_BERT, **overrides})
    config._attn_implementation = "eager"  # a config has no public setter for it
    return randomize(BertForPreTraining(config), seed)


def of_pretraining(vocab: int) -> Answers:
    """The logits of both heads, for texts of two sentences, without padding and with it."""
    tokens, types = prompts(vocab, batch=8), prompts(2, batch=8)
    mask = padded(8).flip(1)
    mask[1, 0] = 1

    def ask(model: nn.Module) -> list[Tensor]:
        answers = []
        for given in (torch.ones_like(mask), mask):
            with torch.no_grad():
                out = model(tokens, attention_mask=given, token_type_ids=types)
            words, order = out if isinstance(out, tuple) else (out.prediction_logits, out.seq_relationship_logits)
            answers += [words[given.bool()], order[given[:, 0] == 1]]
        return answers

    return ask


def save_npz(model: GoogleBert, directory: Path) -> Path:
    """Write the checkpoint of a model as it comes out of TensorFlow."""
    return write_npz(directory, model.config, model.state_dict())


def write_npz(
    directory: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], *, compressed: bool = False
) -> Path:
    """Write bert_config.json and bert.npz, as a script that exports a TensorFlow checkpoint does."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "bert_config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
    save = np.savez_compressed if compressed else np.savez
    # Its type says that a keyword could be its option `allow_pickle`.
    save(directory / "bert.npz", **{name: value.numpy() for name, value in state.items()})  # type: ignore[arg-type]
    return directory / "bert.npz"


class GoogleBert(PlainModel):
    """BERT with both heads; each parameter has the name of its TensorFlow variable."""

    config_name = "bert_config.json"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        width, inner = config["hidden_size"], config["intermediate_size"]
        self._table("bert/embeddings/word_embeddings", config["vocab_size"], width)
        self._table("bert/embeddings/token_type_embeddings", config["type_vocab_size"], width)
        self._table("bert/embeddings/position_embeddings", config["max_position_embeddings"], width)
        self._norm("bert/embeddings", width)
        for layer in range(config["num_hidden_layers"]):
            scope = f"bert/encoder/layer_{layer}"
            for name in ("query", "key", "value"):
                self._dense(f"{scope}/attention/self/{name}", width, width)
            self._dense(f"{scope}/attention/output/dense", width, width)
            self._norm(f"{scope}/attention/output", width)
            self._dense(f"{scope}/intermediate/dense", width, inner)
            self._dense(f"{scope}/output/dense", inner, width)
            self._norm(f"{scope}/output", width)
        self._dense("bert/pooler/dense", width, width)
        self._dense("cls/predictions/transform/dense", width, width)
        self._norm("cls/predictions/transform", width)
        self._table("cls/predictions/output_bias", config["vocab_size"])
        self._table("cls/seq_relationship/output_weights", 2, width)
        self._table("cls/seq_relationship/output_bias", 2)

    def _table(self, name: str, *shape: int) -> None:
        self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    def _dense(self, scope: str, inputs: int, outputs: int) -> None:
        self._table(f"{scope}/kernel", inputs, outputs)
        self._table(f"{scope}/bias", outputs)

    def _norm(self, scope: str, width: int) -> None:
        self._table(f"{scope}/LayerNorm/gamma", width)
        self._table(f"{scope}/LayerNorm/beta", width)

    def _variable(self, name: str) -> Tensor:
        return self.get_parameter(name)

    def _through(self, x: Tensor, scope: str) -> Tensor:
        return x @ self._variable(f"{scope}/kernel") + self._variable(f"{scope}/bias")

    def _normed(self, x: Tensor, scope: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-12)
        return scaled * self._variable(f"{scope}/LayerNorm/gamma") + self._variable(f"{scope}/LayerNorm/beta")

    def _activated(self, x: Tensor) -> Tensor:
        approximate = "tanh" if self.config["hidden_act"] == "gelu_new" else "none"
        return functional.gelu(x, approximate=approximate)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [batch, length, vocab] of the masked words and [batch, 2] of the next sentence.

        Token ids, mask (zero at padding) and types are [batch, length].
        """
        words = self._variable("bert/embeddings/word_embeddings")
        x = words[input_ids] + self._variable("bert/embeddings/token_type_embeddings")[token_type_ids]
        x = self._normed(x + self._variable("bert/embeddings/position_embeddings")[: x.shape[1]], "bert/embeddings")
        # Google's code adds this number and not an infinity.
        adder = (1 - attention_mask[:, None, None].float()) * -10000
        for layer in range(self.config["num_hidden_layers"]):
            x = self._block(x, adder, f"bert/encoder/layer_{layer}")
        pooled = torch.tanh(self._through(x[:, 0], "bert/pooler/dense"))
        hidden = self._activated(self._through(x, "cls/predictions/transform/dense"))
        hidden = self._normed(hidden, "cls/predictions/transform")
        return (
            hidden @ words.T + self._variable("cls/predictions/output_bias"),
            pooled @ self._variable("cls/seq_relationship/output_weights").T
            + self._variable("cls/seq_relationship/output_bias"),
        )

    def _block(self, x: Tensor, adder: Tensor, scope: str) -> Tensor:
        heads = self.config["num_attention_heads"]
        q, k, v = (
            split_heads(self._through(x, f"{scope}/attention/self/{name}"), heads) for name in ("query", "key", "value")
        )
        weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + adder).softmax(-1)
        mixed = self._through((weights @ v).transpose(1, 2).flatten(2), f"{scope}/attention/output/dense")
        x = self._normed(x + mixed, f"{scope}/attention/output")
        inner = self._activated(self._through(x, f"{scope}/intermediate/dense"))
        return self._normed(x + self._through(inner, f"{scope}/output/dense"), f"{scope}/output")
