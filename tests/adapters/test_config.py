"""adapter_config.json: what it says of modules comes in the target's names; what can't be converted is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import converters
from converters.adapters.config import check_adapter_config
from converters.errors import ConfigError, CoverageError
from converters.spec_file import parse_spec
from tests.adapters.support import CONFIG, read_adapter, whole, write_adapter

SPEC = parse_spec(
    """
weightmap: 1
name: small
source: {layout: a, strip_prefix: [model.]}
target: {layout: b, strip_prefix: [body., module.]}
dims: {H: 4, G: 2}
rename: {"h.{i}.mlp.weight": "l.{i}.ff.weight", head.weight: out.weight}
rules:
  - from: h.{i}.qk.weight
    to: {q: "l.{i}.q.weight", k: "l.{i}.k.weight"}
    layout: {from: "(q: H | k: G) i", q: H i, k: G i}
""",
    "small.yaml",
)


def tensors(ranks: dict[str, int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    found = {}
    for module, rank in ranks.items():
        out = 6 if module.endswith("qk") else 5
        found[f"{module}.lora_A.weight"] = whole(generator, rank, 7)
        found[f"{module}.lora_B.weight"] = whole(generator, out, rank)
    return found


RANKS = {"model.h.0.qk": 3, "model.h.1.qk": 2, "model.h.0.mlp": 3, "model.h.1.mlp": 5}


def converted(tmp_path: Path, **config: Any) -> tuple[dict[str, Any], converters.Plan]:
    write_adapter(tmp_path / "adapter", tensors(RANKS), **config)
    plan = converters.convert(SPEC, tmp_path / "adapter", tmp_path / "out")
    return read_adapter(tmp_path / "out")[1], plan


def test_modules_ranks_and_scales_are_told_in_the_names_of_the_target(tmp_path: Path) -> None:
    config, _ = converted(
        tmp_path,
        target_modules=".*(qk|mlp)",
        exclude_modules="something",
        layers_to_transform=[0, 1],
        layers_pattern="h",
        rank_pattern={"h.1.qk": 2, "(x|h).1.mlp": 5},
        alpha_pattern={"h.1.qk": 9, "^model.h.0.mlp": 4, "^h.1.mlp": 5, "lp": 7, "model.h.0.qk": 6},
    )
    assert config["target_modules"] == ["l.0.ff", "l.0.k", "l.0.q", "l.1.ff", "l.1.k", "l.1.q"]
    assert config["rank_pattern"] == {"l.1.ff": 5, "l.1.k": 2, "l.1.q": 2}
    assert config["alpha_pattern"] == {"l.0.ff": 4, "l.1.k": 9, "l.1.q": 9}
    assert [config[key] for key in ("exclude_modules", "layers_to_transform", "layers_pattern")] == [None] * 3
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (3, 6, "LORA")


def test_what_is_carried_is_said(tmp_path: Path) -> None:
    config, plan = converted(tmp_path, auto_mapping={"base_model_class": "A"}, novelty=7, other=None, use_rslora=True)
    about, base, carried, prefix = plan.notes
    assert about == "the source is a LoRA adapter (adapter_config.json), so small is applied to its factors"
    assert "base_model_name_or_path is still 'somewhere'" in base
    assert carried == "adapter_config.json: carried as it is: novelty"
    assert "(body.)" in prefix, "module. is torch's, not the model's"
    assert r"key_mapping={r'^(l)\.': r'body.\1.'}" in prefix
    assert (config["auto_mapping"], config["novelty"], config["use_rslora"]) == (None, 7, True)
    assert config["base_model_name_or_path"] == "somewhere"


def test_the_base_model_may_be_named(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", tensors(RANKS))
    plan = converters.convert(
        SPEC, tmp_path / "adapter", tmp_path / "out", set_config={"base_model_name_or_path": "mine/base"}
    )
    assert read_adapter(tmp_path / "out")[1]["base_model_name_or_path"] == "mine/base"
    assert not any("base_model_name_or_path" in note for note in plan.notes)


def test_modules_that_become_one_must_be_scaled_alike(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", tensors(RANKS))
    converters.convert(SPEC, tmp_path / "adapter", tmp_path / "out")
    file = tmp_path / "out" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"alpha_pattern": {"l.1.q": 8}}))
    with pytest.raises(
        CoverageError, match=r"h\.1\.qk is made of modules .* differently: l\.1\.k with 6, l\.1\.q with 8"
    ):
        converters.convert(SPEC, tmp_path / "out", tmp_path / "back", reverse=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; only LORA"),
        ({"peft_type": None}, "peft_type is None"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which changes the base"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters is set"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is set"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is set"),
        ({"r": 0}, "r is 0"),
        ({"r": True}, "r is True"),
        ({"r": "8"}, "r is '8'"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"alpha_pattern": ["q"]}, "alpha_pattern is"),
        ({"alpha_pattern": {r"layers\.[0-4]\..*": 3}}, "is a regular expression"),
    ],
)
def test_what_can_not_be_converted_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_adapter_config(CONFIG | config, "there")
    (problem,) = caught.value.problems
    assert message in problem.what
    assert problem.where == "there"


@pytest.mark.parametrize("value", [True, False, "gaussian", "eva", "orthogonal"])
def test_initial_values_that_leave_the_base_model_alone(value: object) -> None:
    check_adapter_config(CONFIG | {"init_lora_weights": value}, "there")


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check_adapter_config(CONFIG | {"use_qalora": True, "use_bdlora": {"nblocks": 2}, "r": -1}, "there")
    assert len(caught.value.problems) == 3


def test_an_adapter_without_its_config(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", tensors(RANKS))
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(ConfigError, match=r"adapter_model\.safetensors is an adapter, and there is no adapter_config"):
        converters.convert(SPEC, tmp_path / "adapter", tmp_path / "out")


def test_the_file_itself_may_be_given_and_what_lies_beside_it_is_sorted(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", tensors(RANKS))
    (tmp_path / "adapter" / "tokenizer.json").write_text("{}")
    (tmp_path / "adapter" / "README.md").write_text("# of the source")
    converters.convert(SPEC, tmp_path / "adapter" / "adapter_model.safetensors", tmp_path / "first")
    with converters.prepare(SPEC, tmp_path / "adapter", converters.Options()) as prepared:
        assert prepared.side_files.carried == ("tokenizer.json",)
        assert prepared.side_files.left == ("README.md",)
    converters.convert(SPEC, tmp_path / "adapter", tmp_path / "second")
    names = ["adapter_config.json", "adapter_model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == [*names, "weightmap_manifest.json"]
    assert sorted(path.name for path in (tmp_path / "second").iterdir()) == [
        *names,
        "tokenizer.json",
        "weightmap_manifest.json",
    ]


def test_the_older_file_that_torch_saves(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", tensors(RANKS))
    converters.convert(SPEC, tmp_path / "adapter", tmp_path / "first")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    converters.convert(SPEC, tmp_path / "adapter", tmp_path / "second")
    one, two = (read_adapter(tmp_path / name)[0] for name in ("first", "second"))
    assert one.keys() == two.keys()
    assert all(torch.equal(two[name], tensor) for name, tensor in one.items())


def test_a_cast_and_a_lazy_view(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", tensors(RANKS))
    with converters.open_converted(SPEC, tmp_path / "adapter", dtype="bfloat16") as lazy:
        name = "base_model.model.l.0.k.lora_B.weight"
        assert lazy[name].dtype == torch.bfloat16
        assert torch.equal(lazy[name].float(), tensors(RANKS)["model.h.0.qk.lora_B.weight"][4:])
