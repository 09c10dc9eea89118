"""What a pickle of torch describes: tensors, storages, dtypes, and values of no interest. Plain data."""

from __future__ import annotations

from msgspec import Struct


class PickleFault(ValueError):  # noqa: N818 - it says what is wrong with a pickle; the caller adds where
    """What is wrong with a pickle, in one sentence."""


class Global(Struct, frozen=True):
    """A name that a pickle looks up in a module."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Record(Struct, eq=False):
    """An object of a known class that holds data alone: what it was made from, and its attributes.

    Attributes:
        kind: its class.
        arguments: what it was made from.
        state: its attributes, a dict as a rule; None if it has none.
    """

    kind: Global
    arguments: tuple[object, ...]
    state: object = None


class TorchDType(Struct, frozen=True):
    """torch's name of a dtype, without the module."""

    name: str


class StorageType(Struct, frozen=True):
    """A class of storages; `dtype` is None where a storage is plain bytes."""

    dtype: str | None


class Storage(Struct, frozen=True):
    """A block of memory that tensors are views of.

    Attributes:
        key: the name of its data in the file.
        dtype: torch's name of the dtype, None for plain bytes.
        size: elements of that dtype, or bytes.
    """

    key: str
    dtype: str | None
    size: int


class Tensor(Struct, frozen=True):
    """A view of a storage: offset, shape and strides in elements, and torch's name of the dtype."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


class Unreadable(Struct, frozen=True):
    """A tensor that is none of plain bytes; `reason` says what it is instead."""

    reason: str


class Other(Struct, frozen=True):
    """A value that is of no interest, such as a device: what it is, for messages."""

    what: str
