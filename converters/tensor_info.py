"""Names, shapes and dtypes: what is known of a tensor before any of its data is read."""

from __future__ import annotations

import enum
from math import prod

from msgspec import Struct


class DType(enum.Enum):
    """Every dtype of the safetensors format (0.8), by the name that its header uses.

    Each member carries its width in bits, since F4 and F6 don't fill bytes.
    Source: safetensors/src/tensor.rs, `enum Dtype` and `Dtype::bitsize`.
    """

    BOOL = ("BOOL", 8)
    F4 = ("F4", 4)
    F6_E2M3 = ("F6_E2M3", 6)
    F6_E3M2 = ("F6_E3M2", 6)
    U8 = ("U8", 8)
    I8 = ("I8", 8)
    F8_E5M2 = ("F8_E5M2", 8)
    F8_E4M3 = ("F8_E4M3", 8)
    F8_E8M0 = ("F8_E8M0", 8)
    F8_E4M3FNUZ = ("F8_E4M3FNUZ", 8)
    F8_E5M2FNUZ = ("F8_E5M2FNUZ", 8)
    I16 = ("I16", 16)
    U16 = ("U16", 16)
    F16 = ("F16", 16)
    BF16 = ("BF16", 16)
    I32 = ("I32", 32)
    U32 = ("U32", 32)
    F32 = ("F32", 32)
    C64 = ("C64", 64)
    F64 = ("F64", 64)
    I64 = ("I64", 64)
    U64 = ("U64", 64)

    def __init__(self, label: str, bits: int) -> None:
        self.label = label
        self.bits = bits

    @property
    def is_floating(self) -> bool:
        """Whether a blanket cast applies to it: real floating point, not integers, masks or complex numbers."""
        return self.label[0] == "F" or self is DType.BF16

    def __str__(self) -> str:
        return self.label

    # There is one object for each, which is what `Enum` compares; its own hash is a call of Python for each look-up.
    __hash__ = object.__hash__


class TensorInfo(Struct, frozen=True, gc=False):
    """A tensor's name, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: DType

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its data, rounded up to whole bytes for dtypes narrower than a byte."""
        return (prod(self.shape) * self.dtype.bits + 7) // 8

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape)} {self.dtype}"


# torch's names, and the short forms that people write, beside the format's own.
_DTYPE_NAMES = {
    "bool": DType.BOOL,
    "uint8": DType.U8,
    "int8": DType.I8,
    "int16": DType.I16,
    "uint16": DType.U16,
    "float16": DType.F16,
    "half": DType.F16,
    "fp16": DType.F16,
    "bfloat16": DType.BF16,
    "int32": DType.I32,
    "uint32": DType.U32,
    "float32": DType.F32,
    "float": DType.F32,
    "fp32": DType.F32,
    "float64": DType.F64,
    "double": DType.F64,
    "int64": DType.I64,
    "uint64": DType.U64,
    "float8_e4m3fn": DType.F8_E4M3,
    "float8_e5m2": DType.F8_E5M2,
    "float8_e4m3fnuz": DType.F8_E4M3FNUZ,
    "float8_e5m2fnuz": DType.F8_E5M2FNUZ,
    "float8_e8m0fnu": DType.F8_E8M0,
    "complex64": DType.C64,
}


def parse_dtype(text: str) -> DType:
    """A dtype by its safetensors name (`BF16`) or torch's (`bfloat16`), in either case.

    Raises:
        ValueError: there is no such dtype; the message lists those there are.
    """
    name = text.strip().removeprefix("torch.")
    if name.upper() in DType.__members__:
        return DType[name.upper()]
    if name.lower() in _DTYPE_NAMES:
        return _DTYPE_NAMES[name.lower()]
    raise ValueError(f"{text!r} is no dtype; there are: {', '.join(DType.__members__)}")


def torch_name(dtype: DType) -> str:
    """The name of the dtype in torch, as in config.json: `bfloat16` for BF16."""
    return next((name for name, known in _DTYPE_NAMES.items() if known is dtype), dtype.label.lower())
