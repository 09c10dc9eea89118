"""Writes the checkpoints that the benchmarks convert.

    python -m benchmarks.sources NAME SIZE DIRECTORY

Values are drawn from a pool of normal numbers whose length is a prime, each tensor from its own place in it: as good
as random for anything that moves or casts them, and written as fast as the disk takes them.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from benchmarks.shapes import SIZES, Shapes, llama, phi

POOL = 8_388_593  # a prime just below 2**23
SHARD_NBYTES = 5_000_000_000  # how microsoft/phi-2 is cut
DTYPES: dict[str, Any] = {"F16": np.float16, "F32": np.float32, "BF16": ml_dtypes.bfloat16}


def write_checkpoint(
    directory: Path, shapes: Shapes, dtype: str, config: dict[str, Any] | None, shard_nbytes: int = SHARD_NBYTES
) -> None:
    """Write safetensors files, their index, and a config.json."""
    directory.mkdir(parents=True)
    itemsize = np.dtype(DTYPES[dtype]).itemsize
    sizes = {name: int(np.prod(shape)) * itemsize for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    for name in shapes:
        if shards[-1] and sum(sizes[other] for other in shards[-1]) + sizes[name] > shard_nbytes:
            shards.append([])
        shards[-1].append(name)
    pool = np.random.default_rng(0).standard_normal(POOL, dtype=np.float32).astype(DTYPES[dtype])
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        single = len(shards) == 1
        file = "model.safetensors" if single else f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        with (directory / file).open("xb") as opened:
            opened.write(_header({name: shapes[name] for name in names}, dtype, sizes))
            for name in names:
                _write_values(opened, pool, sizes[name] // itemsize, zlib.crc32(name.encode()) % POOL)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config, indent=2))


def _header(shapes: Shapes, dtype: str, sizes: dict[str, int]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + sizes[name]]}
        offset += sizes[name]
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_values(file: BinaryIO, pool: NDArray[Any], count: int, start: int) -> None:
    raw = pool.view(np.uint8)
    itemsize = pool.dtype.itemsize
    while count:
        taken = min(count, len(pool) - start)
        file.write(raw[start * itemsize : (start + taken) * itemsize].data)
        count, start = count - taken, 0


def make(name: str, size_name: str, directory: Path) -> None:
    """Write one of the sources that nothing is converted for."""
    size = SIZES[size_name]
    if name == "phi":
        shapes, config = phi(size, size.phi_layers)
        largest = {"full": SHARD_NBYTES, "toy": 3_000_000}.get(size_name, SHARD_NBYTES)
        write_checkpoint(directory, shapes, "F16", config, largest)
    elif name == "phi-wide":
        shapes, config = phi(size, size.phi_wide_layers)
        write_checkpoint(directory, shapes, "F32", config | {"dtype": "float32"}, 1 << 60)  # one file: see jobs.py
    elif name == "llama":
        shapes, config = llama(size)
        write_checkpoint(directory, shapes, "BF16", config)
    elif name == "matrix":
        write_checkpoint(directory, {"matrix": size.matrix}, "F16", None)
    else:
        raise ValueError(f"no source is called {name}")


if __name__ == "__main__":
    make(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
