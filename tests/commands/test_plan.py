"""`plan` tells beforehand what `convert` does then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from converters import Plan
from tests.commands.support import CONFIG, SPEC, phi_shapes, read_tensors, weightmap, write_checkpoint


@pytest.fixture
def phi(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "phi", shards=2)


def text_of(result_text: str) -> str:
    return " ".join(result_text.split())


def test_each_rule_is_shown_with_what_it_came_to(phi: Path) -> None:
    result = weightmap("plan", "--spec", SPEC, phi)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "phi2_to_tenny: hf/phi → tenny, exact"
    assert "   4 x rename, exact, line 27".strip() in {line.strip() for line in lines}
    text = text_of(result.stdout)
    assert "4 x layout, exact, line 35 q: model.layers.{i}.self_attn.q_proj.{p} k: " in text
    assert "→ transformer_encoder.layers.{i}.self_attn.multihead_attn.in_proj_{p} 3 x [8, 8] → [24, 8] F32" in text
    assert "model.embed_tokens.weight → encoder.weight [11, 8] F32" in text
    assert (
        "→ transformer_encoder.layers.{i}.norm1.{p} = transformer_encoder.layers.{i}.norm2.{p} [8] → 2 x [8] F32"
        in text
    )
    assert "sinusoidal, made anew → pos_encoder.pe [5000, 1, 8] F32" in text
    assert "off copy, exact, line 61, only when config.tie_word_embeddings" in text


def test_the_totals(phi: Path) -> None:
    for name in ("tokenizer.json", "README.md"):
        (phi / name).write_text("x")
    text = text_of(weightmap("plan", "--spec", SPEC, phi, "--max-shard-size", "100KB").stdout)
    assert "reads 33 tensors, 4.94 KB, from 2 files" in text
    assert "writes 30 tensors, 165.07 KB: 5.07 KB copied, 160.00 KB made anew" in text
    assert "files 2 shards: " in text
    assert "carries config.json (mapped), tokenizer.json" in text
    assert "leaves README.md" in text
    assert "at the peak" in text


def test_dropped_keys_come_with_their_reason(tmp_path: Path) -> None:
    shapes = phi_shapes() | {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": [2] for layer in range(2)}
    source = write_checkpoint(tmp_path / "phi", shapes)
    text = text_of(weightmap("plan", "--spec", SPEC, source).stdout)
    assert "drops 2 tensors: model.layers.{0,1}.self_attn.rotary_emb.inv_freq (recomputed from rope_theta)" in text


def test_checks_are_announced(phi: Path, tmp_path: Path) -> None:
    tenny = tmp_path / "tenny"
    assert weightmap("convert", "--spec", SPEC, phi, tenny).exit_code == 0
    result = weightmap("plan", "--spec", SPEC, "--reverse", tenny)
    text = text_of(result.stdout)
    assert text.startswith("phi2_to_tenny (reversed): tenny → hf/phi, exact")
    assert "checks 4 pairs of tensors must be equal and 1 tensor must hold what is made anew" in text
    data = json.loads(weightmap("plan", "--spec", SPEC, "--reverse", tenny, "--json").stdout)
    assert {check["check"] for check in data["checks"]} == {"equal", "generated"}


def test_json_agrees_with_what_is_done(phi: Path, tmp_path: Path) -> None:
    words = ("--spec", SPEC, phi, "--dtype", "bfloat16", "--max-shard-size", "2KB", "--set", "block=classic")
    planned = json.loads(weightmap("plan", *words, "--json").stdout)
    result = weightmap("convert", *words[:3], tmp_path / "out", *words[3:], "--json")
    done = json.loads(result.stdout)
    for key in (
        "spec",
        "source",
        "tensors",
        "bytes",
        "files",
        "rules",
        "dropped",
        "checks",
        "side_files",
        "config",
        "notes",
    ):
        assert planned[key] == done[key], key
    sizes = {name: len(data) for name, data in read_tensors(tmp_path / "out").items()}
    assert {target["name"]: target["nbytes"] for target in planned["targets"]} == sizes
    assert planned["memory"]["peak"] > planned["memory"]["buffers"] > 0
    in_proj = next(
        target for target in planned["targets"] if target["name"].endswith("0.self_attn.multihead_attn.in_proj_weight")
    )
    assert in_proj["sources"] == [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"]


def test_the_example_of_a_rule_is_its_largest_instance(phi: Path) -> None:
    data = json.loads(weightmap("plan", "--spec", SPEC, phi, "--json").stdout)
    layout = next(rule for rule in data["rules"] if rule["kind"] == "layout")
    assert layout["instances"] == 4
    assert layout["line"] == 35
    assert [source["name"] for source in layout["example"]["sources"]] == [
        f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"
    ]
    off = next(rule for rule in data["rules"] if rule["off"])
    assert off["off"] == "config.tie_word_embeddings"
    assert "example" not in off


def test_the_whole_plan_is_saved_and_loads_again(phi: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    result = weightmap("plan", "--spec", SPEC, phi, "--output", file)
    assert result.exit_code == 0
    assert str(file) in result.stdout
    plan = Plan.from_json(file.read_text())
    assert plan.spec == SPEC
    assert len(plan.targets) == 30
    again = weightmap("plan", "--spec", SPEC, phi, "--output", phi / "config.json")
    assert again.exit_code == 8
    assert json.loads((phi / "config.json").read_text()) == CONFIG


def test_notes_are_warnings(phi: Path) -> None:
    result = weightmap("plan", "--spec", SPEC, phi, "--set", "block=classic")
    assert result.exit_code == 0
    assert "computes another function" in result.stderr


def test_nothing_is_written(phi: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert weightmap("plan", "--spec", SPEC, phi).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
