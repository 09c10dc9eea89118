"""Stable Diffusion's single file against diffusers: its own converter for the tensors, and its models for the function.

The single file's layout has an oracle of its own, the plain model in tests.models_ldm.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import converters
from converters.bind import bind
from converters.plan import Plan, Source
from converters.planner import make_plan
from converters.tensor_info import DType, TensorInfo
from tests.answers import difference
from tests.mappings.proof import assert_same_bytes, tolerance
from tests.models_diffusion import (
    SETTINGS,
    STABLE_DIFFUSION_1,
    TEXT_FILE,
    TINY,
    UNET_FILE,
    VAE_FILE,
    DiffusersModels,
    clip_text_model,
    diffusers_unet,
    diffusers_vae,
    of_diffusion,
    tiny_diffusers,
)
from tests.models_ldm import LatentDiffusion, tiny_ldm

NAME = "stable_diffusion_ldm_to_diffusers"
FILES = {"unet": UNET_FILE, "vae": VAE_FILE, "text_encoder": TEXT_FILE}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def ldm() -> LatentDiffusion:
    return tiny_ldm(1)


@pytest.fixture(scope="module")
def converted(ldm: LatentDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The diffusers directory that the single file becomes."""
    directory = tmp_path_factory.mktemp("ldm")
    write_single_file(directory / "ldm.safetensors", ldm.state_dict())
    spec = converters.load_spec(NAME)
    converters.convert(spec, directory / "ldm.safetensors", directory / "out", set_config=SETTINGS)
    return directory / "out"


@pytest.fixture(scope="module")
def diffusers_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random models as diffusers and transformers save them."""
    directory = tmp_path_factory.mktemp("diffusers")
    models = tiny_diffusers(2)
    for component in FILES:
        getattr(models, component).save_pretrained(directory / component)
    return directory


def write_single_file(path: Path, state: Mapping[str, Tensor]) -> None:
    save_file({key: value.contiguous() for key, value in state.items()}, path)


def components(directory: Path) -> dict[str, dict[str, Tensor]]:
    return {component: load_file(directory / file) for component, file in FILES.items()}


def by_label(state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{component}:{key}": value for component, own in state.items() for key, value in own.items()}


def by_diffusers(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The components' tensors by diffusers' own converter, under the names that every release of transformers reads."""
    from diffusers.loaders import single_file_utils as own

    return {
        "unet": own.convert_ldm_unet_checkpoint(dict(state), diffusers_unet(TINY).config),
        "vae": own.convert_ldm_vae_checkpoint(dict(state), diffusers_vae(TINY).config),
        "text_encoder": own.convert_ldm_clip_checkpoint(dict(state)),
    }


