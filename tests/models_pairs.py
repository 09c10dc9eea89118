"""The pairs of models that shipped specs join, for tests that run over all of them.

Each source model has random weights that can't hide an error; save it with `save_pretrained`, convert the directory
with the spec, and load the result with the target's class. Both directions work: the target's class can save itself,
too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from tests.models import tiny_mixformer, tiny_phi
from tests.models_gemma import tiny_gemma_pytorch
from tests.models_gpt2 import tiny_gpt2
from tests.models_llama import tiny_consolidated, tiny_llama, tiny_meta_llama, tiny_mixtral
from tests.models_llama_style import tiny_falcon, tiny_neox
from tests.models_opt import tiny_metaseq


@dataclass(frozen=True, slots=True)
class Pair:
    """A spec, and the models on its two sides.

    Attributes:
        family: the architecture.
        spec: the shipped spec's name.
        source: makes the source model from a seed.
        source_class: import path of the source's class; transformers' classes give an output with `.logits`, the
            plain ones give the logits.
        target_class: likewise.
        vocab: tokens are below this.
        reverse: whether `source` stands on the spec's target side, so that the conversion is the reverse one.
    """

    family: str
    spec: str
    source: Callable[[int], Any]
    source_class: str
    target_class: str
    vocab: int
    reverse: bool = False

    def build(self, seed: int = 0) -> nn.Module:
        """The source model."""
        model = self.source(seed)
        assert isinstance(model, nn.Module)
        return model


PAIRS = (
    Pair("phi", "phi2_to_tenny", tiny_phi, "transformers:PhiForCausalLM", "mappings.tenny:Tenny", 251),
    Pair(
        "phi",
        "phi2_mixformer_to_phi2",
        tiny_mixformer,
        "tests.models:MixFormer",
        "transformers:PhiForCausalLM",
        251,
    ),
    Pair(
        "llama",
        "llama_meta_to_hf",
        tiny_llama,
        "transformers:LlamaForCausalLM",
        "tests.models_llama:MetaLlama",
        253,
        reverse=True,
    ),
    Pair(
        "llama",
        "llama_meta_to_hf",
        tiny_meta_llama,
        "tests.models_llama:MetaLlama",
        "transformers:LlamaForCausalLM",
        253,
    ),
    Pair(
        "mistral",
        "mistral_consolidated_to_hf",
        tiny_consolidated,
        "tests.models_llama:ConsolidatedMistral",
        "transformers:MistralForCausalLM",
        257,
    ),
    Pair(
        "mixtral",
        "mixtral_consolidated_to_hf",
        lambda seed: tiny_consolidated(seed, experts=True),
        "tests.models_llama:ConsolidatedMistral",
        "transformers:MixtralForCausalLM",
        257,
    ),
    Pair(
        "mixtral",
        "mixtral_experts_to_fused",
        tiny_mixtral,
        "transformers:MixtralForCausalLM",
        "transformers:MixtralForCausalLM",
        253,
    ),
    Pair(
        "gpt2",
        "gpt2_to_nanogpt",
        tiny_gpt2,
        "transformers:GPT2LMHeadModel",
        "tests.models_gpt2:NanoGPT",
        251,
    ),
    Pair(
        "gemma",
        "gemma_pytorch_to_hf",
        tiny_gemma_pytorch,
        "tests.models_gemma:GemmaPyTorch",
        "transformers:GemmaForCausalLM",
        257,
    ),
    Pair("opt", "opt_metaseq_to_hf", tiny_metaseq, "tests.models_opt:Metaseq", "transformers:OPTForCausalLM", 257),
    Pair(
        "gpt_neox",
        "gpt_neox_to_llama_style",
        tiny_neox,
        "transformers:GPTNeoXForCausalLM",
        "tests.models_llama_style:LlamaStyle",
        251,
    ),
    Pair(
        "falcon",
        "falcon_to_llama_style",
        lambda seed: tiny_falcon(seed, new_decoder_architecture=True, num_kv_heads=2),
        "transformers:FalconForCausalLM",
        "tests.models_llama_style:LlamaStyle",
        253,
    ),
)
