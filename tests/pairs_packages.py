"""The pairs of the packages that train Llama."""

from __future__ import annotations

from tests.models_llama import (
    tiny_llama,
)
from tests.models_packages import tiny_megatron, tiny_olmo_core, tiny_titan, tiny_tune
from tests.pair import Pair

PACKAGES = (
    Pair(
        "llama",
        "llama_torchtune_to_hf",
        tiny_tune,
        "tests.models_packages:TuneLlama",
        "transformers:LlamaForCausalLM",
        253,
    ),
    Pair(
        "llama",
        "llama_torchtune_to_hf",
        tiny_llama,
        "transformers:LlamaForCausalLM",
        "tests.models_packages:TuneLlama",
        253,
        reverse=True,
    ),
    Pair(
        "llama",
        "llama_torchtitan_to_hf",
        tiny_titan,
        "tests.models_packages:TitanLlama",
        "transformers:LlamaForCausalLM",
        253,
    ),
    Pair(
        "llama",
        "llama_torchtitan_to_hf",
        tiny_llama,
        "transformers:LlamaForCausalLM",
        "tests.models_packages:TitanLlama",
        253,
        reverse=True,
    ),
    Pair(
        "llama",
        "llama_olmo_core_to_hf",
        tiny_olmo_core,
        "tests.models_packages:OlmoLlama",
        "transformers:LlamaForCausalLM",
        253,
    ),
    Pair(
        "llama",
        "llama_olmo_core_to_hf",
        tiny_llama,
        "transformers:LlamaForCausalLM",
        "tests.models_packages:OlmoLlama",
        253,
        reverse=True,
    ),
    Pair(
        "llama",
        "llama_megatron_core_to_hf",
        tiny_megatron,
        "tests.models_packages:MegatronLlama",
        "transformers:LlamaForCausalLM",
        253,
    ),
    Pair(
        "llama",
        "llama_megatron_core_to_hf",
        tiny_llama,
        "transformers:LlamaForCausalLM",
        "tests.models_packages:MegatronLlama",
        253,
        reverse=True,
        set_config={"transformer_impl": "local"},
    ),
)