def load_components(directory: Path) -> DiffusersModels:
    """The components with `from_pretrained`; every key must find its place."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    models = DiffusersModels()
    for component, cls in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL), ("text_encoder", CLIPTextModel)):
        model, info = cls.from_pretrained(directory / component, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), (
            info
        )
        setattr(models, component, model.eval())
    return models


def built_from(config: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Models without weights, from the components' configs."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    return {
        "unet": UNet2DConditionModel.from_config(config["unet"]),
        "vae": AutoencoderKL.from_config(config["vae"]),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**config["text_encoder"])),
    }


def assert_same_function(ldm: LatentDiffusion, models: DiffusersModels) -> None:
    ask = of_diffusion(TINY)
    assert difference(ask(ldm), ask(models)) < tolerance(NAME)


def headers(model: nn.Module, prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {prefix + key: tuple(value.shape) for key, value in model.state_dict().items()}


def plan_from(shapes: Mapping[str, tuple[int, ...]], *, reverse: bool = False, config: Any = None) -> Plan:
    spec = converters.load_spec(NAME)
    sources = [Source(TensorInfo(key, shape, DType.F16), "file") for key, shape in shapes.items()]
    return make_plan(bind(spec.inverse() if reverse else spec, config), sources)


def targets_of(plan: Plan) -> dict[str, tuple[int, ...]]:
    return {target.info.name: target.info.shape for target in plan.targets}


def test_there_and_back(ldm: LatentDiffusion, converted: Path, tmp_path: Path) -> None:
    spec = converters.load_spec(NAME)
    assert spec.inverse().inverse() == spec
    assert spec.exactness == "exact"
    converters.convert(spec, converted, tmp_path / "back", reverse=True, max_shard_size="200KB")
    back: dict[str, Tensor] = {}
    for file in (tmp_path / "back").glob("*.safetensors"):
        back |= load_file(file)
    assert_same_bytes(back, ldm.state_dict())
    in_memory = converters.convert_state_dict(spec, ldm.state_dict())
    assert_same_bytes(in_memory, by_label(components(converted)))


def test_the_tensors_are_those_of_diffusers_own_converter(ldm: LatentDiffusion, converted: Path) -> None:
    expected = by_diffusers(ldm.state_dict())
    for component, found in components(converted).items():
        assert_same_bytes(found, expected[component])


def test_the_components_load_and_compute_the_same(ldm: LatentDiffusion, converted: Path) -> None:
    assert_same_function(ldm, load_components(converted))


def test_the_directory_is_a_pipeline_but_for_the_tokenizer(
    ldm: LatentDiffusion, converted: Path, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(converted, tokenizer=None)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    text = ldm.embed(torch.randint(0, TINY.vocab, (2, TINY.text_length), generator=generator))
    image = pipeline(
        prompt_embeds=text[:1],
        negative_prompt_embeds=text[1:],
        latents=torch.randn(1, TINY.latent, 8, 8, generator=generator),
        num_inference_steps=2,
        output_type="pt",
    ).images
    assert image.shape == (1, 3, 64, 64)
    assert 0.05 < image.std() < 0.5
    pipeline.save_pretrained(tmp_path / "saved")
    converters.convert(converters.load_spec(NAME), tmp_path / "saved", tmp_path / "back", reverse=True)
    assert {file.name for file in (tmp_path / "back").iterdir()} == {"model.safetensors", "weightmap_manifest.json"}
    assert_same_bytes(load_file(tmp_path / "back" / "model.safetensors"), ldm.state_dict())


def test_reverse(diffusers_directory: Path, tmp_path: Path) -> None:
    converters.convert(converters.load_spec(NAME), diffusers_directory, tmp_path / "ldm", reverse=True)
    state = load_file(tmp_path / "ldm" / "model.safetensors")
    saved = components(diffusers_directory)
    saved["text_encoder"] = {f"text_model.{key}": value for key, value in saved["text_encoder"].items()}
    assert_same_bytes(by_label(by_diffusers(state)), by_label(saved))
    ldm = LatentDiffusion(TINY).eval()
    ldm.load_state_dict(state, strict=True)
    assert_same_function(ldm, load_components(diffusers_directory))


def test_the_checkpoint_of_a_training_run(ldm: LatentDiffusion, converted: Path, tmp_path: Path) -> None:
    """A pickle with the state dict inside, beside what the trainer kept."""
    torch.save({"epoch": 3, "state_dict": ldm.state_dict(), "callbacks": {}}, tmp_path / "ldm.ckpt")
    plan = converters.convert(converters.load_spec(NAME), tmp_path / "ldm.ckpt", tmp_path / "out")
    assert any("epoch, callbacks" in note for note in plan.notes)
    for component, found in components(tmp_path / "out").items():
        assert_same_bytes(found, components(converted)[component])


def test_what_training_left_is_dropped_by_name(ldm: LatentDiffusion) -> None:
    spec, state = converters.load_spec(NAME), ldm.state_dict()
    left = {"model_ema.diffusion_modelout2bias", "model_ema.decay", "alphas_cumprod", "posterior_mean_coef2", "logvar"}
    positions = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    full = state | dict.fromkeys(left, torch.ones(3)) | {positions: torch.arange(TINY.text_length)[None]}
    assert_same_bytes(converters.convert_state_dict(spec, full), converters.convert_state_dict(spec, state))
    plan = plan_from({key: tuple(value.shape) for key, value in full.items()})
    dropped = {plan.sources[drop.source].info.name: drop.reason for drop in plan.dropped}
    assert dropped.keys() == left | {positions}
    assert all(len(reason) > 10 for reason in dropped.values())


OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_names(key: str) -> str:
    """What a key of the VAE is called in files that diffusers' first releases wrote."""
    for new, old in OLD_NAMES.items():
        if key.startswith("vae:") and f".{new}." in key:
            return key.replace(f".{new}.", f".{old}.")
    return key


