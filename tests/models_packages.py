"""Small Llamas that training packages compute themselves: torchtune, torchtitan, OLMo-core, Megatron-Core."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from tests.models import randomize
from tests.models_base import PlainModel, may_attend
from tests.oracles import oracle

TUNE: dict[str, Any] = {
    "vocab_size": 253,
    "num_layers": 3,
    "num_heads": 6,
    "num_kv_heads": 2,
    "embed_dim": 48,
    "max_seq_len": 1024,
    "rope_base": 5000,
    "intermediate_dim": 88,
    "norm_eps": 1e-5,
}
TITAN: dict[str, Any] = {
    "dim": 48,
    "n_layers": 3,
    "n_heads": 6,
    "n_kv_heads": 2,
    "vocab_size": 253,
    "multiple_of": 40,
    "ffn_dim_multiplier": 1.1,
    "norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "max_seq_len": 1024,
    "rope_scaling_args": {
        "scaling_factor": 1.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
MEGATRON: dict[str, Any] = {
    "num_layers": 3,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "num_query_groups": 2,
    "kv_channels": 12,
    "ffn_hidden_size": 88,
    "normalization": "RMSNorm",
    "layernorm_epsilon": 1e-5,
    "gated_linear_unit": True,
    "activation_func": "silu",
    "add_bias_linear": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "transformer_impl": "local",
    "vocab_size": 253,
    "max_sequence_length": 1024,
    "position_embedding_type": "rope",
    "rotary_base": 5000,
    "share_embeddings_and_output_weights": False,
}
_GPT_MODEL = (
    "vocab_size",
    "max_sequence_length",
    "position_embedding_type",
    "rotary_base",
    "rotary_percent",
    "rope_scaling",
    "rope_scaling_factor",
    "seq_len_interpolation_factor",
    "share_embeddings_and_output_weights",
)


class PackageModel(PlainModel):
    """A package's own model, under its own names, built from a config file."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what isn't installed, or is deprecated, in the package itself
            self._package = [self.build()]  # in a list, so that its modules are registered once, below
        for name, child in self._package[0].named_children():
            self.add_module(name, child)

    @abstractmethod
    def build(self) -> Any:
        """The package's model from `self.config`, in float32."""

    def compute(self, tokens: Tensor) -> Tensor:
        """Its logits [batch, length, vocab] for tokens [batch, length] without padding."""
        logits: Tensor = self._package[0](tokens)
        return logits

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits [batch, length, vocab]; those of padding are zero, since not every package takes such a mask.

        Rotary positions are relative, so that padding before a text may as well not be there.
        """
        if attention_mask is None:
            return self.compute(input_ids)
        logits = torch.zeros(*input_ids.shape, self.config_vocabulary())
        for tokens, mask, row in zip(input_ids, attention_mask.bool(), logits, strict=True):
            row[mask] = self.compute(tokens[mask][None])[0]
        return logits

    def config_vocabulary(self) -> int:
        """How many tokens there are."""
        size: int = self.config["vocab_size"]
        return size


class TuneLlama(PackageModel):
    """torchtune's Llama; the config is what its builders take, `scale_factor` and tying being Llama 3.2's."""

    def build(self) -> Any:
        names = (*TUNE, "scale_factor", "tie_word_embeddings")
        config = {key: self.config[key] for key in names if self.config.get(key) is not None}
        if "scale_factor" in config or config.get("tie_word_embeddings"):
            builders = oracle("torchtune.models.llama3_2._component_builders")
            # A factor of one scales nothing.
            return builders.llama3_2(**{"scale_factor": 1, "tie_word_embeddings": False, **config})
        config.pop("tie_word_embeddings", None)
        return oracle("torchtune.models.llama3._component_builders").llama3(**config)


class TitanLlama(PackageModel):
    """torchtitan's Llama 3; the config is what TransformerModelArgs take."""

    def build(self) -> Any:
        package = oracle("torchtitan.models.llama3.model.model")
        return package.Transformer(self.arguments())

    def arguments(self) -> Any:
        args = oracle("torchtitan.models.llama3.model.args")
        config = {key: self.config[key] for key in TITAN if self.config.get(key) is not None}
        scaling = args.RoPEScalingArgs(**config.pop("rope_scaling_args", {}))
        return args.TransformerModelArgs(**config, rope_scaling_args=scaling)


class OlmoLlama(PackageModel):
    """OLMo-core's Llama; the config is a trainer's config.json, of which `model` says all."""

    def build(self) -> Any:
        package = oracle("olmo_core.nn.transformer")
        return package.TransformerConfig.from_dict(self.config["model"]).build(init_device="cpu")

    def config_vocabulary(self) -> int:
        size: int = self.config["model"]["vocab_size"]
        return size


