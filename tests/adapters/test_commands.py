"""The command line says that it converts an adapter, and with which rules."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import torch

from tests.adapters.support import read_adapter, whole, write_adapter
from tests.commands.support import CONFIG as PHI
from tests.commands.support import weightmap

SPEC = """
weightmap: 1
name: small
source: {layout: a, config: {model_type: a}}
target: {layout: b, config: {model_type: b}}
dims: {H: config.heads, D: 2}
placeholders: {i: 0..3}
rules:
  - {from: unused.weight, to: other.weight, layout: (x y) z -> (x z) y}
  - {from: "h.{i}.weight", to: "l.{i}.weight", layout: (H D) o -> (D H) o}
"""


def prepared(root: Path) -> list[str]:
    """A spec, a config and an adapter of one layer out of three; the options that convert it."""
    (root / "small.yaml").write_text(SPEC)
    (root / "base.json").write_text(json.dumps({"model_type": "a", "heads": 3}))
    generator = torch.Generator().manual_seed(4)
    first, second = whole(generator, 3, 5), whole(generator, 6, 3)
    write_adapter(root / "adapter", {"h.1.lora_A.weight": first, "h.1.lora_B.weight": second})
    return ["--spec", str(root / "small.yaml"), "--config", str(root / "base.json"), str(root / "adapter")]


def test_plan_and_convert(tmp_path: Path) -> None:
    options = prepared(tmp_path)
    shown = weightmap("plan", *options)
    assert shown.exit_code == 0
    assert "h.{i}.lora_B.weight" in shown.stdout
    assert "unused" not in shown.stdout
    assert "adapter_config.json (mapped)" in shown.stdout
    done = weightmap("convert", *options, str(tmp_path / "out"), "--set", "base_model_name_or_path=me/b")
    assert done.exit_code == 0
    assert "the source is a LoRA adapter" in done.stderr
    assert "adapter_model.safetensors" in done.stdout
    found, config = read_adapter(tmp_path / "out")
    assert found.keys() == {"l.1.lora_A.weight", "l.1.lora_B.weight"}
    assert config["base_model_name_or_path"] == "me/b"
    described = json.loads(weightmap("plan", *options, "--json").stdout)
    assert described["config"]["target_modules"] == ["l.1"]
    assert {rule["rule"] for rule in described["rules"]} == {"rules[1]"}
    again = weightmap("convert", *options, str(tmp_path / "out"), "--overwrite")
    assert again.exit_code == 0


def test_without_the_base_models_config(tmp_path: Path) -> None:
    options = prepared(tmp_path)
    failed = weightmap("convert", *options[:2], options[-1], str(tmp_path / "out"))
    assert failed.exit_code == 6
    assert "give that of the base model with --config FILE" in failed.stderr


def test_verify_says_that_it_knows_no_adapters(tmp_path: Path) -> None:
    options = prepared(tmp_path)
    weightmap("convert", *options, str(tmp_path / "out"))
    failed = weightmap("verify", *options, str(tmp_path / "out"))
    assert failed.exit_code == 7
    assert "adapters can't be verified yet" in failed.stderr


def test_detect_knows_the_layout_of_the_base_model(tmp_path: Path) -> None:
    first, second = torch.ones(3, 8), torch.ones(8, 3)
    names = [f"model.layers.{layer}.mlp.fc1" for layer in range(2)]
    shapes = {"lora_A": (3, 8), "lora_B": (12, 3)}
    tensors = {f"{name}.{factor}.weight": torch.ones(shape) for name in names for factor, shape in shapes.items()}
    tensors |= {"model.layers.1.self_attn.dense.lora_A.weight": first}
    tensors |= {"model.layers.1.self_attn.dense.lora_B.weight": second}
    adapter = write_adapter(tmp_path / "adapter", tensors)
    base = tmp_path / "base.json"
    base.write_text(json.dumps(PHI))
    result = weightmap("detect", adapter, "--config", base)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == f"{adapter}: a LoRA adapter of hf/phi"
    assert "3 of 3 keys claimed" in result.stdout
    data = json.loads(weightmap("detect", adapter, "--config", base, "--json").stdout)
    assert (data["adapter"], data["layouts"]) == (True, ["hf/phi"])
    (spec,) = [spec for spec in data["specs"] if spec["to"] == "tenny" and spec["applies"]]
    words = [*shlex.split(spec["command"])[1:-1], str(tmp_path / "out"), "--config", str(base)]
    assert weightmap(*words).exit_code == 0
    assert len(read_adapter(tmp_path / "out")[0]) == 6


def test_detect_asks_for_the_config_of_the_base_model(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.fc1"
    factors = {f"{name}.lora_A.weight": torch.ones(3, 8), f"{name}.lora_B.weight": torch.ones(12, 3)}
    adapter = write_adapter(tmp_path / "adapter", factors)
    result = weightmap("detect", adapter)
    assert result.exit_code == 3
    assert result.stdout.splitlines()[0] == f"{adapter}: a LoRA adapter, and no spec fits"
    assert "give that of the base model with --config FILE" in result.stdout


def test_inspect_shows_the_adapter_s_own_config(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", {"h.1.lora_A.weight": torch.ones(3, 5)})
    text = " ".join(weightmap("inspect", adapter).stdout.split())
    assert "model adapter_config.json doesn't say config peft_type: LORA, r: 3, lora_alpha: 6" in text
    assert json.loads(weightmap("inspect", adapter, "--json").stdout)["config_file"] == "adapter_config.json"
