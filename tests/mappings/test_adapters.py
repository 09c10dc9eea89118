"""LoRA adapters against peft: the converted base with the converted adapter answers as the source does with its own."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PhiForCausalLM
from transformers.pytorch_utils import Conv1D

import converters
from converters.errors import CoverageError
from tests.answers import difference
from tests.mappings.proof import assert_same_bytes, read_config, read_tensors, tolerance
from tests.models_pairs import PAIRS, Pair
from tests.shelf import load

peft = pytest.importorskip("peft")

FUSED = "query, key and value are fused in the target"
BY_NAME = {pair.name: pair for pair in PAIRS}


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without torchao, of which peft refuses any but its own version, and with torch's encoder computed by modules."""
    monkeypatch.setattr("peft.tuners.lora.torchao.is_torchao_available", lambda: False)
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it reads the weights of linear layers and passes the layers by
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")
        warnings.filterwarnings("error", "Already found a `peft_config`")
        yield
    torch.backends.mha.set_fastpath_enabled(enabled)


def adapted(model: nn.Module, directory: Path, seed: int = 1, **options: Any) -> nn.Module:
    """The model with a random adapter, which is saved; both factors, and what else is trained, are far from zero."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 12, **options}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1 + torch.rand(parameter.shape, generator=generator))
            elif parameter.requires_grad:
                noise = 0.12 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise if "lora_" in name else parameter + noise)
    wrapped.save_pretrained(str(directory), save_embedding_layers=False)
    result = wrapped.eval()
    assert isinstance(result, nn.Module)
    return result


def with_adapter(model: nn.Module, directory: Path, key_mapping: dict[str, str] | None = None) -> nn.Module:
    result = peft.PeftModel.from_pretrained(model, str(directory), key_mapping=key_mapping).eval()
    assert isinstance(result, nn.Module)
    return result


def linears(model: nn.Module, without: Sequence[str] = ()) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not any(part in name for part in without)
    ]


@dataclass(frozen=True)
class Case:
    """A pair of models, and which of the source's linear layers have an adapter: all, without some.

    Attributes:
        pair: its name.
        without: parts of the names of those that have none.
        key_mapping: for peft, where models of the target have a prefix that the layout leaves out.
        lost: a prefix of the source's keys that doesn't come back.
        options: of the adapter.
    """

    pair: str
    without: tuple[str, ...] = ()
    key_mapping: dict[str, str] | None = None
    lost: str = ""
    options: dict[str, Any] = field(default_factory=dict)


# What a target computes with the embedding's weight alone has no module for an adapter: tied heads, and the
# projections inside of nn.MultiheadAttention.
CASES = [
    Case("phi2_mixformer_to_phi2"),
    Case("phi2_mixformer_to_phi2", options={"use_rslora": True, "lora_bias": True}),
    Case("phi2_mixformer_to_phi2", options={"use_dora": True}),
    Case(
        "phi2_mixformer_to_phi2",
        options={"rank_pattern": {"h.1.mixer.Wqkv": 7, "fc1": 2}, "alpha_pattern": {"h.1.mixer.Wqkv": 3, "linear": 30}},
    ),
    Case("phi2_mixformer_to_phi2-reverse", ("q_proj", "k_proj", "v_proj")),
    Case("llama_meta_to_hf"),
    Case("llama_meta_to_hf-reverse"),
    Case("mistral_consolidated_to_hf-reverse", options={"use_dora": True}),
    Case("gpt2_to_nanogpt", lost="transformer."),
    Case("gpt2_to_nanogpt", ("lm_head",), lost="transformer.", options={"use_dora": True}),
    Case("gpt2_to_nanogpt-reverse", ("lm_head",), {r"^(h)\.": r"transformer.\1."}),
    Case("gemma_pytorch_to_hf"),
    Case("opt_metaseq_to_hf"),
    Case("gpt_neox_to_llama_style", ("lm_head", "embed_out")),
    Case("falcon_to_llama_style", ("lm_head",)),
    Case("phi2_to_tenny", ("q_proj", "k_proj", "v_proj")),
    Case("phi2_to_tenny-reverse"),
    Case("bert_to_torch_encoder", ("query", "key", "value", "attention.output"), lost="bert."),
    Case(
        "bert_to_torch_encoder-reverse",
        ("out_proj",),
        {r"^(encoder|pooler)\.": r"bert.\1."},
    ),
]


def names_of(case: Case) -> str:
    return "-".join([case.pair, *case.options])


@dataclass(frozen=True)
class Made:
    """What there is on disk, and the source's model with its adapter."""

    spec: converters.Spec
    base: Path
    adapter: Path
    converted_base: Path
    converted_adapter: Path
    model: nn.Module


