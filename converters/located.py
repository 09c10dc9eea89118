"""Data that was read from a text file, compared by what it says."""

from __future__ import annotations

from typing import ClassVar

from msgspec import Struct


class Located(Struct, frozen=True):
    """Two are equal if they say the same, wherever each of them stands.

    Attributes:
        NOT_COMPARED: the fields that say where it comes from.
    """

    NOT_COMPARED: ClassVar[frozenset[str]] = frozenset({"location"})

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._said() == other._said()

    def __hash__(self) -> int:
        return hash(self._said())

    def _said(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__struct_fields__ if name not in self.NOT_COMPARED)
