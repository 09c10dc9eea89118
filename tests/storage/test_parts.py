"""Checkpoints of several files as one, through whole conversions; files are read back by safetensors itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import converters
from converters.spec_file import parse_spec
from converters.storage.parts import open_side

SPEC = """
weightmap: 1
name: flat_to_components
source: {layout: flat}
target:
  layout: components
  config_file: model_index.json
  files: {unet: unet/weights.safetensors, vae: vae/weights.safetensors, top: top.safetensors}
dims: {C: null, L: {from: keys}}
placeholders: {i: 0..L}
rules:
  - {from: "u.{i}.weight", to: "unet:blocks.{i}.weight", layout: C D -> D C}
  - {from: v.weight, to: "vae:weight"}
  - {from: t.weight, to: "top:weight"}
config:
  target:
    set: {name: both, vae.kind: small}
    derive: {unet.channels: C, unet.depth: L}
"""
RNG = np.random.default_rng(5)
TENSORS = {
    **{f"u.{i}.weight": RNG.normal(size=(3, 5)).astype(np.float32) for i in range(4)},
    "v.weight": RNG.normal(size=(2, 2)).astype(np.float32),
    "t.weight": RNG.normal(size=(7,)).astype(np.float32),
}


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    (tmp_path / "flat").mkdir()
    save_file(TENSORS, tmp_path / "flat" / "model.safetensors")
    (tmp_path / "flat" / "config.json").write_text("{}")
    converters.convert(parse_spec(SPEC), tmp_path / "flat", tmp_path / "out", max_shard_size=130)
    return tmp_path / "out"


def test_each_component_has_a_directory_and_a_config(converted: Path) -> None:
    assert sorted(str(path.relative_to(converted)) for path in converted.rglob("*") if path.is_file()) == [
        "model_index.json",
        "top.safetensors",
        "unet/config.json",
        "unet/weights-00001-of-00002.safetensors",
        "unet/weights-00002-of-00002.safetensors",
        "unet/weights.safetensors.index.json",
        "vae/config.json",
        "vae/weights.safetensors",
        "weightmap_manifest.json",
    ]
    assert json.loads((converted / "model_index.json").read_text()) == {"name": "both"}
    assert json.loads((converted / "unet" / "config.json").read_text()) == {"channels": 3, "depth": 4}
    assert json.loads((converted / "vae" / "config.json").read_text()) == {"kind": "small"}
    first = load_file(converted / "unet" / "weights-00001-of-00002.safetensors")
    assert sorted(first) == ["blocks.0.weight", "blocks.1.weight"]
    np.testing.assert_array_equal(first["blocks.1.weight"], TENSORS["u.1.weight"].T)
    np.testing.assert_array_equal(load_file(converted / "top.safetensors")["weight"], TENSORS["t.weight"])


def test_the_way_back_and_verification(converted: Path, tmp_path: Path) -> None:
    spec = parse_spec(SPEC)
    converters.convert(spec, converted, tmp_path / "back", reverse=True)
    found = load_file(tmp_path / "back" / "model.safetensors")
    assert sorted(found) == sorted(TENSORS)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(found[name], tensor)
    report = converters.verify(spec, tmp_path / "flat", converted, level="roundtrip")
    assert report.verdict is converters.Verdict.PASS
    raw = bytearray((converted / "vae" / "weights.safetensors").read_bytes())
    raw[-1] ^= 1
    (converted / "vae" / "weights.safetensors").write_bytes(raw)
    report = converters.verify(spec, tmp_path / "flat", converted, level="roundtrip")
    assert report.verdict is converters.Verdict.FAIL


def test_an_output_of_components_can_be_replaced(converted: Path, tmp_path: Path) -> None:
    with pytest.raises(converters.OutputExistsError):
        converters.convert(parse_spec(SPEC), tmp_path / "flat", converted)
    converters.convert(parse_spec(SPEC), tmp_path / "flat", converted, overwrite=True)
    (converted / "unet" / "thesis.docx").write_text("somebody's work")
    with pytest.raises(converters.OutputExistsError, match="unet"):
        converters.convert(parse_spec(SPEC), tmp_path / "flat", converted, overwrite=True)


def test_what_is_missing_is_said(converted: Path, tmp_path: Path) -> None:
    spec = parse_spec(SPEC)
    (converted / "vae" / "weights.safetensors").unlink()
    with pytest.raises(converters.CoverageError, match="no key matches 'vae:weight'"):
        converters.convert(spec, converted, tmp_path / "back", reverse=True)
    with pytest.raises(converters.CheckpointError, match=r"none of unet/weights\.safetensors"):
        converters.convert(spec, tmp_path / "flat", tmp_path / "back", reverse=True)
    (converted / "unet" / "weights-00002-of-00002.safetensors").unlink()
    with pytest.raises(converters.CheckpointError, match="weights-00002-of-00002"):
        converters.convert(spec, converted, tmp_path / "back", reverse=True)


def test_a_layout_with_one_file_finds_it_among_others(tmp_path: Path) -> None:
    spec = parse_spec(
        "weightmap: 1\nsource: {layout: one, file: consolidated.safetensors, config_file: params.json}\n"
        "target: {layout: other}\nrename: {a: b}\nconfig: {target: {set: {x: 1}}}\n"
    )
    source = tmp_path / "source"
    source.mkdir()
    tensor = np.arange(40, dtype=np.float32)
    save_file({"a": tensor}, source / "consolidated.safetensors")
    save_file({"other": tensor}, source / "model.safetensors")
    (source / "params.json").write_text('{"dim": 3}')
    (source / "config.json").write_text('{"other": 3}')
    with open_side(source, spec.source) as reader:
        assert list(reader.tensors) == ["a"]
    converters.convert(spec, source, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"dim": 3, "x": 1}
    converters.convert(spec, tmp_path / "out", tmp_path / "back", reverse=True, max_shard_size=8)
    names = sorted(path.name for path in (tmp_path / "back").iterdir())
    assert names == ["consolidated.safetensors", "params.json", "weightmap_manifest.json"]


def test_the_way_back_checks_a_value_that_only_the_tensors_tell(converted: Path, tmp_path: Path) -> None:
    (converted / "unet" / "config.json").write_text('{"channels": 4, "depth": 4}')
    with pytest.raises(converters.ConfigError, match=r"unet\.channels is 4, but the way back would derive 3"):
        converters.convert(parse_spec(SPEC), converted, tmp_path / "back", reverse=True)
    assert not (tmp_path / "back").exists()


def test_a_component_in_one_file_and_in_several_is_ambiguous(converted: Path) -> None:
    save_file({"weight": TENSORS["t.weight"]}, converted / "unet" / "weights.safetensors")
    with pytest.raises(
        converters.CheckpointError, match=r"ambiguous: weights\.safetensors, weights\.safetensors\.index"
    ):
        open_side(converted, parse_spec(SPEC).target)


def test_two_components_may_not_be_one_file() -> None:
    text = SPEC.replace("vae/weights.safetensors", "unet/weights.bin")
    with pytest.raises(converters.SpecError, match=r"unet: .* and vae: .* could be one file"):
        parse_spec(text)


def test_what_wrappers_add_is_stripped_behind_the_label(tmp_path: Path) -> None:
    spec = parse_spec(
        'weightmap: 1\nsource: {layout: p, strip_prefix: [module.], files: {"{t}": "p{t}.safetensors"}}\n'
        "target: {layout: w}\ndims: {T: {from: keys}}\nplaceholders: {t: 0..T}\n"
        'rules: [{from: "{t}:w", to: w, layout: i -> (t i)}]\n'
    )
    (tmp_path / "source").mkdir()
    for number in range(2):
        save_file({"module.w": np.full(3, number, np.float32)}, tmp_path / "source" / f"p{number}.safetensors")
    converters.convert(spec, tmp_path / "source", tmp_path / "out")
    np.testing.assert_array_equal(load_file(tmp_path / "out" / "model.safetensors")["w"], [0, 0, 0, 1, 1, 1])
