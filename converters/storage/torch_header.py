"""What a file of `torch.save` says of itself, checked: its tensors, and which bytes of the file each has.

There are two kinds of files: zip archives (`torch_archive`), and those of old versions (`torch_legacy`). The pickles of
both are read by the same interpreter, and neither is ever loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import prod
from typing import Final

from msgspec import Struct, field

from converters.errors import CheckpointError, Problem
from converters.storage.safetensors_extents import MAX_RANK, MAX_REPORTED, is_addressable
from converters.storage.torch_descriptions import PickleFault, Storage, Tensor, Unreadable
from converters.storage.torch_globals import ITEM_NBYTES
from converters.storage.torch_state_dict import StateDictFault, find_state_dict
from converters.tensor_info import DType, TensorInfo, parse_dtype
from converters.text import format_nbytes, printable

MAX_EXPANSION: Final = 4
"""How many times the bytes of its file the tensors may have together: views can repeat what the file holds once."""

FREE_EXPANSION: Final = 64_000_000
"""Bytes that the tensors of a small file may have, whatever its size."""

_MAX_INT: Final = 2**63 - 1


class Extent(Struct, frozen=True):
    """Bytes of a file that hold a storage.

    Attributes:
        key: the storage's name in the file.
        start: in bytes from the start of the file.
        nbytes: how many.
        crc: the CRC-32 that the file gives for them; 0 if it gives none.
    """

    key: str
    start: int
    nbytes: int
    crc: int = 0


class Placement(Struct, frozen=True):
    """Where a tensor lies: the extent of its storage, its first byte there, and its strides in elements.

    `strides` is None where its elements follow each other, as in the file to be written.
    """

    extent: Extent
    start: int
    strides: tuple[int, ...] | None


class TorchHeader(Struct, frozen=True):
    """What a file says of itself, checked.

    Attributes:
        tensors: every tensor by name, in the order of the file.
        placements: for each name, where it lies.
        extents: every storage by its name in the file, those of tensors that were left out, too.
        notes: what was left out of the file, or put together.
        file_nbytes: bytes of the whole file.
        metadata: none; these files have no free text.
    """

    tensors: Mapping[str, TensorInfo]
    placements: Mapping[str, Placement]
    extents: Mapping[str, Extent]
    notes: tuple[Problem, ...]
    file_nbytes: int
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def data_nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(info.nbytes for info in self.tensors.values())


def make_header(
    value: object, extents: Mapping[str, Extent], file_nbytes: int, where: str, notes: list[Problem]
) -> TorchHeader:
    """Find the state dict in what a file holds, and give each of its tensors its place.

    Args:
        value: what the file's pickle describes.
        extents: every storage of the file, by its name there.
        file_nbytes: size of the file.
        where: how errors name the file.
        notes: what was noticed so far.

    Raises:
        CheckpointError: there is no state dict, or a tensor has no place in the file; all problems at once.
    """
    try:
        state_dict = find_state_dict(value)
    except StateDictFault as fault:
        raise CheckpointError(str(fault), where, fault.hint) from None
    tensors: dict[str, TensorInfo] = {}
    placements: dict[str, Placement] = {}
    problems: list[Problem] = []
    for name, tensor in state_dict.tensors.items():
        try:
            tensors[name], placements[name] = _place(name, tensor, extents)
        except PickleFault as fault:
            problems.append(Problem(str(fault), f"{where}: {printable(name)}"))
    if problems:
        raise CheckpointError(first_problems(problems))
    total = sum(info.nbytes for info in tensors.values())
    if total > FREE_EXPANSION and total > MAX_EXPANSION * file_nbytes:
        raise CheckpointError(
            f"its tensors have {format_nbytes(total)} together, but the file only {format_nbytes(file_nbytes)}: "
            f"views repeat the same bytes more than {MAX_EXPANSION} times",
            where,
            "Save them without views that repeat: tensor.contiguous().",
        )
    notes.extend(Problem(note, where) for note in state_dict.notes)
    return TorchHeader(tensors, placements, extents, tuple(notes), file_nbytes)


def _place(name: str, tensor: Tensor | Unreadable, extents: Mapping[str, Extent]) -> tuple[TensorInfo, Placement]:
    if isinstance(tensor, Unreadable):
        raise PickleFault(f"it is {tensor.reason}, which is not supported")
    dtype = _dtype(tensor.dtype)
    info = TensorInfo(name, tensor.shape, dtype)
    extent = extents.get(tensor.storage.key)
    if extent is None:
        raise PickleFault(f"its storage {printable(tensor.storage.key, 100)} is not in the file")
    if storage_nbytes(tensor.storage) > extent.nbytes:
        raise PickleFault(
            f"its storage should have {storage_nbytes(tensor.storage):,} bytes, but the file has {extent.nbytes:,}"
        )
    if len(tensor.shape) > MAX_RANK:
        raise PickleFault(f"it has {len(tensor.shape):,} dimensions; at most {MAX_RANK} are supported")
    width = dtype.bits // 8
    if not is_addressable(tensor.shape) or tensor.offset > _MAX_INT:
        raise PickleFault(f"shape {list(tensor.shape)} at element {tensor.offset} is larger than any memory")
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    if info.size and (tensor.offset + last + 1) * width > storage_nbytes(tensor.storage):
        raise PickleFault(
            f"shape {list(tensor.shape)} with strides {list(tensor.strides)} from element {tensor.offset} on reaches "
            f"past the end of its storage, which has {storage_nbytes(tensor.storage):,} bytes"
        )
    strides = None if is_contiguous(tensor.shape, tensor.strides) else tensor.strides
    return info, Placement(extent, tensor.offset * width, strides)


def is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether elements in row-major order follow each other without gaps."""
    if prod(shape) == 0:
        return True
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def storage_nbytes(storage: Storage) -> int:
    """Bytes that a storage should have."""
    return storage.size * (ITEM_NBYTES[storage.dtype] if storage.dtype else 1)


@lru_cache
def _dtype(name: str) -> DType:
    try:
        return parse_dtype(name)
    except ValueError:
        raise PickleFault(f"its dtype is torch.{name}, which is not supported") from None


def first_problems(problems: list[Problem]) -> list[Problem]:
    """The first of many, and how many more there are."""
    if len(problems) > MAX_REPORTED:
        return [*problems[:MAX_REPORTED], Problem(f"... and {len(problems) - MAX_REPORTED:,} more problems")]
    return problems
