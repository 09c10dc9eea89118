"""Write a checkpoint of DeepSeek-V3's shape whose headers are real and whose data is a hole, and two specs for it.

    python benchmarks/make_sparse.py DIRECTORY                   # 61 layers, 90,427 tensors, 163 shards, 673 GB of hole
    python benchmarks/make_sparse.py --tensors 300000 DIRECTORY  # more layers of experts, about so many tensors
    python benchmarks/make_sparse.py --divide 64 DIRECTORY       # every size a 64th, as many tensors: 0.3 GB to copy

DIRECTORY/checkpoint is the checkpoint, with config.json and an index. `rename.yaml` gives every tensor another name,
`stack.yaml` also stacks the experts, with the scales of their blocks. Names and shapes are those of
deepseek-ai/DeepSeek-V3, without the layer that predicts a second token.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from converters.sharding import split_into_shards
from converters.storage.safetensors_header import build_header
from converters.tensor_info import DType, TensorInfo

# deepseek-ai/DeepSeek-V3's config.json, as far as shapes and names hang on it.
CONFIG = {
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
BLOCK = 128  # rows and columns that share a scale
SHARDS_A_LAYER = 163 / 61
DIVISORS = [1 << power for power in range(7)]  # beyond 64 a block of scales would be less than two rows

RENAME = """\
weightmap: 1
name: rename
source: {{layout: sparse}}
target: {{layout: renamed}}
dims:
  L: config.num_hidden_layers
  K: config.first_k_dense_replace
  X: config.n_routed_experts
placeholders:
  i: 0..L
  dense: 0..K
  moe: K..L
  e: 0..X
  p: weight&weight_scale_inv
  norm: input_layernorm|post_attention_layernorm
  a: q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj
  an: q_a_layernorm|kv_a_layernorm
  m: gate_proj|up_proj|down_proj
rename:
  model.embed_tokens.weight: embed.weight
  model.norm.weight: norm.weight
  lm_head.weight: head.weight
  model.layers.{{i}}.{{norm}}.weight: layers.{{i}}.{{norm}}.weight
  model.layers.{{i}}.self_attn.{{a}}.{{p}}: layers.{{i}}.attn.{{a}}.{{p}}
  model.layers.{{i}}.self_attn.{{an}}.weight: layers.{{i}}.attn.{{an}}.weight
  model.layers.{{dense}}.mlp.{{m}}.{{p}}: layers.{{dense}}.ffn.{{m}}.{{p}}
  model.layers.{{moe}}.mlp.gate.weight: layers.{{moe}}.ffn.gate.weight
  model.layers.{{moe}}.mlp.gate.e_score_correction_bias: layers.{{moe}}.ffn.gate.bias
  model.layers.{{moe}}.mlp.shared_experts.{{m}}.{{p}}: layers.{{moe}}.ffn.shared_experts.{{m}}.{{p}}
"""
RENAMED_EXPERTS = """\
  model.layers.{moe}.mlp.experts.{e}.{m}.{p}: layers.{moe}.ffn.experts.{e}.{m}.{p}
"""
STACKED_EXPERTS = """\
rules:
  - from:
      gate:
        weight: model.layers.{{moe}}.mlp.experts.{{e}}.gate_proj.weight
        scale: model.layers.{{moe}}.mlp.experts.{{e}}.gate_proj.weight_scale_inv
      up:
        weight: model.layers.{{moe}}.mlp.experts.{{e}}.up_proj.weight
        scale: model.layers.{{moe}}.mlp.experts.{{e}}.up_proj.weight_scale_inv
    to:
      weight: layers.{{moe}}.ffn.experts.gate_up_proj
      scale: layers.{{moe}}.ffn.experts.gate_up_proj_scale_inv
    grid: {{scale: [{block}, {block}]}}
    layout: {{gate: f h, up: f h, to: "e (gate: f | up: f) h"}}
  - from:
      weight: model.layers.{{moe}}.mlp.experts.{{e}}.down_proj.weight
      scale: model.layers.{{moe}}.mlp.experts.{{e}}.down_proj.weight_scale_inv
    to:
      weight: layers.{{moe}}.ffn.experts.down_proj
      scale: layers.{{moe}}.ffn.experts.down_proj_scale_inv
    grid: {{scale: [{block}, {block}]}}
    layout: h f -> e h f
