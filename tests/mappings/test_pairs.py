"""Every pair of models: convert the one, load it as the other, compare logits; each parameter's key is a module's."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import converters
from tests.mappings.proof import assert_same_logits, load_strictly, logits_of, prompts
from tests.models_pairs import PAIRS, Pair


def load(path: str, directory: Path) -> nn.Module:
    module, _, name = path.partition(":")
    cls: Any = getattr(importlib.import_module(module), name)
    model = load_strictly(cls, directory) if module == "transformers" else cls.from_pretrained(directory)
    assert isinstance(model, nn.Module)
    return model


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.spec}{'-reverse' if pair.reverse else ''}")
def test_pair(tmp_path: Path, pair: Pair) -> None:
    pair.build(11).save_pretrained(tmp_path / "source")
    source = load(pair.source_class, tmp_path / "source")
    converters.convert(
        converters.load_spec(pair.spec),
        tmp_path / "source",
        tmp_path / "target",
        reverse=pair.reverse,
        set_config={"block": "parallel"} if pair.spec == "phi2_to_tenny" else None,
    )
    target = load(pair.target_class, tmp_path / "target")
    assert_same_logits(source, target, pair.vocab)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.spec}{'-reverse' if pair.reverse else ''}")
def test_no_parameter_can_be_wrong_unseen(pair: Pair) -> None:
    """Reversing the rows of any parameter shows in the logits, so that equal logits mean equal parameters."""
    model = pair.build(12)
    tokens = prompts(pair.vocab, 2, 64)
    expected = logits_of(model, tokens)
    for name, parameter in model.named_parameters():
        original = parameter.detach().clone()
        # The last axis where there are several: reversed experts and heads would often compute the same.
        with torch.no_grad():
            parameter.copy_(original.flip(-1))
        assert (logits_of(model, tokens) - expected).abs().max() > 0.05, name
        with torch.no_grad():
            parameter.copy_(original)
