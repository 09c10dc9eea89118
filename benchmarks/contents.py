"""What a checkpoint holds: a digest of every tensor, read by no code of weightmap.

safetensors files are read by their published format, `.pth` and `.bin` files by torch itself.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

CHUNK = 4 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor's bytes lie."""

    file: Path
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]


def places(directory: Path) -> dict[str, Place]:
    """Every tensor of the safetensors files of a directory."""
    found: dict[str, Place] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if name in found:
                raise ValueError(f"{name} is in two files of {directory}")
            start, end = entry["data_offsets"]
            found[name] = Place(file, 8 + length + start, end - start, entry["dtype"], tuple(entry["shape"]))
    return found


def head(dtype: str, shape: tuple[int, ...]) -> str:
    """What stands before a digest."""
    return f"{dtype} {list(shape)}"


def digests(directory: Path) -> dict[str, str]:
    """Dtype, shape and digest of every tensor."""
    files = [*directory.glob("*.pth"), *directory.glob("*.bin")]
    return dict(_torch_digests(files)) if files else {name: _digest(place) for name, place in places(directory).items()}


def _digest(place: Place) -> str:
    hasher = xxhash.xxh3_128()
    with place.file.open("rb", buffering=0) as file:
        file.seek(place.offset)
        left, buffer = place.nbytes, memoryview(bytearray(CHUNK))
        while left:
            count = file.readinto(buffer[: min(left, CHUNK)])
            if not count:
                raise ValueError(f"{place.file} ends early")
            hasher.update(buffer[:count])
            left -= count
    return f"{head(place.dtype, place.shape)} {hasher.hexdigest()}"


def _torch_digests(files: list[Path]) -> Iterator[tuple[str, str]]:
    import torch

    names = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
    for file in sorted(files):
        loaded = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        for name, tensor in loaded.items():
            nbytes = math.prod(tensor.shape) * tensor.element_size()
            raw = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy() if nbytes else b""
            yield name, f"{head(names[tensor.dtype], tuple(tensor.shape))} {xxhash.xxh3_128(raw).hexdigest()}"


def mapped(place: Place) -> mmap.mmap:
    """The file's bytes, for numpy to look into."""
    with place.file.open("rb") as opened:
        return mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
