"""Loading a checkpoint of another layout into a live model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

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
