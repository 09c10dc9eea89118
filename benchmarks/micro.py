"""How long the pure half takes on a checkpoint of 100,000 tensors: `python benchmarks/micro.py`.

Medians of a few runs in one process. The unit that moves with the machine is `json.loads` of the same header.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from converters.key_tree import build_key_tree, render_key_tree
from converters.storage.safetensors_header import build_header, parse_header
from converters.tensor_info import DType, TensorInfo
from converters.yaml_nodes import load_yaml

RUNS = 5
EXPERT_SHAPES = {"gate_proj": (2048, 7168), "up_proj": (2048, 7168), "down_proj": (7168, 2048)}


def median_seconds(work: Callable[[], object]) -> float:
    """Median of a few runs."""
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    """Print the table."""
    tensors = [
        TensorInfo(f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight", shape, DType.BF16)
        for layer in range(131)
        for expert in range(256)
        for name, shape in EXPERT_SHAPES.items()
    ]
    start, header = build_header(tensors)
    raw = start[8:]
    rules = "rename:\n" + "".join(f"  model.layers.{i}.q_proj.weight: layers.{i}.q.weight\n" for i in range(15_000))
    rows: dict[str, Callable[[], object]] = {
        "json.loads of the header, to compare": lambda: json.loads(raw),
        "read and check the header": lambda: parse_header(raw, header.file_nbytes, "header"),
        "collapse and render the key tree": lambda: render_key_tree(build_key_tree(tensors)),
        "parse a spec of 15,000 lines": lambda: load_yaml(rules, "spec"),
    }
    print(f"{len(tensors):,} tensors, header of {len(raw) / 1e6:.1f} MB")
    for name, work in rows.items():
        print(f"{name:40} {median_seconds(work) * 1000:8.0f} ms")


if __name__ == "__main__":
    main()