def make(pair: Pair, scratch: Path, choose: Callable[[nn.Module], list[str]], **options: Any) -> Made:
    """Save a base and an adapter, and convert both."""
    spec, reverse = converters.load_spec(pair.spec), pair.reverse
    base, adapter, converted_base, converted_adapter = (
        scratch / name for name in ("base", "adapter", "converted-base", "converted-adapter")
    )
    pair.save(pair.build(3), base)
    converters.convert(spec, base, converted_base, reverse=reverse, set_config=pair.set_config)
    source = load(pair.source_class, base)
    model = adapted(source, adapter, target_modules=choose(source), **options)
    converters.convert(spec, adapter, converted_adapter, reverse=reverse, config=read_config(base))
    return Made(spec, base, adapter, converted_base, converted_adapter, model)


def flagged(directory: Path) -> bool:
    found = json.loads((directory / "adapter_config.json").read_text())["fan_in_fan_out"]
    assert isinstance(found, bool)
    return found


@pytest.mark.parametrize("case", CASES, ids=names_of)
def test_logits_and_the_way_back(tmp_path: Path, case: Case) -> None:
    pair = BY_NAME[case.pair]
    made = make(pair, tmp_path, lambda model: linears(model, case.without), **case.options)
    expected = pair.ask(made.model)
    plain = load(pair.target_class, made.converted_base)
    assert difference(expected, pair.ask(plain)) > 0.5, "an adapter that changes nothing would hide an error"
    target = with_adapter(plain, made.converted_adapter, case.key_mapping)
    assert difference(expected, pair.ask(target)) <= tolerance(pair.spec)
    back = tmp_path / "back"
    config = read_config(made.converted_base)
    converters.convert(made.spec, made.converted_adapter, back, reverse=not pair.reverse, config=config)
    before = {name.replace(f".model.{case.lost}", ".model.") if case.lost else name: tensor
              for name, tensor in read_tensors(made.adapter).items()}  # fmt: skip
    assert_same_bytes(read_tensors(back), before)
    # Where it has adapted both kinds of layers, peft saves the flag of the last, and corrects it on loading.
    source = load(pair.source_class, made.base)
    if len({isinstance(source.get_submodule(name), Conv1D) for name in linears(source, case.without)}) == 1:
        assert flagged(made.adapter) == flagged(back) == any(isinstance(one, Conv1D) for one in made.model.modules())
        assert flagged(made.converted_adapter) == any(isinstance(one, Conv1D) for one in target.modules())


