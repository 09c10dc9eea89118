"""Small LitGPT models, and LitGPT's own files and conversions.

LitGPT takes seconds to import and isn't installed everywhere, so this module imports it only when it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from tests.models import randomize

OLDEST = "0.5.5"
"""The first version with the layout that the specs write."""

WEIGHTS, CONFIG = "lit_model.pth", "model_config.yaml"

_SIZES: dict[str, Any] = {
    "block_size": 512,
    "n_layer": 3,
    "n_embd": 48,
    "n_head": 6,
    "intermediate_size": 80,
    "vocab_size": 241,
    "padded_vocab_size": 249,
}
_ROTARY: dict[str, Any] = {"rotary_percentage": 1.0, "bias": False}
_LLAMA: dict[str, Any] = {
    **_ROTARY,
    "parallel_residual": False,
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP",
    "n_query_groups": 2,
}
KINDS: dict[str, dict[str, Any]] = {
    "phi": {
        "name": "phi-2",
        "rotary_percentage": 0.5,
        "shared_attention_norm": True,
        "lm_head_bias": True,
        "gelu_approximate": "tanh",
        "n_query_groups": 3,
    },
    "gpt_neox": {"name": "pythia-14m", "rotary_percentage": 0.5, "rope_base": 5000},
    "falcon-7b": {"name": "falcon-7b", **_ROTARY, "shared_attention_norm": True, "n_query_groups": 1},
    "falcon-40b": {"name": "falcon-40b", **_ROTARY, "n_query_groups": 2},
    "llama": {"name": "Llama-2-7b-hf", **_LLAMA, "head_size": 12},
    "mistral": {"name": "Mistral-7B-v0.1", **_LLAMA, "head_size": 12, "sliding_window_size": 24},
}
"""What LitGPT's config of each architecture says beside the sizes, at sizes that tell every axis from every other."""


SPEC = {
    "phi": "phi2_to_litgpt",
    "gpt_neox": "gpt_neox_to_litgpt",
    "falcon-7b": "falcon_to_litgpt",
    "falcon-40b": "falcon_to_litgpt",
    "llama": "llama_to_litgpt",
    "mistral": "mistral_to_litgpt",
}
"""The spec that joins each to Hugging Face's layout."""


def litgpt(module: str) -> Any:
    """A module of LitGPT; a test that needs it is skipped where it can't be imported."""
    reason = f"litgpt>={OLDEST} isn't installed; it is one of the oracles: pip install -e .[oracles]"
    return pytest.importorskip(f"litgpt.{module}", reason=reason, exc_type=ImportError)


class LitGPT(nn.Module):
    """LitGPT's own model, with a mask for padding.

    Args:
        config: keyword arguments of LitGPT's `Config`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        gpt = litgpt("model").GPT(litgpt("config").Config(**config))
        # Its modules are this one's, so that keys have LitGPT's names; in a tuple, it is no module here itself.
        self.lm_head, self.transformer = gpt.lm_head, gpt.transformer
        self.inner = (gpt,)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Load LitGPT's two files, as its own scripts do; every key must find its place."""
        model = cls(asdict(litgpt("config").Config.from_file(Path(directory) / CONFIG)))
        state = torch.load(Path(directory) / WEIGHTS, weights_only=True)
        model.gpt.load_state_dict(state, strict=True, assign=True)
        return model.eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write LitGPT's two files."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        litgpt("utils").save_config(self.gpt.config, directory)
        torch.save(self.gpt.state_dict(), directory / WEIGHTS)

    @property
    def gpt(self) -> Any:
        """LitGPT's `GPT`."""
        return self.inner[0]

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits [batch, length, vocab] for token ids [batch, length]; the mask is zero at padding.

        LitGPT has no mask. Rotary positions are relative, so a prompt without its padding gives the same logits.
        """
        if attention_mask is None:
            return self.logits(tokens)
        found = torch.zeros(*tokens.shape, self.gpt.config.padded_vocab_size)
        for row, (prompt, mask) in enumerate(zip(tokens, attention_mask.bool(), strict=True)):
            found[row, mask] = self.logits(prompt[mask][None])[0]
        return found

    def logits(self, tokens: Tensor) -> Tensor:
        """LitGPT's own forward."""
        logits = self.gpt(tokens)
        assert isinstance(logits, Tensor)
        return logits


def tiny_litgpt(kind: str, seed: int = 0, **overrides: Any) -> LitGPT:
    """A small LitGPT of one of `KINDS`, in float32; `overrides` go to its `Config`."""
    return randomize(LitGPT({**_SIZES, **KINDS[kind], **overrides}), seed)


def save_interleaved(model: LitGPT, directory: Path) -> None:
    """Write LitGPT's two files as versions before `OLDEST` did, which the newer ones still load."""
    model.save_pretrained(directory)
    interleave = litgpt("scripts.convert_lit_checkpoint").qkv_reassemble
    state = {
        key.replace(".attn.qkv.", ".attn.attn."): interleave(tensor, model.gpt.config) if ".qkv." in key else tensor
        for key, tensor in model.gpt.state_dict().items()
    }
    torch.save(state, directory / WEIGHTS)


def litgpt_from_hf(kind: str, config: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What LitGPT's own conversion makes of a Hugging Face checkpoint.

    Args:
        kind: one of `KINDS`.
        config: LitGPT's `Config`; its name decides how the weights are read.
        state: the checkpoint's tensors.
    """
    scripts = litgpt("scripts.convert_hf_checkpoint")
    found: dict[str, Tensor] = {}
    source = dict(state)
    if kind == "phi":
        scripts.copy_weights_phi(config, {}, found, source)
    elif kind == "gpt_neox":
        scripts.copy_weights_gpt_neox(config, found, source)
    elif kind.startswith("falcon"):
        scripts.copy_weights_falcon(config, found, source)
    else:
        scripts.copy_weights_hf_llama(config, {}, found, source)
    return found


def hf_from_litgpt(kind: str, config: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What LitGPT's own way back makes of its checkpoint; arguments as in `litgpt_from_hf`."""
    scripts = litgpt("scripts.convert_lit_checkpoint")
    copies = {
        "phi": scripts.copy_weights_phi,
        "gpt_neox": scripts.copy_weights_gpt_neox,
        "falcon-7b": scripts.copy_weights_falcon,
        "falcon-40b": scripts.copy_weights_falcon,
    }
    found: dict[str, Tensor] = {}
    copies.get(kind, scripts.copy_weights_llama)(config, found, dict(state))
    return found
