"""The correct conversions that mutants are made from: small real models of several architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import converters
from converters.spec import Spec
from tests.models import tiny_phi
from tests.models_gpt2 import tiny_gpt2
from tests.models_llama import tiny_consolidated, tiny_meta_llama
from tests.models_packages import tiny_megatron, tiny_olmo_core, tiny_titan, tiny_tune
from tests.mutations.files import Checkpoint
from tests.mutations.quantized import tiny_quantized

Role = tuple[str, tuple[int, int] | None]
"""A key with `{i}` for the layer and `{e}` for the expert, and the rows of it, where it is but some."""


@dataclass(frozen=True, slots=True)
class Case:
    """One architecture, and the spec that converts it.

    Attributes:
        make: a model with weights drawn from a seed.
        roles: what each part of the *target* is called: `q`, `k`, `v`, `o`, `up`, `down`, `gate`, `norm_attention`,
            `norm_mlp`, `norm_final`, `embed`, `head`; with `_bias` for biases.
        shard_size: bytes of one output file, small enough to give several.
        has_blocks: whether the source's blocks take [batch, length, features] as the target's do, and can be compared.
    """

    name: str
    spec: str
    make: Callable[[int], nn.Module]
    roles: Mapping[str, Role]
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    source_model: str | None = None
    target_model: str | None = None
    experts: int = 0
    tied: bool = False
    shard_size: int = 60_000
    has_blocks: bool = True

    def load_spec(self) -> Spec:
        """The spec."""
        return converters.load_spec(self.spec)

    def write_source(self, directory: Path, seed: int, dtype: torch.dtype = torch.float32) -> Path:
        """Save a model with its weights in `dtype`."""
        model: Any = self.make(seed).to(dtype)
        model.save_pretrained(directory, max_shard_size="60KB")
        return directory

    def write(self, directory: Path, seed: int, dtype: torch.dtype = torch.float32, cast: str | None = None) -> Path:
        """Save a model as `directory/source`, and convert it to `directory/target`."""
        source = self.write_source(directory / "source", seed, dtype)
        converters.convert(self.load_spec(), source, directory / "target", dtype=cast, max_shard_size=self.shard_size)
        return directory / "target"

    def view(self, checkpoint: Checkpoint, role: str, layer: int = 0, expert: int = 0) -> Tensor:
        """A part of the target, to be changed in place."""
        template, rows = self.roles[role]
        tensor = checkpoint.tensors[template.format(i=layer, e=expert)]
        return tensor if rows is None else tensor[rows[0] : rows[1]]


def _tenny(kv_heads: int) -> dict[str, Role]:
    layer = "transformer_encoder.layers.{i}."
    rows = {"q": (0, 48), "k": (48, 48 + 8 * kv_heads), "v": (48 + 8 * kv_heads, 48 + 16 * kv_heads)}
    roles: dict[str, Role] = {}
    for name, some in rows.items():
        roles[name] = (layer + "self_attn.multihead_attn.in_proj_weight", some)
        roles[f"{name}_bias"] = (layer + "self_attn.multihead_attn.in_proj_bias", some)
    modules = {
        "o": layer + "self_attn.multihead_attn.out_proj",
        "up": layer + "ff.linear1",
        "down": layer + "ff.linear2",
        "norm_attention": layer + "norm1",
        "norm_mlp": layer + "norm2",
        "norm_final": "transformer_encoder.norm",
        "head": "decoder",
    }
    for name, module in modules.items():
        roles |= {name: (f"{module}.weight", None), f"{name}_bias": (f"{module}.bias", None)}
    return {**roles, "embed": ("encoder.weight", None), "positions": ("pos_encoder.pe", None)}


_HF = "model.layers.{i}."
_LLAMA: dict[str, Role] = {
    "q": (_HF + "self_attn.q_proj.weight", None),
    "k": (_HF + "self_attn.k_proj.weight", None),
    "v": (_HF + "self_attn.v_proj.weight", None),
    "o": (_HF + "self_attn.o_proj.weight", None),
    "norm_attention": (_HF + "input_layernorm.weight", None),
    "norm_mlp": (_HF + "post_attention_layernorm.weight", None),
    "norm_final": ("model.norm.weight", None),
    "embed": ("model.embed_tokens.weight", None),
    "head": ("lm_head.weight", None),
}
_DENSE: dict[str, Role] = {
    "gate": (_HF + "mlp.gate_proj.weight", None),
    "up": (_HF + "mlp.up_proj.weight", None),
    "down": (_HF + "mlp.down_proj.weight", None),
}
_EXPERTS: dict[str, Role] = {
    "router": (_HF + "block_sparse_moe.gate.weight", None),
    "gate": (_HF + "block_sparse_moe.experts.{e}.w1.weight", None),
    "up": (_HF + "block_sparse_moe.experts.{e}.w3.weight", None),
    "down": (_HF + "block_sparse_moe.experts.{e}.w2.weight", None),
}

PHI = Case("Phi → Tenny", "phi2_to_tenny", tiny_phi, _tenny(6), 3, 6, 6, 8, target_model="mappings.tenny:Tenny")
PHI_GROUPED = Case(
    "Phi, grouped → Tenny", "phi2_to_tenny", lambda seed: tiny_phi(seed, num_key_value_heads=2), _tenny(2), 3, 6, 2, 8,
    target_model="mappings.tenny:Tenny",
)  # fmt: skip
PHI_TIED = Case(
    "Phi, tied → Tenny", "phi2_to_tenny", lambda seed: tiny_phi(seed, tie_word_embeddings=True), _tenny(6), 3, 6, 6, 8,
    target_model="mappings.tenny:Tenny", tied=True,
)  # fmt: skip
LLAMA = Case(
    "Llama, Meta → HF", "llama_meta_to_hf", lambda seed: tiny_meta_llama(seed, n_heads=6, n_kv_heads=3),
    {**_LLAMA, **_DENSE}, 3, 6, 3, 8,
    source_model="tests.models_llama:MetaLlama",
)  # fmt: skip


def _of_package(
    package: str,
    spec: str,
    make: Callable[[int], nn.Module],
    source_model: str,
    head_dim: int = 8,
    *,
    has_blocks: bool = True,
) -> Case:
    return Case(
        f"Llama, {package} → HF", spec, make, {**_LLAMA, **_DENSE}, 3, 6, 2, head_dim,
        source_model=f"tests.models_packages:{source_model}", has_blocks=has_blocks,
    )  # fmt: skip


PACKAGES = (
    _of_package("torchtune", "llama_torchtune_to_hf", tiny_tune, "TuneLlama"),
    _of_package("torchtitan", "llama_torchtitan_to_hf", tiny_titan, "TitanLlama"),
    _of_package("OLMo-core", "llama_olmo_core_to_hf", tiny_olmo_core, "OlmoLlama"),
    # Its blocks take [length, batch, features].
    _of_package(
        "Megatron-Core", "llama_megatron_core_to_hf", tiny_megatron, "MegatronLlama", head_dim=12, has_blocks=False
    ),
)
MIXTRAL = Case(
    "Mixtral, Mistral → HF", "mixtral_consolidated_to_hf", lambda seed: tiny_consolidated(seed, experts=True),
    {**_LLAMA, **_EXPERTS}, 3, 6, 2, 12, source_model="tests.models_llama:ConsolidatedMistral", experts=5,
    shard_size=90_000,
)  # fmt: skip


def _nano(width: int) -> dict[str, Role]:
    layer = "transformer.h.{i}."
    rows = {"q": (0, width), "k": (width, 2 * width), "v": (2 * width, 3 * width)}
    modules = {
        "o": layer + "attn.c_proj",
        "up": layer + "mlp.c_fc",
        "down": layer + "mlp.c_proj",
        "norm_attention": layer + "ln_1",
        "norm_mlp": layer + "ln_2",
        "norm_final": "transformer.ln_f",
    }
    roles: dict[str, Role] = {}
    for part in ("weight", "bias"):
        suffix = "" if part == "weight" else "_bias"
        roles |= {name + suffix: (f"{layer}attn.c_attn.{part}", some) for name, some in rows.items()}
        roles |= {name + suffix: (f"{module}.{part}", None) for name, module in modules.items()}
    return {
        **roles,
        "embed": ("transformer.wte.weight", None),
        "head": ("lm_head.weight", None),
        "positions": ("transformer.wpe.weight", None),
    }


GPT2 = Case(
    "GPT-2 → nanoGPT", "gpt2_to_nanogpt", tiny_gpt2, _nano(48), 3, 6, 6, 8,
    target_model="tests.models_gpt2:NanoGPT", tied=True,
)  # fmt: skip

_META = "layers.{i}.attention."
QUANTIZED = Case(
    "Llama, 8-bit q and k", str(Path(__file__).with_name("quantized.yaml")), tiny_quantized,
    {
        "q": (_META + "wq.weight", None),
        "k": (_META + "wk.weight", None),
        "q_scale": (_META + "wq.scale", None),
        "k_scale": (_META + "wk.scale", None),
        "o": (_META + "wo.weight", None),
    },
    3, 6, 3, 8, source_model="tests.mutations.quantized:QuantizedPairs",
    target_model="tests.mutations.quantized:QuantizedHalves",
)  # fmt: skip

CASES: tuple[Case, ...] = (PHI, PHI_GROUPED, PHI_TIED, LLAMA, *PACKAGES, MIXTRAL, GPT2, QUANTIZED)