def test_names_of_older_and_newer_releases_are_read_on_the_way_back(
    ldm: LatentDiffusion, converted: Path, tmp_path: Path
) -> None:
    from diffusers import AutoencoderKL

    spec, state = converters.load_spec(NAME), ldm.state_dict()
    today = converters.convert_state_dict(spec, state)
    hub = {old_names(key): value for key, value in today.items()}
    assert len(hub.keys() - today.keys()) == 16
    # diffusers knows the old names as just these.
    vae = {key.removeprefix("vae:"): value for key, value in hub.items() if key.startswith("vae:")}
    write_single_file(tmp_path / "diffusion_pytorch_model.safetensors", vae)
    shutil.copy(converted / "vae" / "config.json", tmp_path)
    assert_same_bytes(AutoencoderKL.from_pretrained(tmp_path).state_dict(), load_file(converted / FILES["vae"]))
    hub["text_encoder:text_model.embeddings.position_ids"] = torch.arange(TINY.text_length)[None]
    assert_same_bytes(converters.convert_state_dict(spec, hub, reverse=True), state)
    new = {key.replace("text_encoder:text_model.", "text_encoder:"): value for key, value in today.items()}
    assert len(new.keys() - today.keys()) == 196
    assert_same_bytes(converters.convert_state_dict(spec, new, reverse=True), state)


def test_the_full_size_is_planned_completely_in_both_directions() -> None:
    """Headers of the released sizes, without a byte of data."""
    with torch.device("meta"):
        single = headers(LatentDiffusion(STABLE_DIFFUSION_1))
        parts = {
            "unet": headers(diffusers_unet(STABLE_DIFFUSION_1), "unet:"),
            "vae": headers(diffusers_vae(STABLE_DIFFUSION_1), "vae:"),
            "text_encoder": headers(clip_text_model(STABLE_DIFFUSION_1), "text_encoder:text_model."),
        }
    assert {component: len(shapes) for component, shapes in parts.items()} == {
        "unet": 686, "vae": 248, "text_encoder": 196,
    }  # fmt: skip
    directory = {key: shape for shapes in parts.values() for key, shape in shapes.items()}
    there = plan_from(single, config={})
    assert targets_of(there) == directory
    assert [shard.filename for shard in there.shards] == [*dict(sorted(FILES.items())).values()]
    assert targets_of(plan_from(directory, reverse=True)) == single
    # The configs that are written describe models of just these sizes.
    assert there.config is not None
    with torch.device("meta"):
        models = built_from(there.config)
    assert {f"unet:{key}": shape for key, shape in headers(models["unet"]).items()} == parts["unet"]
    assert {f"vae:{key}": shape for key, shape in headers(models["vae"]).items()} == parts["vae"]
    found = {f"text_encoder:text_model.{key}": shape for key, shape in headers(models["text_encoder"]).items()}
    assert found == parts["text_encoder"]


@pytest.mark.parametrize(
    "missing",
    [
        "model.diffusion_model.time_embed.2.bias",
        "model.diffusion_model.input_blocks.8.0.in_layers.2.weight",
        "model.diffusion_model.input_blocks.7.0.skip_connection.bias",
        "model.diffusion_model.input_blocks.9.0.op.weight",
        "model.diffusion_model.input_blocks.5.1.transformer_blocks.0.attn2.to_v.weight",
        "model.diffusion_model.middle_block.2.emb_layers.1.weight",
        "model.diffusion_model.output_blocks.2.1.conv.weight",
        "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm3.bias",
        "first_stage_model.encoder.down.3.block.1.conv2.weight",
        "first_stage_model.encoder.mid.attn_1.proj_out.bias",
        "first_stage_model.decoder.up.1.block.0.nin_shortcut.weight",
        "first_stage_model.decoder.up.3.upsample.conv.bias",
        "first_stage_model.post_quant_conv.bias",
        "cond_stage_model.transformer.text_model.encoder.layers.11.self_attn.out_proj.bias",
    ],
)
def test_no_tensor_can_be_missing(missing: str) -> None:
    with torch.device("meta"):
        shapes = headers(LatentDiffusion(TINY))
    del shapes[missing]
    with pytest.raises(converters.CoverageError, match="no key"):
        plan_from(shapes)
