"""Files of torch.save for the tests: written by torch, or put together by hand where torch would never write them."""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from converters.errors import CheckpointError
from converters.storage.torch_reader import TorchReader

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


class Raw(bytes):
    """Opcodes that stand for themselves."""

    __slots__ = ()


def pickled(value: object) -> bytes:
    """A pickle, written by hand: `Raw` opcodes stand where they are, in dicts, lists and tuples too."""
    return b"\x80\x02" + _opcodes(value) + b"."


NO_GRADIENT = Raw(b"\x89")


def _opcodes(value: object) -> bytes:
    if isinstance(value, Raw):
        return value
    if isinstance(value, dict):
        return b"}(" + b"".join(_opcodes(part) for item in value.items() for part in item) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_opcodes, value)) + b"t"
    return pickle.dumps(value, protocol=2)[2:-1].replace(b"q\x00", b"")


def call(module: str, name: str, *arguments: object) -> Raw:
    return Raw(f"c{module}\n{name}\n".encode() + _opcodes(arguments) + b"R")


def storage(key: str = "0", size: int = 6, kind: str = "FloatStorage") -> Raw:
    return Raw(_opcodes(("storage", Raw(f"ctorch\n{kind}\n".encode()), key, "cpu", size)) + b"Q")


def tensor(
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
    offset: int = 0,
    size: int = 6,
    key: str = "0",
    kind: str = "FloatStorage",
) -> Raw:
    hooks = call("collections", "OrderedDict")
    return call(
        "torch._utils", "_rebuild_tensor_v2", storage(key, size, kind), offset, shape, strides, NO_GRADIENT, hooks
    )


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
