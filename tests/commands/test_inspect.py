"""`inspect`: what is in a checkpoint, from its headers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands.support import phi_shapes, weightmap, write_checkpoint, write_safetensors


@pytest.fixture
def phi(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "phi", shards=2)


def test_the_tree_and_the_totals(phi: Path) -> None:
    result = weightmap("inspect", phi)
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert "model phi, PhiForCausalLM" in text
    assert "holds 33 tensors, 1,235 parameters, 4.94 KB" in text
    assert "dtypes F32 " in text
    assert "files model-00001-of-00002.safetensors (" in text
    assert "metadata format: pt" in text
    assert "layers.{0,1}" in text
    assert "{q,k,v}_proj" in text


def test_depth(phi: Path) -> None:
    whole, top = (weightmap("inspect", phi, *words).stdout for words in ((), ("--depth", "1")))
    assert "self_attn" in whole
    assert "self_attn" not in top
    assert "lm_head" in top


def test_json_has_every_key(phi: Path) -> None:
    data = json.loads(weightmap("inspect", phi, "--json").stdout)
    assert {key["name"]: key["shape"] for key in data["keys"]} == phi_shapes()
    assert data["tensors"] == 33
    assert data["nbytes"] == sum(key["nbytes"] for key in data["keys"]) == sum(file["nbytes"] for file in data["files"])
    assert data["dtypes"] == {"F32": {"tensors": 33, "nbytes": data["nbytes"]}}
    assert data["model_type"] == "phi"
    assert data["architectures"] == ["PhiForCausalLM"]
    assert [node["label"] for node in data["tree"]] == ["lm_head", "model"]
    assert data["notes"] == []


def test_a_single_file_a_mix_of_dtypes_and_no_config(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "many", {"a.weight": [10, 3]}, config=None, dtype="F16")
    write_safetensors(tmp_path / "many" / "other.safetensors", {"b": [2]})
    file = tmp_path / "many" / "model.safetensors"
    result = weightmap("inspect", file)
    assert result.exit_code == 0
    assert "unknown, there is no config.json" in result.stdout
    assert "model.safetensors (60 bytes)" in result.stdout
    assert weightmap("inspect", tmp_path / "many").exit_code == 7


def test_a_broken_config_is_a_warning(phi: Path) -> None:
    (phi / "config.json").write_text("{")
    result = weightmap("inspect", phi)
    assert result.exit_code == 0
    assert "Warning: " in result.stderr
    assert "config.json" in result.stderr
    assert json.loads(weightmap("inspect", phi, "--json").stdout)["notes"]


@pytest.mark.parametrize("config", [{}, {"model_type": 3, "architectures": "x"}, {"architectures": [1, None]}])
def test_a_config_may_say_anything(tmp_path: Path, config: dict[str, object]) -> None:
    source = write_checkpoint(tmp_path / "phi", config=config)
    assert weightmap("inspect", source).exit_code == 0
    assert weightmap("inspect", source, "--json").exit_code == 0


def test_an_index_with_the_wrong_total_is_a_warning(phi: Path) -> None:
    index = phi / "model.safetensors.index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "metadata": {"total_size": 1}}))
    result = weightmap("inspect", phi)
    assert result.exit_code == 0
    assert "total_size" in result.stderr


def test_an_empty_checkpoint(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "empty", {}, config=None)
    result = weightmap("inspect", source)
    assert result.exit_code == 0
    assert "0 tensors" in result.stdout


def test_what_is_not_there(tmp_path: Path) -> None:
    result = weightmap("inspect", tmp_path / "nowhere")
    assert result.exit_code == 7
    assert "nowhere" in result.stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [("params.json", '{"dim": 4096, "n_layers": 3}'), ("model_config.yaml", "dim: 4096\nn_layers: 3\n")],
)
def test_a_config_is_found_under_the_names_that_layouts_give_it(name: str, text: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", config=None)
    (checkpoint / "generation_config.json").write_text('{"top_k": 3}')
    (checkpoint / name).write_text(text)
    shown = " ".join(weightmap("inspect", checkpoint).stdout.split())
    assert f"model {name} doesn't say config dim: 4096, n_layers: 3 holds" in shown
    assert json.loads(weightmap("inspect", checkpoint, "--json").stdout)["config_file"] == name


def test_a_config_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", config=None)
    (checkpoint / "params.json").write_text("{")
    result = weightmap("inspect", checkpoint)
    assert result.exit_code == 0
    assert "model     unknown, params.json can't be read" in result.stdout
    assert "params.json" in result.stderr
