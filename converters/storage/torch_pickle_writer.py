"""The pickle of a state dict, as `torch.save` would write it: a dict from names to tensors, each over its own storage.

Source: torch/_tensor.py (`_reduce_ex_internal`), torch/serialization.py (`persistent_id`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from math import prod
from typing import Final

from converters.errors import OutputError, Problem
from converters.storage.torch_globals import STORAGE_DTYPES
from converters.tensor_info import DType, TensorInfo, torch_name
from converters.text import printable

WITHOUT_A_TYPE_IN_TORCH: Final = frozenset({DType.F4, DType.F6_E2M3, DType.F6_E3M2})
"""Dtypes that torch has no elements of."""

_STORAGE_OF: Final = {dtype: name for name, dtype in STORAGE_DTYPES.items()}
_BATCH: Final = 1000
_LAST_BYTE: Final = 0xFF
_LAST_SHORT: Final = 0xFFFF
_LAST_INT: Final = 0x7FFFFFFF


def check_storable(tensors: Iterable[TensorInfo]) -> None:
    """Check that torch has all these dtypes.

    Raises:
        OutputError: it hasn't; all tensors at once.
    """
    problems = [
        Problem(
            f"torch has no dtype for {info.dtype}",
            printable(info.name),
            "Write safetensors instead (--format safetensors).",
        )
        for info in tensors
        if info.dtype in WITHOUT_A_TYPE_IN_TORCH
    ]
    if problems:
        raise OutputError(problems)


def write_pickle(tensors: Sequence[TensorInfo]) -> bytes:
    """Write the pickle of a state dict, in protocol 2; the storages are called "0", "1" and so on, in this order."""
    writer = PickleWriter()
    out = writer.out
    out += b"\x80\x02}"
    for start in range(0, len(tensors), _BATCH):
        out += b"("
        for number, info in enumerate(tensors[start : start + _BATCH], start):
            writer.text(info.name)
            writer.tensor(info, str(number))
        out += b"u"
    out += b"."
    return bytes(out)


def write_tensor_pickle(info: TensorInfo) -> bytes:
    """Write the pickle of a single tensor, in protocol 2; its storage is called "0"."""
    writer = PickleWriter()
    writer.tensor(info, "0")
    return b"\x80\x02" + bytes(writer.out) + b"."


class PickleWriter:
    """Writes opcodes of protocol 2; keeps what is written again and again in the pickle's memo, as all picklers do.

    Attributes:
        out: what was written so far.
    """

    def __init__(self) -> None:
        self.out = bytearray()
        self._kept: dict[bytes, int] = {}

    def text(self, text: str) -> None:
        """Text that occurs once."""
        self.out += text_opcode(text)

    def number(self, value: int) -> None:
        """A whole number, not negative."""
        if value <= _LAST_BYTE:
            self.out += b"K" + value.to_bytes(1, "little")
        elif value <= _LAST_SHORT:
            self.out += b"M" + value.to_bytes(2, "little")
        elif value <= _LAST_INT:
            self.out += b"J" + value.to_bytes(4, "little")
        else:
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little")
            self.out += b"\x8a" + len(raw).to_bytes(1, "little") + raw

    def numbers(self, values: Sequence[int]) -> None:
        """A tuple of whole numbers."""
        if not values:
            self.out += b")"
            return
        self.out += b"("
        for value in values:
            self.number(value)
        self.out += b"t"

    def again(self, opcodes: bytes) -> None:
        """Write what makes a value the first time, and recall the value later; for at most 256 values."""
        number = self._kept.get(opcodes)
        if number is not None:
            self.out += b"h" + number.to_bytes(1, "little")
            return
        number = self._kept[opcodes] = len(self._kept)
        self.out += opcodes + b"q" + number.to_bytes(1, "little")

    def tensor(self, info: TensorInfo, key: str) -> None:
        """A call of torch's function that makes a tensor from a storage, offset, sizes and strides."""
        name = torch_name(info.dtype)
        storage = _STORAGE_OF.get(name)
        self.again(global_opcode("torch._utils", "_rebuild_tensor_v2" if storage else "_rebuild_tensor_v3"))
        self.out += b"(("
        self.again(text_opcode("storage"))
        self.again(global_opcode("torch", storage) if storage else global_opcode("torch.storage", "UntypedStorage"))
        self.text(key)
        self.again(text_opcode("cpu"))
        self.number(info.size if storage else info.nbytes)
        self.out += b"tQ"
        self.number(0)
        self.numbers(info.shape)
        self.numbers([prod(size or 1 for size in info.shape[axis + 1 :]) for axis in range(len(info.shape))])
        self.out += b"\x89"  # no gradient
        self.again(global_opcode("collections", "OrderedDict"))
        self.out += b")R"  # no hooks
        if not storage:
            self.again(global_opcode("torch", name))
        self.out += b"tR"


def text_opcode(text: str) -> bytes:
    """The opcode that makes a text."""
    raw = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def global_opcode(module: str, name: str) -> bytes:
    """The opcode that looks up a name in a module."""
    return f"c{module}\n{name}\n".encode()
