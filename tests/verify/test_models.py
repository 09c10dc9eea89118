"""Models of both sides: where they come from, and that weights go in strictly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from converters.storage.checkpoint import open_checkpoint
from converters.verify.models import SideModel, load_weights
from converters.verify.precision import choose_precision, exact_arithmetic
from converters.verify.rounding import Rounding
from converters.verify.skeleton import (
    ModelLoadError,
    ModelUnavailableError,
    make_skeleton,
    parameters_on_meta,
    resolve,
    transformers_class,
)
from converters.verify.streaming import find_blocks
from tests.models import tiny_phi
from tests.models_gpt2 import tiny_gpt2
from tests.models_llama import tiny_llama, tiny_mixtral

IDS = torch.randint(0, 250, (2, 40), generator=torch.Generator().manual_seed(3))


def load(directory: Path, source: Any = None, *, resident_nbytes: int = 1 << 30, **options: Any) -> SideModel:
    config = json.loads((directory / "config.json").read_text())
    with open_checkpoint(directory) as reader:
        skeleton = make_skeleton(source, directory, config)
        return load_weights(skeleton, reader, directory, choose_precision("cpu", None), resident_nbytes, **options)


def logits(side: SideModel) -> Tensor:
    with exact_arithmetic():
        return side.logits(IDS)


def edit(directory: Path, change: Any) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


MODELS = {
    "phi": tiny_phi,
    "phi, tied": lambda seed: tiny_phi(seed, tie_word_embeddings=True),
    "llama": tiny_llama,
    "mixtral": tiny_mixtral,
    "gpt-2": tiny_gpt2,
}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """With several, torch adds up what the experts give in another order each time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_weights_end_up_where_transformers_puts_them(make: Any, tmp_path: Path) -> None:
    model = make(4)
    model.save_pretrained(tmp_path)
    side = load(tmp_path)
    assert not side.module.training
    assert {parameter.dtype for parameter in side.module.parameters()} == {torch.float32}
    with exact_arithmetic():
        assert torch.equal(logits(side), model(IDS).logits)


def test_blocks_hold_weights_only_while_they_run(tmp_path: Path) -> None:
    model = tiny_phi(4)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    held: list[int] = []
    with open_checkpoint(tmp_path) as reader, exact_arithmetic():
        skeleton = make_skeleton(None, tmp_path, config)
        side = load_weights(skeleton, reader, tmp_path, choose_precision("cpu", None), 0)
        blocks = list(side.blocks.values())

        def count(*_: Any) -> None:
            held.append(sum(next(block.parameters()).device.type != "meta" for block in blocks))

        for block in blocks:
            block.get_submodule("mlp").register_forward_hook(count)
        assert torch.equal(side.logits(IDS), model(IDS).logits)
        count()
    assert held == [1, 1, 1, 0]


def test_half_precision_weights_are_computed_in_float32(tmp_path: Path) -> None:
    tiny_phi(4).to(torch.bfloat16).save_pretrained(tmp_path)
    side = load(tmp_path)
    assert logits(side).dtype == torch.float32
    assert {parameter.dtype for parameter in side.module.parameters()} == {torch.float32}


@pytest.mark.parametrize("resident_nbytes", [0, 1 << 30])
def test_rounding_is_that_of_the_cast(resident_nbytes: int, tmp_path: Path) -> None:
    model = tiny_phi(4)
    model.save_pretrained(tmp_path / "wide")
    keys = load_file(tmp_path / "wide" / "model.safetensors")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "narrow")
    with open_checkpoint(tmp_path / "wide") as reader, exact_arithmetic():
        config = json.loads((tmp_path / "wide" / "config.json").read_text())
        skeleton = make_skeleton(None, tmp_path / "wide", config)
        rounding = Rounding(dict.fromkeys(keys, torch.bfloat16))
        side = load_weights(
            skeleton, reader, tmp_path / "wide", choose_precision("cpu", None), resident_nbytes, rounding
        )
        assert torch.equal(side.logits(IDS), logits(load(tmp_path / "narrow")))


