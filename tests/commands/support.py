"""Small checkpoints made without torch, and ways to run the command line: in this process, or in one of its own."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from converters.commands import main

REPOSITORY = Path(__file__).resolve().parents[2]
SPEC = "phi2_to_tenny"
LAYERS, HIDDEN, INNER, VOCAB = 2, 8, 12, 11
CONFIG = {
    "architectures": ["PhiForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "model_type": "phi",
    "num_attention_heads": 2,
    "num_hidden_layers": LAYERS,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB,
}

Shapes = Mapping[str, Sequence[int]]
_REPEATED = 1 << 20
"""Bytes after which large files repeat themselves: drawing more takes longer than what is tested."""
_WIDTHS = {"F16": 2, "BF16": 2, "F32": 4}


def phi_shapes(
    layers: int = LAYERS, hidden: int = HIDDEN, inner: int = INNER, vocab: int = VOCAB
) -> dict[str, list[int]]:
    shapes = {
        "model.embed_tokens.weight": [vocab, hidden],
        "model.final_layernorm.weight": [hidden],
        "model.final_layernorm.bias": [hidden],
        "lm_head.weight": [vocab, hidden],
        "lm_head.bias": [vocab],
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = [hidden]
        shapes[f"{prefix}.input_layernorm.bias"] = [hidden]
        sizes = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden, hidden)}
        sizes |= {"self_attn.v_proj": (hidden, hidden), "self_attn.dense": (hidden, hidden)}
        sizes |= {"mlp.fc1": (inner, hidden), "mlp.fc2": (hidden, inner)}
        for name, (rows, columns) in sizes.items():
            shapes[f"{prefix}.{name}.weight"] = [rows, columns]
            shapes[f"{prefix}.{name}.bias"] = [rows]
    return shapes


def write_safetensors(path: Path, shapes: Shapes, dtype: str = "F32", seed: int = 0) -> None:
    """Write tensors of random, finite values."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        nbytes = _WIDTHS[dtype]
        for size in shape:
            nbytes *= size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = bytearray(random.Random(seed).randbytes(min(offset, _REPEATED)))  # noqa: S311 - no secret
    for place in range(_WIDTHS[dtype] - 1, len(block), _WIDTHS[dtype]):
        block[place] = block[place] & 0x80 | 0x3B  # exponents around zero
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, offset, _REPEATED):
            file.write(block[: offset - start])


def write_checkpoint(
    directory: Path,
    shapes: Shapes | None = None,
    *,
    config: Mapping[str, Any] | None = CONFIG,
    shards: int = 1,
    dtype: str = "F32",
) -> Path:
    """Write a checkpoint directory as on the Hub."""
    shapes = phi_shapes() if shapes is None else shapes
    directory.mkdir(parents=True)
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    names = list(shapes)
    if shards == 1:
        write_safetensors(directory / "model.safetensors", shapes, dtype)
        return directory
    weight_map = {}
    for shard in range(shards):
        filename = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[shard::shards]
        write_safetensors(directory / filename, {name: shapes[name] for name in part}, dtype, seed=shard)
        weight_map.update(dict.fromkeys(part, filename))
    index = {"weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def read_tensors(directory: Path) -> dict[str, bytes]:
    """The bytes of every tensor of a checkpoint."""
    from converters.storage.checkpoint import open_checkpoint

    found = {}
    with open_checkpoint(directory) as reader:
        for name, info in reader.tensors.items():
            data = bytearray(info.nbytes)
            reader.read_into(name, 0, memoryview(data))
            found[name] = bytes(data)
    return found


def weightmap(*words: str | Path) -> Result:
    """Run a command in this process; it must not end in a traceback."""
    return CliRunner().invoke(main, [str(word) for word in words], prog_name="weightmap", catch_exceptions=False)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), **more}


def run_weightmap(*words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, with its output in pipes; `more` are environment variables."""
    line = [sys.executable, str(REPOSITORY / "cli.py"), *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=environment(**more))


def stop_weightmap(number: signal.Signals, ready: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command, and send it a signal as soon as something like `ready` is there, which may hold `*`."""
    line = [sys.executable, str(REPOSITORY / "cli.py"), *map(str, words)]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        until = time.monotonic() + 60
        while not list(ready.parent.glob(ready.name)) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    return subprocess.CompletedProcess(line, process.returncode, output, errors)
