"""The CRC-32 of bytes that pass by in pieces, in any order and on several threads."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Final

try:
    from zlib_ng.zlib_ng import crc32
except ImportError:  # there are wheels for the usual machines only; the standard library's takes ten times as long
    from zlib import crc32

__all__ = ["PiecewiseCrc", "combine", "crc32"]

_POLYNOMIAL: Final = 0xEDB88320
_ONE: Final = 1 << 31
_MAX_PIECES: Final = 4096
"""Pieces that don't touch, of one block of bytes, which are kept: what is read more raggedly is read again instead."""


class PiecewiseCrc:
    """Adds up the CRC of `nbytes` bytes from pieces that are given once each."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._lock = threading.Lock()
        self._pieces: dict[int, tuple[int, int]] = {}
        self._added = 0
        self._torn = False

    @property
    def torn(self) -> bool:
        """Whether pieces overlapped, or were too many, so that no sum can be made of them."""
        return self._torn

    def add(self, offset: int, data: memoryview) -> int | None:
        """Take the bytes from `offset` on; gives the CRC of all once they are complete, else None."""
        crc = crc32(data)
        with self._lock:
            if self._torn or not data.nbytes:
                return None
            start, end = offset, offset + data.nbytes
            if end in self._pieces:
                self._torn = True
                return None
            if offset in self._pieces:
                start, before = self._pieces.pop(offset)
                crc = combine(before, crc, data.nbytes)
            self._pieces[end] = start, crc
            self._added += data.nbytes
            if len(self._pieces) > _MAX_PIECES:
                self._torn = True
                self._pieces.clear()
            return self._total() if self._added >= self.nbytes else None

    def _total(self) -> int | None:
        total = position = 0
        for end in sorted(self._pieces):
            start, crc = self._pieces[end]
            if start != position:
                self._torn = True
                return None
            total = combine(total, crc, end - start)
            position = end
        return total


def combine(first: int, second: int, second_nbytes: int) -> int:
    """The CRC-32 of two blocks of bytes, one after the other, from those of each.

    Appending bytes multiplies the polynomial that a CRC is by `x` to the power of their bits, modulo the generator.
    """
    return _multiply(_power_of_x(second_nbytes), first) ^ second


@lru_cache(maxsize=1024)
def _power_of_x(nbytes: int) -> int:
    """`x ** (8 * nbytes)` modulo the generator; the highest bit is the constant term, as in the CRC itself."""
    power, square = _ONE, _ONE >> 8
    while nbytes:
        if nbytes & 1:
            power = _multiply(square, power)
        square = _multiply(square, square)
        nbytes >>= 1
    return power


def _multiply(first: int, second: int) -> int:
    product = 0
    while first:
        if first & _ONE:
            product ^= second
        first = (first << 1) & 0xFFFFFFFF
        second = (second >> 1) ^ (_POLYNOMIAL if second & 1 else 0)
    return product