def test_keys_without_the_prefix_are_found(tmp_path: Path) -> None:
    model = tiny_gpt2(4)
    model.save_pretrained(tmp_path)

    def strip(tensors: dict[str, Tensor]) -> None:
        for key in list(tensors):
            tensors[key.removeprefix("transformer.")] = tensors.pop(key)

    edit(tmp_path, strip)
    with exact_arithmetic():
        assert torch.equal(logits(load(tmp_path)), model(IDS).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop("lm_head.bias"),
            r"lm_head\.bias: the model has this parameter, but the checkpoint",
        ),
        (
            lambda tensors: tensors.update({"x.y": torch.ones(2)}),
            r"x\.y: the checkpoint has this tensor, but the model",
        ),
        (
            lambda tensors: tensors.update({"lm_head.bias": torch.ones(2)}),
            r"lm_head\.bias: the model's is \[251\], the",
        ),
    ],
)
def test_loading_is_strict(change: Any, message: str, tmp_path: Path) -> None:
    tiny_phi(4).save_pretrained(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(ModelLoadError, match=message):
        load(tmp_path)


def test_all_missing_keys_are_named(tmp_path: Path) -> None:
    tiny_llama(4).save_pretrained(tmp_path)

    def remove(tensors: dict[str, Tensor]) -> None:
        del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]

    edit(tmp_path, remove)
    with pytest.raises(ModelLoadError) as caught:
        load(tmp_path)
    assert {str(problem.where) for problem in caught.value.problems} == {
        "model.norm.weight", "model.layers.1.mlp.up_proj.weight"
    }  # fmt: skip


def test_a_tied_head_may_be_stored_if_it_is_the_same(tmp_path: Path) -> None:
    model = tiny_phi(4, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    edit(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    with exact_arithmetic():
        assert torch.equal(logits(load(tmp_path)), model(IDS).logits)
    edit(tmp_path, lambda tensors: tensors["lm_head.weight"].add_(1))
    with pytest.raises(ModelLoadError, match=r"lm_head\.weight: the model ties it to model\.embed_tokens\.weight"):
        load(tmp_path)


def test_a_config_never_brings_code(tmp_path: Path) -> None:
    tiny_phi(4).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    ran = tmp_path / "ran"
    (tmp_path / "modeling_evil.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Evil: pass\n")
    auto_map = {"AutoConfig": "modeling_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": auto_map}))
    load(tmp_path)
    assert transformers_class({"model_type": "evil", "auto_map": auto_map})[0] is None
    assert not ran.exists()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "names no model_type"),
        ({"model_type": 3}, "names no model_type"),
        ({"model_type": "tenny"}, "knows no model_type 'tenny'"),
    ],
)
def test_models_that_transformers_does_not_know(config: Mapping[str, Any] | None, reason: str) -> None:
    made, why = transformers_class(config)
    assert made is None
    assert why is not None
    assert reason in why


@pytest.mark.parametrize("path", ["tests.models", "tests.models:", ":x", "no.such:Thing", "tests.models:TINY_PHI"])
def test_import_paths_that_are_none(path: str) -> None:
    with pytest.raises(ModelUnavailableError):
        resolve(path)


def test_what_makes_no_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="makes a dict, and no"):
        make_skeleton(dict, tmp_path, {"a": 1})


def test_errors_of_other_code_are_told_in_short(tmp_path: Path) -> None:
    def fail(_: Mapping[str, Any]) -> nn.Module:
        raise KeyError("hidden_size")

    with pytest.raises(ModelLoadError, match="KeyError: 'hidden_size'"):
        make_skeleton(fail, tmp_path, {})


def test_parameters_on_meta_keeps_buffers_and_ties_and_ends() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight
            self.register_buffer("frequencies", torch.arange(3.0))

    with parameters_on_meta():
        model = Tied()
    assert model.first.weight.device.type == "meta"
    assert model.first.weight is model.second.weight
    assert model.get_buffer("frequencies").tolist() == [0, 1, 2]
    assert nn.Linear(2, 2).weight.device.type == "cpu"


def test_blocks_are_the_outermost_lists() -> None:
    expert = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})
    model = nn.ModuleDict({"acts": nn.ModuleList([nn.ReLU()]), "layers": nn.ModuleList([expert, nn.Linear(2, 2)])})
    assert list(find_blocks(model)) == ["layers.0", "layers.1"]
