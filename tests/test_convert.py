"""The whole way over files: options, configs, side files, casts, shards, and that a failure leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import converters
from converters.errors import (
    CheckpointError,
    ConfigError,
    CoverageError,
    MemoryBudgetError,
    OutputExistsError,
    SpecError,
    WeightmapError,
)
from converters.manifest import MANIFEST
from converters.spec_file import parse_spec

TEXT = """
weightmap: 1
name: small
source: {layout: a, config: {model_type: a}}
target: {layout: b, config: {model_type: b}}
dims: {L: config.layers, E: config.width}
rename: {"h.{i:0..L}.mask": "g.{i}.mask", ids: ids}
rules:
  - {from: "h.{i:0..L}.w", to: "g.{i}.w", layout: i E -> E i}
config:
  rename: {layers: depth, width: size}
"""
SPEC = parse_spec(TEXT, "small.yaml")
NO_CONFIG = parse_spec(TEXT.replace(", config: {model_type: a}", ""), "small.yaml")
CONFIG = {"model_type": "a", "layers": 2, "width": 3, "torch_dtype": "float32", "other": "ключ"}


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(3)
    state = {"ids": torch.arange(5)}
    for layer in range(2):
        state[f"h.{layer}.w"] = torch.randn(4, 3)
        state[f"h.{layer}.mask"] = torch.rand(2, 2) > 0.5
    return state


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    save_file(tensors(), directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "README.md").write_text("# of the source")
    return directory


def config_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return found


def everything_in(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_there_and_back(source: Path, tmp_path: Path) -> None:
    plan = converters.convert(SPEC, source, tmp_path / "out")
    assert plan.notes == ()
    found = load_file(tmp_path / "out" / "model.safetensors")
    expected = tensors()
    assert torch.equal(found["g.1.w"], expected["h.1.w"].t())
    assert everything_in(tmp_path / "out") == ["config.json", "model.safetensors", "tokenizer.json", MANIFEST]
    assert config_of(tmp_path / "out") == {
        "model_type": "b", "depth": 2, "size": 3, "torch_dtype": "float32", "other": "ключ",
    }  # fmt: skip
    converters.convert(SPEC, tmp_path / "out", tmp_path / "back", reverse=True)
    assert config_of(tmp_path / "back") == CONFIG
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in expected.items())


def test_a_cast_reaches_tensors_and_config_but_no_integers_and_masks(source: Path, tmp_path: Path) -> None:
    converters.convert(SPEC, source, tmp_path / "out", dtype="bfloat16")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: str(tensor.dtype) for name, tensor in found.items()} == {
        "g.0.mask": "torch.bool", "g.0.w": "torch.bfloat16", "g.1.mask": "torch.bool", "g.1.w": "torch.bfloat16",
        "ids": "torch.int64",
    }  # fmt: skip
    assert torch.equal(found["g.0.w"], tensors()["h.0.w"].t().to(torch.bfloat16))
    assert config_of(tmp_path / "out")["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("dtype", ["int32", "F4", "float17"])
def test_what_is_no_dtype_to_cast_to(source: Path, tmp_path: Path, dtype: str) -> None:
    with pytest.raises(WeightmapError, match=r"there are: "):
        converters.convert(SPEC, source, tmp_path / "out", dtype=dtype)
    assert not (tmp_path / "out").exists()


def test_shards_and_sizes(source: Path, tmp_path: Path) -> None:
    plan = converters.convert(SPEC, source, tmp_path / "out", max_shard_size="0.06KB")
    assert len(plan.shards) == len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == plan.bytes_written
    with pytest.raises(WeightmapError, match="'5 cats' is not a size"):
        converters.convert(SPEC, source, tmp_path / "other", max_shard_size="5 cats")


def test_a_budget_that_is_too_small(source: Path, tmp_path: Path) -> None:
    with pytest.raises(MemoryBudgetError, match=r"a memory budget of 1,000,000 bytes is too small\n.*at least"):
        converters.convert(SPEC, source, tmp_path / "out", max_memory="1MB")
    assert not (tmp_path / "out").exists()
    converters.convert(SPEC, source, tmp_path / "out", max_memory="64MB", threads=1)


def test_values_for_the_target_config(source: Path, tmp_path: Path) -> None:
    converters.convert(SPEC, source, tmp_path / "out", set_config={"depth": 9, "nested.key": True})
    found = config_of(tmp_path / "out")
    assert (found["depth"], found["nested"]) == (9, {"key": True})


def test_dims_may_be_given(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CoverageError, match=r"'E' is 4 \(E=4\), but dim 1 is 3"):
        converters.convert(SPEC, source, tmp_path / "out", dims={"E": 4})
    with pytest.raises(SpecError, match="a value is given for F, and no dim is called that"):
        converters.convert(SPEC, source, tmp_path / "out", dims={"F": 4})


def test_a_config_may_be_given(source: Path, tmp_path: Path) -> None:
    (source / "config.json").unlink()
    with pytest.raises(
        ConfigError, match=r"no config\.json beside the weights, and the spec small needs it for model_type"
    ):
        converters.convert(SPEC, source, tmp_path / "out")
    converters.convert(SPEC, source, tmp_path / "out", config=CONFIG)
    assert config_of(tmp_path / "out")["depth"] == 2


def test_a_missing_config_is_no_matter_where_nothing_needs_it(source: Path, tmp_path: Path) -> None:
    (source / "config.json").unlink()
    converters.convert(NO_CONFIG, source, tmp_path / "out")
    assert everything_in(tmp_path / "out") == ["model.safetensors", "tokenizer.json", MANIFEST]


def test_a_config_of_another_model(source: Path, tmp_path: Path) -> None:
    (source / "config.json").write_text(json.dumps(CONFIG | {"model_type": "zebra"}))
    with pytest.raises(ConfigError, match=r"model_type: small wants 'a' here .a., but the config says 'zebra'"):
        converters.convert(SPEC, source, tmp_path / "out")


def test_a_single_file(source: Path, tmp_path: Path) -> None:
    (source / "-").mkdir()
    (source / "-" / "LICENSE").write_text("of something else")
    converters.convert(SPEC, source / "model.safetensors", tmp_path / "out")
    # Its config.json counts, and nothing else that lies beside it.
    assert everything_in(tmp_path / "out") == ["config.json", "model.safetensors", MANIFEST]


def test_what_fails_leaves_nothing(source: Path, tmp_path: Path) -> None:
    before = everything_in(tmp_path)
    weights = source / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    with pytest.raises(CheckpointError):
        converters.convert(SPEC, source, tmp_path / "out")
    state = tensors()
    state["h.0.w"][1, 1] = 1e9
    save_file(state, weights)
    with pytest.raises(CheckpointError, match="1 values don't fit F16"):
        converters.convert(SPEC, source, tmp_path / "out", dtype="float16")
    save_file({**tensors(), "extra": torch.ones(1)}, weights)
    with pytest.raises(CoverageError, match="no rule claims the key extra"):
        converters.convert(SPEC, source, tmp_path / "out")
    assert everything_in(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["source"], "no staging directory either"


def test_an_output_is_replaced_only_when_asked(source: Path, tmp_path: Path) -> None:
    converters.convert(SPEC, source, tmp_path / "out")
    with pytest.raises(OutputExistsError):
        converters.convert(SPEC, source, tmp_path / "out")
    converters.convert(SPEC, source, tmp_path / "out", dtype="float16", overwrite=True)
    assert load_file(tmp_path / "out" / "model.safetensors")["g.0.w"].dtype == torch.float16


def test_progress_covers_what_is_written(source: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    plan = converters.convert(SPEC, source, tmp_path / "out", progress=seen.append)
    assert sum(seen) == plan.bytes_written
