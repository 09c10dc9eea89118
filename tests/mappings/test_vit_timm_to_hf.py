"""timm's ViT against transformers'; the plain forward in tests.models_vit is held against timm's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import ViTForImageClassification

import converters
from tests.mappings.proof import ATOL, convert_there_and_back, load_strictly, read_config
from tests.models_base import write_checkpoint
from tests.models_vit import TIMM_VIT, TimmViT, tiny_timm_vit, tiny_vit
from tests.oracles import oracle

NAME = "vit_timm_to_hf"


def images(channels: int, height: int, width: int) -> Tensor:
    return torch.randn(8, channels, height, width, generator=torch.Generator().manual_seed(7))


def timm_model(**config: Any) -> Any:
    return oracle("timm.models.vision_transformer").VisionTransformer(**config).eval()


@pytest.mark.parametrize("overrides", [{}, {"norm_eps": 1e-5, "mlp_ratio": 2}])
def test_forward(tmp_path: Path, overrides: dict[str, Any]) -> None:
    source = tiny_timm_vit(1, **overrides)
    source.save_pretrained(tmp_path / "source", max_shard_size="60KB")
    gained = {"norm_eps": source.config.get("norm_eps", 1e-6), "global_pool": "token"}
    there = convert_there_and_back(NAME, tmp_path / "source", gained=gained)
    vit = load_strictly(ViTForImageClassification, there)
    with torch.no_grad():
        expected = source(images(3, 32, 24))
        torch.testing.assert_close(vit(images(3, 32, 24)).logits, expected, atol=ATOL, rtol=0)
    assert expected.std() > 0.5


def test_reverse(tmp_path: Path) -> None:
    vit = tiny_vit(2)
    vit.save_pretrained(tmp_path / "vit", max_shard_size="60KB")
    there = convert_there_and_back(NAME, tmp_path / "vit", reverse=True)
    config = read_config(there)
    assert "num_classes" not in config  # transformers' config has the labels, and not how many there are
    (there / "config.json").write_text((there / "config.json").read_text().replace("{", '{"num_classes": 7,', 1))
    plain = TimmViT.from_pretrained(there)
    with torch.no_grad():
        expected = vit(images(2, 24, 40)).logits
        torch.testing.assert_close(plain(images(2, 24, 40)), expected, atol=ATOL, rtol=0)
    assert expected.std() > 0.5


def test_the_plain_forward_is_timm_s() -> None:
    plain = tiny_timm_vit(3)
    timm = timm_model(**TIMM_VIT)
    timm.load_state_dict(plain.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(timm(images(3, 32, 24)), plain(images(3, 32, 24)), atol=ATOL, rtol=0)


def test_timm_computes_what_transformers_computes(tmp_path: Path) -> None:
    timm = timm_model(**TIMM_VIT)
    timm.load_state_dict(tiny_timm_vit(4).state_dict())
    write_checkpoint(tmp_path / "timm", TIMM_VIT, timm.state_dict())
    converters.convert(converters.load_spec(NAME), tmp_path / "timm", tmp_path / "vit")
    vit = load_strictly(ViTForImageClassification, tmp_path / "vit")
    with torch.no_grad():
        expected = timm(images(3, 32, 24))
        torch.testing.assert_close(vit(images(3, 32, 24)).logits, expected, atol=ATOL, rtol=0)
    assert expected.std() > 0.5


@pytest.mark.parametrize(("key", "value"), [("hidden_act", "relu"), ("qkv_bias", False)])
def test_what_timm_does_not_compute_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    tiny_vit(6, **{key: value}).save_pretrained(tmp_path / "vit")
    with pytest.raises(converters.ConfigError, match=f"{key} is {value!r}"):
        converters.convert(converters.load_spec(NAME), tmp_path / "vit", tmp_path / "out", reverse=True)
