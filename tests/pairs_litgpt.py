"""The pairs of LitGPT."""

from __future__ import annotations

from tests.models import tiny_mixformer, tiny_phi
from tests.models_litgpt import save_interleaved, tiny_litgpt
from tests.models_llama import (
    tiny_llama,
    tiny_mistral,
)
from tests.models_llama_style import tiny_falcon, tiny_neox
from tests.pair import Pair

LITGPT = (
    Pair(
        "phi",
        "phi2_to_litgpt",
        lambda seed: tiny_phi(seed, num_key_value_heads=2),
        "transformers:PhiForCausalLM",
        "tests.models_litgpt:LitGPT",
        251,
    ),
    Pair(
        "phi",
        "phi2_to_litgpt",
        lambda seed: tiny_litgpt("phi", seed),
        "tests.models_litgpt:LitGPT",
        "transformers:PhiForCausalLM",
        249,
        reverse=True,
    ),
    Pair(
        "gpt_neox",
        "gpt_neox_to_litgpt",
        tiny_neox,
        "transformers:GPTNeoXForCausalLM",
        "tests.models_litgpt:LitGPT",
        251,
    ),
    Pair(
        "gpt_neox",
        "gpt_neox_to_litgpt",
        lambda seed: tiny_litgpt("gpt_neox", seed),
        "tests.models_litgpt:LitGPT",
        "transformers:GPTNeoXForCausalLM",
        249,
        reverse=True,
    ),
    Pair(
        "falcon",
        "falcon_to_litgpt",
        lambda seed: tiny_falcon(seed, new_decoder_architecture=True, num_kv_heads=2),
        "transformers:FalconForCausalLM",
        "tests.models_litgpt:LitGPT",
        253,
    ),
    Pair(
        "falcon",
        "falcon_to_litgpt",
        lambda seed: tiny_litgpt("falcon-40b", seed),
        "tests.models_litgpt:LitGPT",
        "transformers:FalconForCausalLM",
        249,
        reverse=True,
    ),
    Pair(
        "llama",
        "llama_to_litgpt",
        lambda seed: tiny_llama(seed, head_dim=12),
        "transformers:LlamaForCausalLM",
        "tests.models_litgpt:LitGPT",
        253,
    ),
    Pair(
        "llama",
        "llama_to_litgpt",
        lambda seed: tiny_litgpt("llama", seed),
        "tests.models_litgpt:LitGPT",
        "transformers:LlamaForCausalLM",
        249,
        reverse=True,
    ),
    Pair(
        "mistral",
        "mistral_to_litgpt",
        tiny_mistral,
        "transformers:MistralForCausalLM",
        "tests.models_litgpt:LitGPT",
        253,
    ),
    Pair(
        "mistral",
        "mistral_to_litgpt",
        lambda seed: tiny_litgpt("mistral", seed),
        "tests.models_litgpt:LitGPT",
        "transformers:MistralForCausalLM",
        249,
        reverse=True,
    ),
    Pair(
        "phi",
        "phi2_mixformer_to_litgpt",
        lambda seed: tiny_mixformer(seed, n_head_kv=2),
        "tests.models:MixFormer",
        "tests.models_litgpt:LitGPT",
        251,
    ),
    Pair(
        "phi",
        "phi2_mixformer_to_litgpt",
        lambda seed: tiny_litgpt("phi", seed),
        "tests.models_litgpt:LitGPT",
        "tests.models:MixFormer",
        249,
        reverse=True,
    ),
    Pair(
        "llama",
        "litgpt_interleaved_to_litgpt",
        lambda seed: tiny_litgpt("llama", seed),
        "tests.models_litgpt:LitGPT",
        "tests.models_litgpt:LitGPT",
        249,
        save=save_interleaved,
    ),
    Pair(
        "llama",
        "litgpt_interleaved_to_litgpt",
        lambda seed: tiny_litgpt("llama", seed),
        "tests.models_litgpt:LitGPT",
        "tests.models_litgpt:LitGPT",
        249,
        reverse=True,
    ),
)