"""


def layers_for(tensors: int) -> int:
    """How many layers make about so many tensors, and at least one layer of experts among them."""
    dense = CONFIG["first_k_dense_replace"]
    fixed = len([*layer_tensors(0, CONFIG)]) * dense + 3
    return dense + max(1, round((tensors - fixed) / len([*layer_tensors(dense, CONFIG)])))


def quantized(name: str, rows: int, columns: int, block: int) -> Iterator[TensorInfo]:
    """A weight `[rows, columns]` in 8 bits and the scales of its blocks."""
    yield TensorInfo(f"{name}.weight", (rows, columns), DType.F8_E4M3)
    scales = (math.ceil(rows / block), math.ceil(columns / block))
    yield TensorInfo(f"{name}.weight_scale_inv", scales, DType.F32)


def layer_tensors(layer: int, config: dict[str, int], divisor: int = 1) -> Iterator[TensorInfo]:
    """The tensors of one layer; `config` holds sizes that were divided already."""
    block = BLOCK // divisor
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    attention = f"model.layers.{layer}.self_attn"
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield TensorInfo(f"model.layers.{layer}.{norm}.weight", (hidden,), DType.BF16)
    yield from quantized(f"{attention}.q_a_proj", config["q_lora_rank"], hidden, block)
    yield TensorInfo(f"{attention}.q_a_layernorm.weight", (config["q_lora_rank"],), DType.BF16)
    yield from quantized(f"{attention}.q_b_proj", heads * (nope + rope), config["q_lora_rank"], block)
    yield from quantized(f"{attention}.kv_a_proj_with_mqa", config["kv_lora_rank"] + rope, hidden, block)
    yield TensorInfo(f"{attention}.kv_a_layernorm.weight", (config["kv_lora_rank"],), DType.BF16)
    yield from quantized(f"{attention}.kv_b_proj", heads * (nope + value), config["kv_lora_rank"], block)
    yield from quantized(f"{attention}.o_proj", hidden, heads * value, block)
    if layer < config["first_k_dense_replace"]:
        yield from feed_forward(f"model.layers.{layer}.mlp", hidden, config["intermediate_size"], block)
        return
    experts = config["n_routed_experts"]
    yield TensorInfo(f"model.layers.{layer}.mlp.gate.weight", (experts, hidden), DType.BF16)
    yield TensorInfo(f"model.layers.{layer}.mlp.gate.e_score_correction_bias", (experts,), DType.F32)
    width = config["moe_intermediate_size"]
    for expert in range(experts):
        yield from feed_forward(f"model.layers.{layer}.mlp.experts.{expert}", hidden, width, block)
    yield from feed_forward(f"model.layers.{layer}.mlp.shared_experts", hidden, width, block)


def feed_forward(name: str, hidden: int, width: int, block: int) -> Iterator[TensorInfo]:
    """Gate, up and down projection."""
    yield from quantized(f"{name}.gate_proj", width, hidden, block)
    yield from quantized(f"{name}.up_proj", width, hidden, block)
    yield from quantized(f"{name}.down_proj", hidden, width, block)


def divided_config(layers: int, divisor: int) -> dict[str, int]:
    """The config with so many layers, and every size divided but the number of heads and experts."""
    sizes = ("size", "rank", "dim")
    divided = {key: value // divisor for key, value in CONFIG.items() if key.endswith(sizes)}
    return CONFIG | divided | {"num_hidden_layers": layers}


def make_sparse(directory: Path, tensors: int | None = None, divisor: int = 1) -> int:
    """Write checkpoint and specs; returns how many tensors it has."""
    layers = CONFIG["num_hidden_layers"] if tensors is None else layers_for(tensors)
    config = divided_config(layers, divisor)
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    infos = [
        TensorInfo("model.embed_tokens.weight", (vocabulary, hidden), DType.BF16),
        *(info for layer in range(layers) for info in layer_tensors(layer, config, divisor)),
        TensorInfo("model.norm.weight", (hidden,), DType.BF16),
        TensorInfo("lm_head.weight", (vocabulary, hidden), DType.BF16),
    ]
    total = sum(info.nbytes for info in infos)
    checkpoint = directory / "checkpoint"
    checkpoint.mkdir(parents=True)
    weight_map = {}
    # One less, since no shard is quite full.
    for shard in split_into_shards(infos, math.ceil(total / (SHARDS_A_LAYER * layers - 1))):
        start, header = build_header(shard.tensors)
        with (checkpoint / shard.filename).open("xb") as file:
            file.write(start)
            file.truncate(header.file_nbytes)
        weight_map |= dict.fromkeys(header.tensors, shard.filename)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (checkpoint / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    rename = RENAME.format()
    (directory / "rename.yaml").write_text(rename + RENAMED_EXPERTS)
    stack = rename.replace("name: rename", "name: stack").replace("layout: renamed", "layout: stacked")
    (directory / "stack.yaml").write_text(stack + STACKED_EXPERTS.format(block=BLOCK // divisor))
    return len(infos)


def main() -> None:
    """Read the command line and write the checkpoint."""
    parser = argparse.ArgumentParser(description="Write a sparse checkpoint of DeepSeek-V3's shape, and specs for it.")
    parser.add_argument("directory", type=Path, help="a new directory")
    parser.add_argument("--tensors", type=int, help="about how many tensors; default: as it has them, 90,427")
    parser.add_argument("--divide", type=int, default=1, choices=DIVISORS, help="divide every size by this")
    arguments = parser.parse_args()
    count = make_sparse(arguments.directory, arguments.tensors, arguments.divide)
    files = [*(arguments.directory / "checkpoint").glob("*.safetensors")]
    nbytes = sum(file.stat().st_size for file in files)
    print(f"{count:,} tensors in {len(files)} shards, {nbytes / 1e9:.1f} GB of hole")


if __name__ == "__main__":
    main()
