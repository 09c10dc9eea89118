"""Small BERTs and DistilBERTs of transformers, and torch's own encoder with embeddings and a classifier around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from tests.models import randomize
from tests.models_base import PlainModel

TINY_BERT: dict[str, Any] = {
    "vocab_size": 251,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "max_position_embeddings": 200,
    "num_labels": 5,
}
TINY_DISTILBERT: dict[str, Any] = {
    "vocab_size": 253,
    "dim": 40,
    "n_layers": 3,
    "n_heads": 5,
    "hidden_dim": 72,
    "max_position_embeddings": 200,
    "num_labels": 3,
}
TORCH_ENCODER: dict[str, Any] = {
    "model_type": "torch-encoder",
    "vocab_size": 257,
    "d_model": 40,
    "nhead": 5,
    "num_layers": 3,
    "dim_feedforward": 72,
    "max_position_embeddings": 200,
    "layer_norm_eps": 1e-12,
    "id2label": {"0": "no", "1": "maybe", "2": "yes"},
    "label2id": {"no": 0, "maybe": 1, "yes": 2},
}


def tiny_bert(seed: int = 0, **overrides: Any) -> BertForSequenceClassification:
    """A small BERT with a classifier, in float32; `overrides` go to `BertConfig`."""
    config = BertConfig(**{**TINY_BERT, **overrides})
    config._attn_implementation = "eager"  # a config has no public setter for it
    return randomize(BertForSequenceClassification(config), seed)


def tiny_distilbert(seed: int = 0, **overrides: Any) -> DistilBertForSequenceClassification:
    """A small DistilBERT with a classifier, in float32; `overrides` go to `DistilBertConfig`."""
    config = DistilBertConfig(**{**TINY_DISTILBERT, **overrides})
    config._attn_implementation = "eager"  # a config has no public setter for it
    return randomize(DistilBertForSequenceClassification(config), seed)


def tiny_torch_encoder(seed: int = 0, **overrides: Any) -> TorchEncoder:
    """torch's encoder, small; with `type_vocab_size` and `pooler_activation="tanh"` it is a BERT."""
    return randomize(TorchEncoder({**TORCH_ENCODER, **overrides}), seed)


class TorchEncoder(PlainModel):
    """`nn.TransformerEncoder` between embeddings and a classifier on the first token."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        width, eps = config["d_model"], config["layer_norm_eps"]
        self.word_embeddings = nn.Embedding(config["vocab_size"], width)
        self.position_embeddings = nn.Embedding(config["max_position_embeddings"], width)
        if config.get("type_vocab_size"):
            self.token_type_embeddings = nn.Embedding(config["type_vocab_size"], width)
        self.embedding_norm = nn.LayerNorm(width, eps=eps)
        layer = nn.TransformerEncoderLayer(
            width,
            config["nhead"],
            config["dim_feedforward"],
            dropout=0.0,
            activation="gelu",
            layer_norm_eps=eps,
            batch_first=True,
            norm_first=False,
        )
        self.encoder = nn.TransformerEncoder(layer, config["num_layers"], enable_nested_tensor=False)
        self.pooler = nn.Linear(width, width)
        self.classifier = nn.Linear(width, len(config["id2label"]))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Logits [batch, labels] for token ids [batch, length]; the mask is zero at padding."""
        x = self.word_embeddings(input_ids) + self.position_embeddings.weight[: input_ids.shape[1]]
        if self.config.get("type_vocab_size"):
            x = x + self.token_type_embeddings(
                torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            )
        x = self.encoder(
            self.embedding_norm(x), src_key_padding_mask=None if attention_mask is None else attention_mask == 0
        )
        activation = torch.tanh if self.config["pooler_activation"] == "tanh" else torch.relu
        logits: Tensor = self.classifier(activation(self.pooler(x[:, 0])))
        return logits
