"""Sizes of small latent diffusion models (Rombach et al., 2022), and diffusers' own models of these sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.answers import Answers
from tests.models import Model, randomize

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel


@dataclass(frozen=True, slots=True)
class DiffusionSizes:
    """Sizes of the three components; the numbers of levels and blocks are the layout's.

    Attributes:
        unet: channels of the UNet's levels.
        vae: channels of the autoencoder's levels.
        latent: channels of an image's code.
        heads: of the UNet's attention.
        text: features of a token of the text.
    """

    unet: tuple[int, int, int, int]
    unet_groups: int
    heads: int
    vae: tuple[int, int, int, int]
    vae_groups: int
    latent: int
    text: int
    text_heads: int
    text_inner: int
    text_layers: int
    text_length: int
    vocab: int


TINY = DiffusionSizes(
    unet=(8, 12, 20, 20), unet_groups=4, heads=2, vae=(6, 9, 15, 15), vae_groups=3, latent=5,
    text=21, text_heads=3, text_inner=33, text_layers=12, text_length=11, vocab=97,
)  # fmt: skip
STABLE_DIFFUSION_1 = DiffusionSizes(
    unet=(320, 640, 1280, 1280), unet_groups=32, heads=8, vae=(128, 256, 512, 512), vae_groups=32, latent=4,
    text=768, text_heads=12, text_inner=3072, text_layers=12, text_length=77, vocab=49408,
)  # fmt: skip

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
TEXT_FILE = "text_encoder/model.safetensors"
# What the tensors of a single file don't say, and the spec takes from the released models.
SETTINGS = {
    "unet.attention_head_dim": TINY.heads,
    "unet.block_out_channels": TINY.unet,
    "unet.norm_num_groups": TINY.unet_groups,
    "vae.block_out_channels": TINY.vae,
    "vae.norm_num_groups": TINY.vae_groups,
    "text_encoder.num_attention_heads": TINY.text_heads,
}


def randomize_convolutions(model: Model, seed: int) -> Model:
    """`randomize`, with convolutions that nearly keep their inputs' scale: no branch drowns in the main path."""
    with torch.no_grad():
        for parameter in randomize(model, seed).parameters():
            if parameter.dim() == 4:
                parameter.mul_(1.15 * parameter[0].numel() ** -0.5 / parameter.std())
    return model


def diffusers_unet(sizes: DiffusionSizes) -> UNet2DConditionModel:
    """diffusers' UNet, with the structure that is its default."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=sizes.latent,
        out_channels=sizes.latent,
        block_out_channels=sizes.unet,
        norm_num_groups=sizes.unet_groups,
        cross_attention_dim=sizes.text,
        attention_head_dim=sizes.heads,
    )


def diffusers_vae(sizes: DiffusionSizes) -> AutoencoderKL:
    """diffusers' autoencoder."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=sizes.vae,
        norm_num_groups=sizes.vae_groups,
        latent_channels=sizes.latent,
        layers_per_block=2,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    )


def clip_text_model(sizes: DiffusionSizes) -> CLIPTextModel:
    """transformers' text encoder of CLIP."""
    from transformers import CLIPTextConfig, CLIPTextModel

    last = sizes.vocab - 1
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=sizes.vocab,
            hidden_size=sizes.text,
            intermediate_size=sizes.text_inner,
            num_hidden_layers=sizes.text_layers,
            num_attention_heads=sizes.text_heads,
            max_position_embeddings=sizes.text_length,
            bos_token_id=last - 1,
            eos_token_id=last,
            attn_implementation="eager",
        )
    )


class DiffusersModels(nn.Module):
    """The three components as diffusers has them, of the tiny sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.unet: Any = diffusers_unet(TINY)
        self.vae: Any = diffusers_vae(TINY)
        self.text_encoder: Any = clip_text_model(TINY)

    @classmethod
    def from_pretrained(cls, directory: Path) -> Self:
        """Load the weights of a directory strictly."""
        models = cls()
        models.unet.load_state_dict(load_file(directory / UNET_FILE))
        models.vae.load_state_dict(load_file(directory / VAE_FILE))
        text = load_file(directory / TEXT_FILE)
        models.text_encoder.load_state_dict({key.removeprefix("text_model."): text[key] for key in text})
        return models.eval()

    def save_pretrained(self, directory: Path) -> None:
        """Save the components, the text encoder under the names that every release of transformers reads."""
        for name in ("unet", "vae", "text_encoder"):
            getattr(self, name).save_pretrained(directory / name)
        text = {f"text_model.{key}": value for key, value in self.text_encoder.state_dict().items()}
        save_file(text, directory / TEXT_FILE, {"format": "pt"})

    def embed(self, tokens: Tensor) -> Tensor:
        """Features [batch, tokens, text] of tokens [batch, tokens]."""
        text: Tensor = self.text_encoder(tokens).last_hidden_state
        return text

    def denoise(self, latents: Tensor, step: Tensor, text: Tensor) -> Tensor:
        """The noise [batch, latent, height, width] in latents, at a step [batch], for a text [batch, tokens, text]."""
        noise: Tensor = self.unet(latents, step, text).sample
        return noise

    def encode(self, image: Tensor) -> Tensor:
        """Mean and log variance [batch, 2 * latent, height / 8, width / 8] of the code of an image."""
        moments: Tensor = self.vae.encode(image).latent_dist.parameters
        return moments

    def decode(self, latents: Tensor) -> Tensor:
        """The image [batch, 3, 8 * height, 8 * width] of a code."""
        image: Tensor = self.vae.decode(latents).sample
        return image


def tiny_diffusers(seed: int = 0) -> DiffusersModels:
    """Small components with random weights."""
    return randomize_convolutions(DiffusersModels(), seed)


def of_diffusion(sizes: DiffusionSizes) -> Answers:
    """Features of two texts, the noise in latents for the first of them, an image's code and a code's image."""
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(0, sizes.vocab, (2, sizes.text_length), generator=generator)
    latents, step = torch.randn(1, sizes.latent, 8, 16, generator=generator), torch.tensor([911.0])
    image, code = (torch.randn(1, *shape, generator=generator) for shape in ((3, 16, 24), (sizes.latent, 2, 3)))

    @torch.no_grad()
    def ask(model: Any) -> list[Tensor]:
        text = model.embed(tokens)
        answers = [text, model.denoise(latents, step, text[:1]), model.encode(image), model.decode(code)]
        assert all(answer.std() > 0.3 for answer in answers), "answers this small would hide an error"
        return answers

    return ask
