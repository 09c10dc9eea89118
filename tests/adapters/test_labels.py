"""Specs for checkpoints of several files, applied to an adapter, which is one."""

from __future__ import annotations

from pathlib import Path

import torch

import converters
from converters.adapters.labels import without_labels
from converters.spec_file import parse_spec
from tests.adapters.support import read_adapter, whole, write_adapter

PARALLEL = parse_spec(
    """
weightmap: 1
name: parallel
source:
  layout: a
  files: {"{t}": "part.{t:02}.safetensors"}
target: {layout: b}
dims: {T: {from: keys}, H: 2}
placeholders: {t: 0..T, i: int}
rules:
  - {from: "{t}:h.{i}.q.weight", to: "l.{i}.q.weight", layout: "(d H) i -> (t H d) i"}
  - {from: {copy: ["{t}:norm.weight"]}, to: norm.weight}
""",
    "parallel.yaml",
)
COMPONENTS = parse_spec(
    """
weightmap: 1
name: components
source: {layout: a}
target:
  layout: b
  files: {unet: unet/model.safetensors, text: text/model.safetensors}
rename: {"u.{rest:path}": "unet:{rest}", "t.x.weight": "text:x.weight"}
""",
    "components.yaml",
)


def test_a_number_of_files_is_one(tmp_path: Path) -> None:
    spec = without_labels(PARALLEL)
    assert [str(key) for rule in spec.rules for term in rule.sources for key in term.keys] == [
        "h.{i}.q.weight",
        "norm.weight",
    ]
    assert str(spec.rules[0].targets[0].layout) == "(1 H d) i"
    generator = torch.Generator().manual_seed(4)
    first, second = whole(generator, 3, 7), whole(generator, 6, 3)
    write_adapter(tmp_path / "adapter", {"h.2.q.lora_A.weight": first, "h.2.q.lora_B.weight": second})
    converters.convert(PARALLEL, tmp_path / "adapter", tmp_path / "out")
    found, config = read_adapter(tmp_path / "out")
    assert config["target_modules"] == ["l.2.q"]
    assert torch.equal(found["l.2.q.lora_A.weight"], first)
    assert torch.equal(found["l.2.q.lora_B.weight"], second.reshape(3, 2, 3).transpose(0, 1).reshape(6, 3))
    converters.convert(PARALLEL, tmp_path / "out", tmp_path / "back", reverse=True)
    again, _ = read_adapter(tmp_path / "back")
    assert torch.equal(again["h.2.q.lora_B.weight"], second)


def test_components_have_no_labels() -> None:
    spec = without_labels(COMPONENTS)
    targets = [str(key) for rule in spec.rules for term in rule.targets for key in term.keys]
    assert sorted(targets) == ["x.weight", "{rest}"]
    assert (spec.source.files, spec.target.files) == ((), ())
    assert without_labels(spec) is spec
