"""Files of torch.save for the tests: written by torch, or put together by hand where torch would never write them."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from converters.errors import CheckpointError
from converters.storage.torch_reader import TorchReader
from tests.pickles import pickled

DTYPES = (
    "bool", "uint8", "int8", "int16", "int32", "int64",
    "uint16", "uint32", "uint64", "float16", "bfloat16", "float32",
    "float64", "complex64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
    "float8_e8m0fnu",
)  # fmt: skip


def some_tensor(dtype: str, *shape: int, seed: int = 0) -> Tensor:
    """Random bits as a tensor of any dtype."""
    generator = torch.Generator().manual_seed(seed)
    highest = 2 if dtype == "bool" else 256
    kind: torch.dtype = getattr(torch, dtype)
    size = torch.Size(shape).numel() * kind.itemsize
    return torch.randint(0, highest, (size,), dtype=torch.uint8, generator=generator).view(kind).reshape(shape)


def bits(tensor: Tensor) -> bytes:
    """The bytes of a tensor in row-major order."""
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def open_one(path: Path) -> TorchReader:
    return TorchReader(path, {path.name: path})


def contents(reader: TorchReader) -> dict[str, bytes]:
    found = {}
    for name, info in reader.tensors.items():
        buffer = bytearray(info.nbytes)
        reader.read_into(name, 0, memoryview(buffer))
        found[name] = bytes(buffer)
    return found


def assert_reads(path: Path, expected: Mapping[str, Tensor]) -> None:
    """Names, order, shapes, dtypes and bytes are those of the tensors."""
    with open_one(path) as reader:
        assert list(reader.tensors) == list(expected)
        for name, tensor in expected.items():
            info = reader.tensors[name]
            assert info.shape == tuple(tensor.shape)
            assert info.nbytes == tensor.numel() * tensor.element_size()
        assert contents(reader) == {name: bits(tensor) for name, tensor in expected.items()}
        reader.check_unchanged()


def refusal(path: Path) -> str:
    try:
        open_one(path).close()
    except CheckpointError as error:
        return str(error)
    raise AssertionError(f"{path} was accepted")


def archive(path: Path, members: Mapping[str, bytes], folder: str = "archive") -> Path:
    """Write a zip archive as Python does: each member stored, in order."""
    with zipfile.ZipFile(path, "w") as opened:
        for name, data in members.items():
            opened.writestr(zipfile.ZipInfo(f"{folder}/{name}"), data)
    return path


def torch_file(path: Path, value: object, storages: Mapping[str, bytes] | None = None) -> Path:
    """A file of torch.save that holds a pickle written by hand."""
    storages = {"0": struct.pack("<6f", *range(6))} if storages is None else storages
    members = {"data.pkl": pickled(value), "byteorder": b"little", "version": b"3\n"}
    return archive(path, {**members, **{f"data/{key}": data for key, data in storages.items()}})


def flip_bit(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def crc(data: bytes) -> int:
    return zlib.crc32(data)
