"""Loading a checkpoint of another layout into a live model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import converters
from mappings.tenny import Tenny, TennyConfig
from tests.mappings.proof import assert_same_logits
from tests.models import tiny_phi


@pytest.fixture
def phi(tmp_path: Path) -> Path:
    tiny_phi(21).save_pretrained(tmp_path / "phi")
    return tmp_path / "phi"


def tenny(phi: Path, **changes: object) -> Tenny:
    with converters.open_converted(converters.load_spec("phi2_to_tenny"), phi) as converted:
        assert converted.config is not None
        return Tenny(TennyConfig.from_dict({**converted.config, **changes})).eval()


def test_the_model_computes_the_same_afterwards(phi: Path) -> None:
    model = tenny(phi)
    kept = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    converters.load_into(model, converters.load_spec("phi2_to_tenny"), phi)
    assert kept == {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert_same_logits(tiny_phi(21), model, 251)


def test_a_dtype_is_cast_on_the_way_and_only_when_asked(phi: Path) -> None:
    spec = converters.load_spec("phi2_to_tenny")
    model = tenny(phi).to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(converters.CheckpointError, match="dtype='bfloat16'"):
        converters.load_into(model, spec, phi)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    converters.load_into(model, spec, phi, dtype="bfloat16")
    with converters.open_converted(spec, phi) as converted:
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, converted[name].to(torch.bfloat16))


def test_a_model_that_does_not_fit_is_refused_with_all_that_differs(phi: Path) -> None:
    spec = converters.load_spec("phi2_to_tenny")
    model = tenny(phi)
    model.extra = torch.nn.Linear(2, 3)
    model.encoder = torch.nn.Embedding(17, model.encoder.weight.shape[1])
    del model.transformer_encoder.layers[1]
    with pytest.raises(converters.CheckpointError) as caught:
        converters.load_into(model, spec, phi)
    message = str(caught.value)
    for expected in ("extra.weight", "extra.bias", "shape is [17", "transformer_encoder.layers.2."):
        assert expected in message


def test_a_model_on_meta_is_told_what_to_do(phi: Path) -> None:
    model = tenny(phi).to("meta")
    with pytest.raises(converters.CheckpointError, match="to_empty"):
        converters.load_into(model, converters.load_spec("phi2_to_tenny"), phi)
    model.to_empty(device="cpu")


def test_straight_from_a_live_hub_model_back(phi: Path, tmp_path: Path) -> None:
    converters.convert(converters.load_spec("phi2_to_tenny"), phi, tmp_path / "tenny")
    model = tiny_phi(22)
    converters.load_into(model, converters.load_spec("phi2_to_tenny"), tmp_path / "tenny", reverse=True)
    assert_same_logits(tiny_phi(21), model, 251, atol=0)


SAME = """
weightmap: 1
source: {layout: a}
target: {layout: b}
rename: {"{k:path}": "{k}"}
"""


@pytest.fixture
def two(tmp_path: Path) -> Path:
    save_file(
        {"a.weight": torch.arange(6.0).reshape(2, 3), "b.weight": torch.full((2, 3), 9.0)}, tmp_path / "two.safetensors"
    )
    (tmp_path / "same.yaml").write_text(SAME)
    return tmp_path


def two_layers() -> torch.nn.ModuleDict:
    return torch.nn.ModuleDict({name: torch.nn.Linear(3, 2, bias=False) for name in "ab"})


@pytest.mark.parametrize("by_memory", [False, True])
def test_tied_weights_take_one_value_and_no_two(two: Path, *, by_memory: bool) -> None:
    spec = converters.load_spec(two / "same.yaml")
    model = two_layers()
    weight = model["a"].weight
    model["b"].weight = torch.nn.Parameter(weight.data) if by_memory else weight
    before = weight.detach().clone()
    with pytest.raises(
        converters.CheckpointError, match=r"a\.weight is the same tensor in the model, and another one in"
    ):
        converters.load_into(model, spec, two / "two.safetensors")
    assert torch.equal(weight, before)
    save_file(
        {"a.weight": torch.arange(6.0).reshape(2, 3), "b.weight": torch.arange(6.0).reshape(2, 3)},
        two / "equal.safetensors",
    )
    converters.load_into(model, spec, two / "equal.safetensors")
    assert model["b"].weight.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_what_could_not_be_filled_is_refused(two: Path) -> None:
    spec = converters.load_spec(two / "same.yaml")
    model = two_layers()
    model["b"].weight = torch.nn.Parameter(torch.zeros(1, 3).expand(2, 3))

    def scaled(module: torch.nn.Module, state: dict[str, torch.Tensor], *_: object) -> None:
        del module
        state["a.weight"] = state["a.weight"] * 1

    model.register_state_dict_post_hook(scaled)
    with pytest.raises(converters.CheckpointError) as caught:
        converters.load_into(model, spec, two / "two.safetensors")
    assert "a.weight: the model's state_dict() makes this anew each time" in str(caught.value)
    assert "b.weight: elements of the model's tensor share memory" in str(caught.value)