class MegatronLlama(PackageModel):
    """Megatron-Core's GPTModel with its own layers, on one rank; the config is TransformerConfig's and GPTModel's."""

    def build(self) -> Any:
        from megatron.core import parallel_state
        from megatron.core.models.gpt import GPTModel
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
        from megatron.core.tensor_parallel.random import initialize_rng_tracker
        from megatron.core.transformer.transformer_config import TransformerConfig

        if not parallel_state.is_initialized():
            store = torch.distributed.HashStore()
            torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
            parallel_state.initialize_model_parallel()
            initialize_rng_tracker(inference_rng_tracker=True)
        config = {key: value for key, value in self.config.items() if key in {*MEGATRON, *_GPT_MODEL}}
        model = {key: config.pop(key) for key in _GPT_MODEL if key in config}
        config |= {"activation_func": getattr(nn.functional, config["activation_func"]), "transformer_impl": "local"}
        # Fused kernels need a GPU.
        fusions = ("apply_rope_fusion", "bias_activation_fusion", "bias_dropout_fusion", "gradient_accumulation_fusion",
                   "masked_softmax_fusion", "persist_layer_norm")  # fmt: skip
        transformer = TransformerConfig(use_cpu_initialization=True, **config, **dict.fromkeys(fusions, False))
        return GPTModel(transformer, get_gpt_layer_local_spec(normalization="RMSNorm"), **model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits [batch, length, vocab]; it says of its mask what a query may not see."""
        hidden = ~may_attend(input_ids.shape[1], attention_mask)
        positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        # It would move its rotary frequencies to a GPU.
        with mock.patch("torch.cuda.current_device", return_value=torch.device("cpu")), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logits: Tensor = self._package[0](input_ids, positions, hidden)
        return logits

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Under the names of the implementation that the config names, without the `_extra_state` that is no tensor."""
        state = super().state_dict(*args, **kwargs)
        return {self._name(key): value for key, value in state.items() if not key.endswith("_extra_state")}

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As above."""
        local = {self._name(key): key for key in super().state_dict()}
        extra = {key: None for key in super().state_dict() if key.endswith("_extra_state")}
        state = {local.get(key, key): value for key, value in state_dict.items()}
        return super().load_state_dict({**extra, **state}, *args, **kwargs)

    def _name(self, key: str) -> str:
        if self.config["transformer_impl"] == "transformer_engine":
            for ours, theirs in transformer_engine_names().items():
                key = key.replace(ours, theirs)
        return key


def transformer_engine_names() -> dict[str, str]:
    """Parts of local keys and what they are with layers of Transformer Engine: the package's own table."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    names: dict[str, str] = get_gpt_layer_local_spec(normalization="RMSNorm").submodules.sharded_state_dict_keys_map
    return names


def tiny_tune(seed: int = 0, **overrides: Any) -> TuneLlama:
    """A small Llama of torchtune; `overrides` go to its builder, None leaving an argument out."""
    return randomize(TuneLlama(_merged(TUNE, overrides)), seed)


def tiny_titan(seed: int = 0, **overrides: Any) -> TitanLlama:
    """A small Llama of torchtitan; `overrides` go to its model args, None leaving an argument out."""
    return randomize(TitanLlama(_merged(TITAN, overrides)), seed)


def tiny_megatron(seed: int = 0, **overrides: Any) -> MegatronLlama:
    """A small Llama of Megatron-Core with heads wider than its hidden size gives; `overrides` go to its config."""
    return randomize(MegatronLlama(_merged(MEGATRON, overrides)), seed)


def tiny_olmo_core(seed: int = 0, **overrides: Any) -> OlmoLlama:
    """A small Llama of OLMo-core; `overrides` go to `TransformerConfig.llama_like`."""
    config = oracle("olmo_core.nn.transformer").TransformerConfig
    attention = oracle("olmo_core.nn.attention").AttentionBackendName.torch
    sizes = {"d_model": 48, "vocab_size": 253, "n_layers": 3, "n_heads": 6, "n_kv_heads": 2, "rope_theta": 5000,
             "hidden_size_multiple_of": 8, "attn_backend": attention}  # fmt: skip
    tied = overrides.pop("tie_word_embeddings", False)
    model = config.llama_like(**{**sizes, **overrides}, tie_word_embeddings=tied)
    return randomize(OlmoLlama({"model": model.as_config_dict(), "run_name": "tiny"}), seed)


def _merged(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**config, **overrides}.items() if value is not None}