@pytest.mark.parametrize(
    "name", ["phi2_mixformer_to_phi2", "llama_meta_to_hf", "gpt_neox_to_llama_style", "gpt2_to_nanogpt"]
)
def test_merging_and_converting_commute(tmp_path: Path, name: str) -> None:
    pair = BY_NAME[name]
    made = make(pair, tmp_path, lambda model: linears(model, ("lm_head", "embed_out")))
    merged: Any = made.model
    state = {key: tensor.contiguous() for key, tensor in merged.merge_and_unload().state_dict().items()}
    first = converters.convert_state_dict(made.spec, state, reverse=pair.reverse, config=read_config(made.base))
    target: Any = with_adapter(load(pair.target_class, made.converted_base), made.converted_adapter)
    second: dict[str, Tensor] = target.merge_and_unload().state_dict()
    for key, tensor in first.items():
        torch.testing.assert_close(second[key], tensor, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("name", ["phi2_to_tenny", "bert_to_torch_encoder", "opt_metaseq_to_hf-reverse"])
def test_updates_that_the_target_would_have_to_fuse_are_refused(tmp_path: Path, name: str) -> None:
    pair = BY_NAME[name]
    with pytest.raises(CoverageError) as caught:
        make(pair, tmp_path, lambda model: linears(model, ("lm_head",)))
    (problem,) = caught.value.problems
    assert f"{pair.spec}.yaml:" in str(problem.where)
    assert "lora_" in problem.what
    assert "merge the adapter into its base model first" in (problem.hint or "")
    assert not (tmp_path / "converted-adapter").exists()


@pytest.mark.parametrize("options", [{}, {"use_dora": True}])
@pytest.mark.parametrize("name", ["llama_meta_to_hf", "llama_meta_to_hf-reverse"])
def test_embeddings_and_norms_in_both_directions(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    """An embedding with an update, and norms that are stored whole."""
    pair = BY_NAME[name]
    norms = ["norm", "attention_norm", "input_layernorm"]
    made = make(pair, tmp_path, lambda _: ["embed_tokens", "tok_embeddings"], modules_to_save=norms, **options)
    expected = pair.ask(made.model)
    plain = load(pair.target_class, made.converted_base)
    assert difference(expected, pair.ask(plain)) > 1
    assert difference(expected, pair.ask(with_adapter(plain, made.converted_adapter))) <= tolerance(pair.spec)


def test_embeddings_heads_and_biases(tmp_path: Path) -> None:
    """An embedding with an update (and a magnitude), a head stored whole, and the biases of what is adapted."""
    pair = BY_NAME["phi2_mixformer_to_phi2-reverse"]
    names = ["embed_tokens", "fc1", "dense"]
    options = {"modules_to_save": ["lm_head"], "bias": "lora_only", "use_dora": True}
    made = make(pair, tmp_path, lambda _: names, **options)
    config = json.loads((made.converted_adapter / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["lm_head.linear"]
    kept = read_tensors(made.converted_adapter)
    assert "base_model.model.transformer.embd.wte.lora_embedding_A" in kept
    assert "base_model.model.transformer.h.0.mlp.fc1.base_layer.bias" in kept
    assert "base_model.model.lm_head.linear.bias" in kept
    # The plain model reads its embedding's weight and passes the module by, so the way back is what peft is asked on.
    back = tmp_path / "back"
    converters.convert(
        made.spec, made.converted_adapter, back, config=read_config(made.converted_base), reverse=not pair.reverse
    )
    assert_same_bytes(read_tensors(back), read_tensors(made.adapter))
    again = with_adapter(load("transformers:PhiForCausalLM", made.base), back)
    assert difference(pair.ask(made.model), pair.ask(again)) == 0


def test_a_converted_adapter_can_be_trained_on_and_comes_back_unless_its_parts_differ(tmp_path: Path) -> None:
    pair = BY_NAME["phi2_mixformer_to_phi2"]
    made = make(pair, tmp_path, lambda _: ["Wqkv"])
    model = peft.PeftModel.from_pretrained(
        PhiForCausalLM.from_pretrained(made.converted_base), str(made.converted_adapter), is_trainable=True
    )
    tokens = torch.arange(20).reshape(2, 10)
    model(tokens, labels=tokens).loss.backward()
    torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], 0.1).step()
    model.save_pretrained(str(tmp_path / "trained"))
    with pytest.raises(CoverageError, match="must have A in common"):
        converters.convert(
            made.spec, tmp_path / "trained", tmp_path / "never", reverse=True, config=read_config(made.converted_base)
        )
