"""The pairs of models that shipped specs join, for tests that run over all of them.

Each source model has random weights that can't hide an error; save it with `save_pretrained`, convert the directory
with the spec, and load the result with the target's class. Both directions work: the target's class can save itself,
too.
"""

from __future__ import annotations

from tests.models import tiny_mixformer, tiny_phi, tiny_tenny
from tests.models_base import write_checkpoint
from tests.models_gemma import tiny_gemma, tiny_gemma_pytorch
from tests.models_gpt2 import tiny_gpt2, tiny_nano_gpt
from tests.models_llama import (
    tiny_consolidated,
    tiny_llama,
    tiny_meta_llama,
    tiny_mistral,
    tiny_mixtral,
)
from tests.models_llama_style import tiny_falcon, tiny_llama_style, tiny_neox
from tests.models_opt import tiny_metaseq, tiny_opt
from tests.pair import Pair
from tests.pairs_encoders import ENCODERS
from tests.pairs_litgpt import LITGPT
from tests.pairs_packages import PACKAGES

__all__ = ["PAIRS", "Pair"]

PAIRS = (
    *ENCODERS,
    *LITGPT,
    *PACKAGES,
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
    Pair(
        "phi",
        "phi2_mixformer_to_phi2",
        tiny_phi,
        "transformers:PhiForCausalLM",
        "tests.models:MixFormer",
        251,
        reverse=True,
    ),
    Pair(
        "mistral",
        "mistral_consolidated_to_hf",
        tiny_mistral,
        "transformers:MistralForCausalLM",
        "tests.models_llama:ConsolidatedMistral",
        253,
        reverse=True,
    ),
    Pair(
        "mixtral",
        "mixtral_consolidated_to_hf",
        tiny_mixtral,
        "transformers:MixtralForCausalLM",
        "tests.models_llama:ConsolidatedMistral",
        253,
        reverse=True,
    ),
    Pair(
        "gpt2",
        "gpt2_to_nanogpt",
        tiny_nano_gpt,
        "tests.models_gpt2:NanoGPT",
        "transformers:GPT2LMHeadModel",
        259,
        reverse=True,
    ),
    Pair(
        "gemma",
        "gemma_pytorch_to_hf",
        tiny_gemma,
        "transformers:GemmaForCausalLM",
        "tests.models_gemma:GemmaPyTorch",
        257,
        reverse=True,
    ),
    Pair(
        "opt",
        "opt_metaseq_to_hf",
        tiny_opt,
        "transformers:OPTForCausalLM",
        "tests.models_opt:Metaseq",
        251,
        reverse=True,
        without_effect=".k_proj.bias",
    ),
    Pair(
        "gpt_neox",
        "gpt_neox_to_llama_style",
        tiny_llama_style,
        "tests.models_llama_style:LlamaStyle",
        "transformers:GPTNeoXForCausalLM",
        257,
        reverse=True,
    ),
    Pair(
        "falcon",
        "falcon_to_llama_style",
        lambda seed: tiny_llama_style(
            seed,
            num_attention_heads=6,
            num_key_value_heads=2,
            num_kv_heads=2,
            linear_bias=False,
            multi_query=True,
            new_decoder_architecture=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        ),
        "tests.models_llama_style:LlamaStyle",
        "transformers:FalconForCausalLM",
        257,
        reverse=True,
    ),
    Pair(
        "mixtral",
        "mixtral_experts_to_fused",
        tiny_mixtral,
        "transformers:MixtralForCausalLM",
        "transformers:MixtralForCausalLM",
        253,
        reverse=True,
        # What transformers has in memory; it would save the other layout.
        save=lambda model, directory: write_checkpoint(directory, model.config.to_dict(), model.state_dict()),
    ),
    Pair(
        "phi",
        "phi2_to_tenny",
        tiny_tenny,
        "mappings.tenny:Tenny",
        "transformers:PhiForCausalLM",
        251,
        reverse=True,
        save=lambda model, directory: write_checkpoint(directory, model.config.to_dict(), model.state_dict()),
    ),
)
