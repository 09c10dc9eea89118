"""A lazy checkpoint against what converting writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import converters
from converters.errors import CoverageError
from converters.spec_file import parse_spec
from tests.test_convert import SPEC, TEXT, config_of, source, tensors

__all__ = ["source"]


def test_lazy_tensors_are_those_of_the_files(source: Path, tmp_path: Path) -> None:
    for options in ({}, {"dtype": "bfloat16"}):
        out = tmp_path / f"out{len(options)}"
        converters.convert(SPEC, source, out, **options)  # type: ignore[arg-type]
        expected = load_file(out / "model.safetensors")
        with converters.open_converted(SPEC, source, **options) as lazy:  # type: ignore[arg-type]
            assert len(lazy) == len(expected)
            assert set(lazy) == expected.keys()
            assert lazy.config == config_of(out)
            for name, tensor in expected.items():
                assert torch.equal(lazy[name], tensor)
                assert lazy[name].dtype == tensor.dtype
                assert lazy.info(name).shape == tuple(tensor.shape)
            assert "nothing" not in lazy
            with pytest.raises(KeyError):
                lazy["nothing"]


def test_a_model_loads_a_lazy_state_dict(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 4)
    save_file({"w": model.weight.detach().t().contiguous(), "b": model.bias.detach()}, tmp_path / "m.safetensors")
    spec = parse_spec(
        "weightmap: 1\nsource: {layout: a}\ntarget: {layout: b}\nrename: {b: bias}\n"
        "rules: [{from: w, to: weight, layout: i o -> o i}]\n"
    )
    other = torch.nn.Linear(3, 4)
    with converters.open_converted(spec, tmp_path / "m.safetensors") as lazy:
        other.load_state_dict(lazy)
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(other.bias, model.bias)


def test_lazy_scalars_and_empty_tensors(tmp_path: Path) -> None:
    save_file({"a": torch.tensor(2.5), "e": torch.ones(0, 3)}, tmp_path / "m.safetensors")
    spec = parse_spec("weightmap: 1\nsource: {layout: a}\ntarget: {layout: b}\nrename: {a: b, e: f}\n")
    with converters.open_converted(spec, tmp_path / "m.safetensors") as lazy:
        assert lazy["b"].item() == 2.5
        assert lazy["f"].shape == (0, 3)


def test_a_lazy_checkpoint_is_checked_when_it_is_opened(source: Path) -> None:
    copies = parse_spec(TEXT.replace("rules:", "rules:\n  - {from: {copy: [x, z]}, to: v}"))
    save_file({**tensors(), "x": torch.ones(2), "z": torch.zeros(2)}, source / "model.safetensors")
    with pytest.raises(CoverageError, match="x and z must be equal to become one tensor"):
        converters.open_converted(copies, source)
