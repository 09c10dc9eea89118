"""The stand-ins that let a package's model be imported, and that they are gone afterwards."""

from __future__ import annotations

import importlib
import sys

import pytest
from torch import nn

from tests.oracles import STAND_INS, oracle

MODELS = {
    "timm.models.vision_transformer": "VisionTransformer",
    "torchtune.modules": "TransformerDecoder",
    "torchtitan.models.llama3.model.model": "Transformer",
    "olmo_core.nn.transformer": "Transformer",
}


@pytest.mark.parametrize("module", MODELS)
def test_the_package_s_own_model_is_imported_and_no_stand_in_stays(module: str) -> None:
    model = getattr(oracle(module), MODELS[module])
    assert issubclass(model, nn.Module)
    assert sys.modules[model.__module__].__spec__.origin.endswith(".py")  # type: ignore[union-attr]
    package = module.partition(".")[0]
    assert package in STAND_INS
    left = [name for name in STAND_INS[package] if type(sys.modules.get(name)).__name__ == "_Module"]
    assert not left


def test_what_is_not_installed_is_missing_again() -> None:
    oracle("timm.models.vision_transformer")
    try:
        torchvision = importlib.import_module("torchvision")
    except ImportError:
        return
    assert torchvision.__file__


def test_a_package_that_is_not_in_the_table_gets_no_stand_ins() -> None:
    with pytest.raises(KeyError):
        oracle("json")
