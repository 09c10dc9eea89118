"""Tenny against transformers' Phi, against torch's encoder layer, and against the list of keys in its contract."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PhiForCausalLM

from mappings.tenny import Tenny, TennyConfig, sinusoidal_positions
from tests.models import MixFormer, randomize, tiny_mixformer, tiny_phi

SIZES = {"vocab_size": 251, "embed_dim": 48, "num_heads": 6, "num_layers": 3, "ff_dim": 80}
LENGTH = 512
PHIS = {
    "plain": {},
    "grouped-query": {"num_key_value_heads": 2},
    "multi-query": {"num_key_value_heads": 1},
    "other rotary": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.8}},
}


def sinusoid(length: int, dim: int) -> list[list[list[float]]]:
    """Sinusoidal positions [length, 1, dim], one number at a time."""
    return [
        [[(math.cos if j % 2 else math.sin)(position / 10000 ** ((j - j % 2) / dim)) for j in range(dim)]]
        for position in range(length)
    ]


POSITIONS = torch.tensor(sinusoid(5000, 48))


def config_of(phi: PhiForCausalLM, block: str = "parallel") -> TennyConfig:
    """Phi's own config.json with Tenny's keys added, as a conversion would leave it."""
    return TennyConfig.from_dict(phi.config.to_dict() | SIZES | {"model_type": "tenny", "block": block})


def naive_state(phi: PhiForCausalLM) -> dict[str, Tensor]:
    """Phi's weights under Tenny's names, each written down by hand."""
    source = phi.state_dict()
    state = {"pos_encoder.pe": POSITIONS, "encoder.weight": source["model.embed_tokens.weight"]}
    for p in ("weight", "bias"):
        for i in range(phi.config.num_hidden_layers):
            old, new = f"model.layers.{i}", f"transformer_encoder.layers.{i}"
            q, k, v = (source[f"{old}.self_attn.{name}_proj.{p}"] for name in ("q", "k", "v"))
            state[f"{new}.self_attn.multihead_attn.in_proj_{p}"] = torch.cat([q, k, v])
            state[f"{new}.self_attn.multihead_attn.out_proj.{p}"] = source[f"{old}.self_attn.dense.{p}"]
            state[f"{new}.ff.linear1.{p}"] = source[f"{old}.mlp.fc1.{p}"]
            state[f"{new}.ff.linear2.{p}"] = source[f"{old}.mlp.fc2.{p}"]
            state[f"{new}.norm1.{p}"] = source[f"{old}.input_layernorm.{p}"].clone()
            state[f"{new}.norm2.{p}"] = source[f"{old}.input_layernorm.{p}"].clone()
        state[f"transformer_encoder.norm.{p}"] = source[f"model.final_layernorm.{p}"]
        state[f"decoder.{p}"] = source[f"lm_head.{p}"]
    return state


def load(state: dict[str, Tensor], config: TennyConfig) -> Tenny:
    model = Tenny(config).eval()
    model.load_state_dict(state, strict=True)
    return model


def prompts(batch: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(0, 251, (batch, length), generator=torch.Generator().manual_seed(7))


def padded_mask() -> Tensor:
    """Three prompts [3, LENGTH]: padded left, padded right, not padded."""
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[0, :101] = 0
    mask[1, -77:] = 0
    return mask


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("overrides", PHIS.values(), ids=PHIS)
def test_parallel_block_computes_what_phi_computes(overrides: dict[str, Any]) -> None:
    phi = tiny_phi(1, **overrides)
    tenny = load(naive_state(phi), config_of(phi))
    torch.testing.assert_close(tenny(prompts()), phi(prompts()).logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize("overrides", PHIS.values(), ids=PHIS)
def test_parallel_block_with_padding_computes_what_phi_computes(overrides: dict[str, Any]) -> None:
    phi, mask = tiny_phi(2, **overrides), padded_mask()
    tenny = load(naive_state(phi), config_of(phi))
    ours, expected = tenny(prompts(3), mask), phi(prompts(3), attention_mask=mask).logits
    torch.testing.assert_close(ours[mask.bool()], expected[mask.bool()], atol=2e-5, rtol=0)
    assert ours.isfinite().all()
    # The mask does something, else the comparison shows nothing about it.
    assert (ours - tenny(prompts(3)))[0, 101:].abs().max() > 0.1


def test_bool_masks_are_masks_too() -> None:
    phi, mask = tiny_phi(2), padded_mask()
    for block in ("parallel", "classic"):
        tenny = load(naive_state(phi), config_of(phi, block))
        assert torch.equal(tenny(prompts(3), mask), tenny(prompts(3), mask.bool()))


@pytest.mark.parametrize("key", [key for key in Tenny(TennyConfig(**SIZES)).state_dict() if key != "pos_encoder.pe"])
def test_no_parameter_can_be_wrong_unseen(key: str) -> None:
    """Reversing any one parameter shows in the logits, so that equal logits mean equal parameters."""
    phi = tiny_phi(3)
    state = naive_state(phi)
    expected = load(state, config_of(phi))(prompts(1, 64))
    state[key] = state[key].flip(0)
    assert (load(state, config_of(phi))(prompts(1, 64)) - expected).abs().max() > 0.1


@pytest.mark.parametrize("padded", [False, True])
def test_classic_block_is_the_post_norm_encoder(padded: bool) -> None:  # noqa: FBT001
    tenny = randomize(Tenny(TennyConfig(**SIZES)), 4)
    state = tenny.state_dict()
    mask = padded_mask() if padded else torch.ones(3, LENGTH, dtype=torch.long)

    x = state["encoder.weight"][prompts(3)] * 48**0.5 + POSITIONS[:LENGTH].transpose(0, 1)
    for i in range(3):
        layer = nn.TransformerEncoderLayer(
            48, 6, 80, dropout=0.0, activation="relu", norm_first=False, batch_first=True
        )
        prefix = f"transformer_encoder.layers.{i}."
        mine = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        names = {key.replace("self_attn.multihead_attn", "self_attn").replace("ff.", ""): key for key in mine}
        layer.load_state_dict({theirs: mine[key] for theirs, key in names.items()}, strict=True)
        # In train mode (dropout is zero) it takes the plain path, and not the fused one that Tenny takes.
        x = layer.train()(x, src_key_padding_mask=mask == 0)
    norm, norm_bias = state["transformer_encoder.norm.weight"], state["transformer_encoder.norm.bias"]
    x = nn.functional.layer_norm(x, (48,), norm, norm_bias, 1e-5)
    expected = x @ state["decoder.weight"].T + state["decoder.bias"]

    ours = tenny(prompts(3), mask if padded else None)
    torch.testing.assert_close(ours[mask.bool()], expected[mask.bool()], atol=2e-5, rtol=0)


def test_classic_block_refuses_more_tokens_than_positions() -> None:
    tenny = Tenny(TennyConfig(**SIZES, max_len=16))
    assert tenny(prompts(1, 16)).shape == (1, 16, 251)
    with pytest.raises(ValueError, match="17 tokens, but max_len is 16"):
        tenny(prompts(1, 17))


def test_positions_are_sines_and_cosines() -> None:
    expected = torch.tensor(sinusoid(5000, 48), dtype=torch.float64)
    assert torch.equal(sinusoidal_positions(5000, 48), expected.float())
    assert torch.equal(sinusoidal_positions(9, 7), torch.tensor(sinusoid(9, 7)))


@pytest.mark.parametrize(("block", "kv_heads"), [("classic", 6), ("parallel", 6), ("parallel", 2)])
def test_state_dict_holds_exactly_these_keys(block: str, kv_heads: int) -> None:
    rows = 48 + 2 * kv_heads * 8
    expected = {"pos_encoder.pe": [5000, 1, 48], "encoder.weight": [251, 48]}
    for i in range(3):
        expected |= {
            f"transformer_encoder.layers.{i}.self_attn.multihead_attn.in_proj_weight": [rows, 48],
            f"transformer_encoder.layers.{i}.self_attn.multihead_attn.in_proj_bias": [rows],
            f"transformer_encoder.layers.{i}.self_attn.multihead_attn.out_proj.weight": [48, 48],
            f"transformer_encoder.layers.{i}.self_attn.multihead_attn.out_proj.bias": [48],
            f"transformer_encoder.layers.{i}.ff.linear1.weight": [80, 48],
            f"transformer_encoder.layers.{i}.ff.linear1.bias": [80],
            f"transformer_encoder.layers.{i}.ff.linear2.weight": [48, 80],
            f"transformer_encoder.layers.{i}.ff.linear2.bias": [48],
            f"transformer_encoder.layers.{i}.norm1.weight": [48],
            f"transformer_encoder.layers.{i}.norm1.bias": [48],
            f"transformer_encoder.layers.{i}.norm2.weight": [48],
            f"transformer_encoder.layers.{i}.norm2.bias": [48],
        }
    expected |= {
        "transformer_encoder.norm.weight": [48],
        "transformer_encoder.norm.bias": [48],
        "decoder.weight": [251, 48],
        "decoder.bias": [251],
    }
    model = Tenny(TennyConfig.from_dict(SIZES | {"block": block, "num_key_value_heads": kv_heads}))
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == expected
    assert model.get_buffer("pos_encoder.pe").dtype == torch.float32


def write_checkpoint(directory: Path, config: dict[str, Any], *shards: dict[str, Tensor]) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    if len(shards) == 1:
        save_file(shards[0], directory / "model.safetensors")
        return directory
    names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, directory / name)
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


@pytest.mark.parametrize("block", ["classic", "parallel"])
@pytest.mark.parametrize("sharded", [False, True])
def test_both_blocks_load_the_same_file(tmp_path: Path, block: str, sharded: bool) -> None:  # noqa: FBT001
    phi = tiny_phi(5)
    state = naive_state(phi)
    items = list(state.items())
    shards = [dict(items[0::2]), dict(items[1::2])] if sharded else [state]
    config = phi.config.to_dict() | SIZES | {"model_type": "tenny", "block": block}
    tenny = Tenny.from_pretrained(write_checkpoint(tmp_path, config, *shards))
    assert not tenny.training
    assert tenny.config == config_of(phi, block)
    assert all(torch.equal(value, state[key]) for key, value in tenny.state_dict().items())
    assert torch.equal(tenny(prompts()), load(state, config_of(phi, block))(prompts()))
    same_as_phi = torch.allclose(tenny(prompts()), phi(prompts()).logits, atol=2e-5, rtol=0)
    assert same_as_phi == (block == "parallel")


def test_loading_is_strict(tmp_path: Path) -> None:
    phi = tiny_phi(5)
    config, state = config_of(phi).to_dict(), naive_state(phi)
    extra = state | {"decoder.scale": torch.ones(3)}
    with pytest.raises(RuntimeError, match=r"Unexpected key.*decoder\.scale"):
        Tenny.from_pretrained(write_checkpoint(tmp_path / "extra", config, extra))
    missing = {key: value for key, value in state.items() if key != "decoder.bias"}
    with pytest.raises(RuntimeError, match=r"Missing key.*decoder\.bias"):
        Tenny.from_pretrained(write_checkpoint(tmp_path / "missing", config, missing))
    with pytest.raises(RuntimeError, match=r"size mismatch for encoder\.weight"):
        Tenny.from_pretrained(
            write_checkpoint(tmp_path / "shape", config, state | {"encoder.weight": torch.ones(3, 4)})
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("block", ["classic", "parallel"])
def test_half_precision_is_close_to_single(tmp_path: Path, block: str, dtype: torch.dtype) -> None:
    phi = tiny_phi(6)
    write_checkpoint(tmp_path, config_of(phi, block).to_dict(), naive_state(phi))
    single, half = Tenny.from_pretrained(tmp_path), Tenny.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    assert half.get_buffer("pos_encoder.pe").dtype == torch.float32
    logits, expected = half(prompts(3), padded_mask()), single(prompts(3), padded_mask())
    assert logits.dtype == dtype
    error = (logits.float() - expected)[padded_mask().bool()]
    # Logits have a standard deviation of 2, so this is an error of one or two units in the last place.
    assert error.square().mean().sqrt() < 4 * torch.finfo(dtype).eps


@pytest.mark.gpu
@pytest.mark.parametrize("block", ["classic", "parallel"])
def test_runs_on_cuda(tmp_path: Path, block: str) -> None:
    phi = tiny_phi(6)
    write_checkpoint(tmp_path, config_of(phi, block).to_dict(), naive_state(phi))
    mask = padded_mask()
    expected = Tenny.from_pretrained(tmp_path)(prompts(3), mask)[mask.bool()]
    ours = Tenny.from_pretrained(tmp_path, device="cuda")(prompts(3).cuda(), mask.cuda()).cpu()[mask.bool()]
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    for dtype in (torch.float16, torch.bfloat16):
        half = Tenny.from_pretrained(tmp_path, device="cuda", dtype=dtype)
        assert half(prompts(3).cuda(), mask.cuda())[mask.bool().cuda()].isfinite().all()


def test_config_reads_what_transformers_writes(tmp_path: Path) -> None:
    tiny_phi(0, num_key_value_heads=2, partial_rotary_factor=0.75).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["rope_parameters"] == {"partial_rotary_factor": 0.75, "rope_theta": 10000.0, "rope_type": "default"}
    (tmp_path / "config.json").write_text(json.dumps(saved | SIZES | {"model_type": "tenny", "block": "parallel"}))
    expected = TennyConfig(
        **SIZES, num_key_value_heads=2, partial_rotary_factor=0.75, block="parallel", rope_theta=10000.0
    )
    assert TennyConfig.from_json(tmp_path) == TennyConfig.from_json(tmp_path / "config.json") == expected
    assert TennyConfig.from_dict(expected.to_dict()) == expected


def test_config_reads_rotary_settings_at_the_top_level() -> None:
    config = TennyConfig.from_dict(
        SIZES | {"block": "parallel", "rope_theta": 500.0, "partial_rotary_factor": 0.25, "rope_scaling": None}
    )
    assert (config.rope_theta, config.partial_rotary_factor, config.rotary_dim) == (500.0, 0.25, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "phi"}, "model_type is 'phi', expected 'tenny'"),
        ({"block": "serial"}, "block is 'serial', expected 'classic' or 'parallel'"),
        ({"num_heads": 7}, "embed_dim 48 is not a multiple of num_heads 7"),
        ({"num_key_value_heads": 4}, "num_heads 6 is not a multiple of num_key_value_heads 4"),
        ({"num_key_value_heads": 2}, "knows no grouped-query attention, but num_heads is 6 and num_key_value_heads 2"),
        ({"block": "parallel", "partial_rotary_factor": 0.4}, "partial_rotary_factor 0.4 rotates 3 features"),
        ({"block": "parallel", "rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({"block": "parallel", "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ({"block": "parallel", "hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ],
)
def test_config_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TennyConfig.from_dict(SIZES | changes)


def test_config_names_what_it_lacks() -> None:
    with pytest.raises(ValueError, match="the config lacks embed_dim, ff_dim"):
        TennyConfig.from_dict({"vocab_size": 251, "num_heads": 6, "num_layers": 3})


def phi_state(mixformer: MixFormer) -> dict[str, Tensor]:
    """The first release's weights under the names of transformers' Phi, each written down by hand."""
    source, heads = mixformer.state_dict(), mixformer.config["n_head_kv"] or 6
    rows = [48, heads * 8, heads * 8]
    state = {"model.embed_tokens.weight": source["transformer.embd.wte.weight"]}
    for p in ("weight", "bias"):
        for n in range(3):
            old, new = f"transformer.h.{n}", f"model.layers.{n}"
            for name, part in zip("qkv", source[f"{old}.mixer.Wqkv.{p}"].split(rows), strict=True):
                state[f"{new}.self_attn.{name}_proj.{p}"] = part
            state[f"{new}.self_attn.dense.{p}"] = source[f"{old}.mixer.out_proj.{p}"]
            state[f"{new}.mlp.fc1.{p}"] = source[f"{old}.mlp.fc1.{p}"]
            state[f"{new}.mlp.fc2.{p}"] = source[f"{old}.mlp.fc2.{p}"]
            state[f"{new}.input_layernorm.{p}"] = source[f"{old}.ln.{p}"]
        state[f"model.final_layernorm.{p}"] = source[f"lm_head.ln.{p}"]
        state[f"lm_head.{p}"] = source[f"lm_head.linear.{p}"]
    return state


@pytest.mark.parametrize("kv_heads", [None, 2])
def test_first_release_computes_what_phi_computes(kv_heads: int | None) -> None:
    mixformer, phi = tiny_mixformer(8, n_head_kv=kv_heads), tiny_phi(9, num_key_value_heads=kv_heads)
    phi.load_state_dict(phi_state(mixformer), strict=True)
    torch.testing.assert_close(mixformer(prompts()), phi(prompts()).logits, atol=2e-5, rtol=0)


def test_first_release_keys_and_config(tmp_path: Path) -> None:
    model = tiny_mixformer(8, with_inv_freq=True, n_layer=1, n_inner=None)
    expected = {"transformer.embd.wte.weight": [251, 48], "transformer.h.0.mixer.rotary_emb.inv_freq": [2]}
    for p, columns in (("weight", [48]), ("bias", [])):
        expected |= {
            f"transformer.h.0.ln.{p}": [48],
            f"transformer.h.0.mixer.Wqkv.{p}": [144, *columns],
            f"transformer.h.0.mixer.out_proj.{p}": [48, *columns],
            f"transformer.h.0.mlp.fc1.{p}": [192, *columns],
            f"transformer.h.0.mlp.fc2.{p}": [48, *([192] if columns else [])],
            f"lm_head.ln.{p}": [48],
            f"lm_head.linear.{p}": [251, *columns],
        }
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == expected
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "phi-msft"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(expected)
