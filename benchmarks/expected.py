"""What each job must give, computed from its source by numpy and torch, and by no code of weightmap.

python -m benchmarks.expected NAME SOURCE_DIRECTORY              # {"name": "F16 [51200, 2560] 0a1b..."} as JSON
python -m benchmarks.expected --compare OUTPUT EXPECTED_JSON     # what differs, or nothing
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from benchmarks.contents import Place, digests, head, mapped, places

Array = NDArray[Any]
Tensors = Iterator[tuple[str, str, Array]]  # name, dtype, values; of an array that isn't contiguous, in its own order
PANEL = 256  # rows of a transposed matrix that are made at a time
WORDS: dict[str, Any] = {"F16": np.uint16, "BF16": np.uint16, "F32": np.uint32}  # bits, for numpy lacks bfloat16
POSITIONS = 5000  # Tenny's max_len
SINUSOIDS = "pos_encoder.pe"  # computed, not moved: right where it is close
CLOSE = 1e-6


class Source:
    """The tensors of a directory, as arrays of bits `[shape]` over mapped files."""

    def __init__(self, directory: Path) -> None:
        self._places = places(directory)
        self.config: dict[str, Any] = {}
        if (directory / "config.json").exists():
            self.config = json.loads((directory / "config.json").read_text())
        self._map = cache(lambda file: mapped(Place(file, 0, 0, "", ())))

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __getitem__(self, name: str) -> Array:
        place = self._places[name]
        words = WORDS[place.dtype]
        count = place.nbytes // np.dtype(words).itemsize
        return np.frombuffer(self._map(place.file), words, count, place.offset).reshape(place.shape)

    def dtype(self, name: str) -> str:
        """As safetensors calls it."""
        return self._places[name].dtype


def same(source: Source) -> Tensors:
    """Every tensor as it is."""
    return ((name, source.dtype(name), source[name]) for name in source)


def transposed(source: Source) -> Tensors:
    """Every matrix `[a, b]` as `[b, a]`."""
    return ((name, source.dtype(name), source[name].T) for name in source)


def bfloat16(source: Source) -> Tensors:
    """Every tensor cast by torch."""
    import torch

    dtypes = {"F16": torch.float16, "F32": torch.float32}
    for name in source:
        cast = torch.from_numpy(source[name].copy()).view(dtypes[source.dtype(name)]).to(torch.bfloat16)
        yield name, "BF16", cast.view(torch.uint16).numpy()


def tenny(source: Source) -> Tensors:
    """Phi's names to Tenny's; q, k and v one after the other; one norm twice; sinusoidal positions."""
    end = {"embed_tokens": "encoder", "final_layernorm": "transformer_encoder.norm", "lm_head": "decoder"}
    inner = {"dense": "self_attn.multihead_attn.out_proj", "fc1": "ff.linear1", "fc2": "ff.linear2"}
    for name in source:
        *path, module, kind = name.split(".")
        values, dtype = source[name], source.dtype(name)
        if "layers" not in path:
            yield f"{end[module]}.{kind}", dtype, values
            continue
        layer = f"transformer_encoder.layers.{path[path.index('layers') + 1]}"
        if module == "input_layernorm":
            yield f"{layer}.norm1.{kind}", dtype, values
            yield f"{layer}.norm2.{kind}", dtype, values
        elif module in inner:
            yield f"{layer}.{inner[module]}.{kind}", dtype, values
        elif module == "q_proj":
            fused = np.concatenate([source[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
            yield f"{layer}.self_attn.multihead_attn.in_proj_{kind}", dtype, fused
    yield SINUSOIDS, "F32", sinusoids(source.config["hidden_size"])


def sinusoids(width: int) -> Array:
    """Vaswani et al. 2017, 3.5, in float64 until the end: `[POSITIONS, 1, width]`."""
    angles = np.arange(POSITIONS)[:, None] / 10000.0 ** (np.arange(0, width, 2) / width)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(POSITIONS, 1, width).astype(np.float32)


def meta(source: Source) -> Tensors:
    """Llama from Hugging Face to Meta: the two halves of each head's features become pairs of neighbours."""
    end = {"embed_tokens": "tok_embeddings", "norm": "norm", "lm_head": "output"}
    inner = {
        "q_proj": "attention.wq",
        "k_proj": "attention.wk",
        "v_proj": "attention.wv",
        "o_proj": "attention.wo",
        "gate_proj": "feed_forward.w1",
        "down_proj": "feed_forward.w2",
        "up_proj": "feed_forward.w3",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    features = source.config["head_dim"]
    for name in source:
        *path, module, kind = name.split(".")
        values = source[name]
        if "layers" not in path:
            yield f"{end[module]}.{kind}", source.dtype(name), values
            continue
        if module in {"q_proj", "k_proj"}:
            halves = values.reshape(-1, 2, features // 2, values.shape[1])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        yield f"layers.{path[path.index('layers') + 1]}.{inner[module]}.{kind}", source.dtype(name), values


def torchtune(source: Source) -> Tensors:
    """Llama from Hugging Face to torchtune: Meta's order of features, and names of its own."""
    names = {
        "attention.w": "attn.",
        "attn.o.": "attn.output_proj.",
        "feed_forward.": "mlp.",
        "attention_norm.weight": "sa_norm.scale",
        "ffn_norm.weight": "mlp_norm.scale",
    }
    for name, dtype, values in meta(source):
        new = name if name != "norm.weight" else "norm.scale"
        for old, other in names.items():
            new = new.replace(old, other)
        for part in "qkv":
            new = new.replace(f"attn.{part}.", f"attn.{part}_proj.")
        yield new, dtype, values


def megatron(source: Source) -> Tensors:
    """Llama from Hugging Face to Megatron-Core: each group's queries, key and value side by side; gate on up."""
    end = {"embed_tokens": "embedding.word_embeddings", "norm": "decoder.final_layernorm", "lm_head": "output_layer"}
    inner = {
        "o_proj": "self_attention.linear_proj.weight",
        "down_proj": "mlp.linear_fc2.weight",
        "input_layernorm": "self_attention.linear_qkv.layer_norm_weight",
        "post_attention_layernorm": "mlp.linear_fc1.layer_norm_weight",
    }
    groups = source.config["num_key_value_heads"]
    for name in source:
        *path, module, kind = name.split(".")
        values, dtype = source[name], source.dtype(name)
        if "layers" not in path:
            yield f"{end[module]}.{kind}", dtype, values
            continue
        layer = f"decoder.layers.{path[path.index('layers') + 1]}"
        if module == "q_proj":
            parts = [source[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            grouped = np.concatenate([part.reshape(groups, -1, values.shape[1]) for part in parts], axis=1)
            yield f"{layer}.self_attention.linear_qkv.weight", dtype, grouped.reshape(-1, values.shape[1])
        elif module == "gate_proj":
            both = np.concatenate([values, source[name.replace("gate_proj", "up_proj")]])
            yield f"{layer}.mlp.linear_fc1.weight", dtype, both
        elif module in inner:
            yield f"{layer}.{inner[module]}", dtype, values


def litgpt(source: Source) -> Tensors:
    """Phi's names to LitGPT's; q, k and v one after the other."""
    end = {"embed_tokens": "transformer.wte", "final_layernorm": "transformer.ln_f", "lm_head": "lm_head"}
    inner = {"dense": "attn.proj", "fc1": "mlp.fc", "fc2": "mlp.proj", "input_layernorm": "norm_1"}
    for name in source:
        *path, module, kind = name.split(".")
        values, dtype = source[name], source.dtype(name)
        if "layers" not in path:
            yield f"{end[module]}.{kind}", dtype, values
            continue
        layer = f"transformer.h.{path[path.index('layers') + 1]}"
        if module == "q_proj":
            fused = np.concatenate([source[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
            yield f"{layer}.attn.qkv.{kind}", dtype, fused
        elif module in inner:
            yield f"{layer}.{inner[module]}.{kind}", dtype, values


def digest(values: Array) -> str:
    """The digest of the values in order, a panel of rows at a time where they have to be gathered."""
    hasher = xxhash.xxh3_128()
    if values.flags.c_contiguous:
        hasher.update(values.reshape(-1).view(np.uint8).data)
    else:
        for start in range(0, len(values), PANEL):
            hasher.update(np.ascontiguousarray(values[start : start + PANEL]).data)
    return hasher.hexdigest()


EXPECTED: dict[str, Callable[[Source], Tensors]] = {
    function.__name__: function for function in (same, transposed, bfloat16, tenny, meta, torchtune, megatron, litgpt)
}


def expected(name: str, directory: Path) -> dict[str, str]:
    """Dtype, shape and digest of every tensor of what a job must write."""
    tensors = EXPECTED[name](Source(directory))
    return {
        key: f"{head(dtype, values.shape)} {'close' if key == SINUSOIDS else digest(values)}"
        for key, dtype, values in tensors
    }


def difference(output: Path, wanted: dict[str, str]) -> str:
    """What differs between an output and what is expected, in one line; empty where nothing does."""
    found = digests(output)
    if wanted.get(SINUSOIDS) == found.get(SINUSOIDS, "").rpartition(" ")[0] + " close":
        place = places(output)[SINUSOIDS]
        values = np.frombuffer(mapped(place), np.float32, place.nbytes // 4, place.offset).reshape(place.shape)
        if np.abs(values - sinusoids(place.shape[-1])).max() <= CLOSE:
            found[SINUSOIDS] = wanted[SINUSOIDS]
    missing, extra = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    other = [name for name in wanted.keys() & found.keys() if wanted[name] != found[name]]
    parts = [("missing", missing), ("not expected", extra), ("other bytes, shape or dtype", other)]
    return "; ".join(f"{len(names)} {what}, such as {min(names)}" for what, names in parts if names)


if __name__ == "__main__":
    if sys.argv[1] == "--compare":
        sys.stdout.write(difference(Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())))
    else:
        json.dump(expected(sys.argv[1], Path(sys.argv[2])), sys.stdout)
