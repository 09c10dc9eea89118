"""Verifying takes the memory that it was given, for whatever checkpoint: measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import converters
from converters.sharding import split_into_shards
from converters.storage.safetensors import SafetensorsWriter
from converters.tensor_info import DType, TensorInfo

ROOT = Path(__file__).parents[2]
HIDDEN, LAYERS, VOCAB = 1024, 38, 8192  # 0.99 GB in float16

PROGRAM = """\
import json, sys
import converters
from converters.memory import measured_peak
spec, source, target = sys.argv[1:]
report = converters.verify(converters.load_spec(spec), source, target, level="roundtrip", max_memory="512MB")
print(json.dumps({
    "verdict": report.verdict.value,
    "peak": measured_peak(),
    "seconds": report.seconds,
    "errors": [finding.where for finding in report.findings],
}))
"""


def write(directory: Path) -> None:
    import numpy as np

    layer = {
        **{f"self_attn.{name}.weight": (HIDDEN, HIDDEN) for name in ("q_proj", "k_proj", "v_proj", "dense")},
        **{f"self_attn.{name}.bias": (HIDDEN,) for name in ("q_proj", "k_proj", "v_proj", "dense")},
        "mlp.fc1.weight": (4 * HIDDEN, HIDDEN),
        "mlp.fc1.bias": (4 * HIDDEN,),
        "mlp.fc2.weight": (HIDDEN, 4 * HIDDEN),
        "mlp.fc2.bias": (HIDDEN,),
        "input_layernorm.weight": (HIDDEN,),
        "input_layernorm.bias": (HIDDEN,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "lm_head.weight": (VOCAB, HIDDEN),
        "lm_head.bias": (VOCAB,),
        "model.final_layernorm.weight": (HIDDEN,),
        "model.final_layernorm.bias": (HIDDEN,),
        **{f"model.layers.{number}.{name}": shape for number in range(LAYERS) for name, shape in layer.items()},
    }
    shards = split_into_shards([TensorInfo(name, shape, DType.F16) for name, shape in shapes.items()], 400_000_000)
    directory.mkdir()
    writer = SafetensorsWriter(directory, shards)
    values = np.random.default_rng(0).standard_normal(1 << 22, dtype=np.float32).astype(np.float16)
    raw = memoryview(values).cast("B")
    for number, shard in enumerate(shards):
        writer.start_shard(number)
        for position, info in enumerate(shard.tensors):
            for offset in range(0, info.nbytes, len(raw) // 2):
                size = min(len(raw) // 2, info.nbytes - offset)
                begin = 2 * (position * 997 % 1000)  # no two tensors alike
                writer.write_from(info.name, offset, raw[begin : begin + size])
        writer.finish_shard(number)
    writer.finish()
    config = {
        "model_type": "phi", "architectures": ["PhiForCausalLM"], "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
        "num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 4 * HIDDEN, "vocab_size": VOCAB,
        "tie_word_embeddings": False,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))


def flip(file: Path) -> None:
    """Flip a bit of every byte of data: the most that can differ, all of it to be counted, some of it looked into."""
    import numpy as np

    with file.open("r+b") as opened:
        start = 8 + int.from_bytes(opened.read(8), "little")
        data = np.memmap(opened, dtype=np.uint8, mode="r+", offset=start)
        for position in range(0, data.size, 1 << 24):
            data[position : position + (1 << 24)] ^= 1
        data.flush()


def verified(source: Path, target: Path) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "phi2_to_tenny", str(source), str(target)],
        check=True, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_one_gigabyte_in_512_mb_right_and_wrong(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    write(source)
    converters.convert(converters.load_spec("phi2_to_tenny"), source, target)
    right = verified(source, target)
    assert right["verdict"] == "pass"
    assert isinstance(right["peak"], int)
    assert right["peak"] < 512_000_000
    flip(max(target.glob("*.safetensors")))
    wrong = verified(source, target)
    assert wrong["verdict"] == "fail"
    assert isinstance(wrong["peak"], int)
    assert wrong["peak"] < 512_000_000
