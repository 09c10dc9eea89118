"""Digests of bytes, as text that names its algorithm: what a manifest records of files and tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol

import xxhash

ALGORITHMS = ("xxh3", "sha256")
"""`xxh3` (XXH3 of 128 bits, as `xxhsum -H2` prints it) finds accidents at memory speed; `sha256` finds intent, too."""

DEFAULT_ALGORITHM = "xxh3"

MEMORY_SPEED = frozenset({"xxh3"})
"""Those that no reading or writing has to wait for."""


class Hasher(Protocol):
    """Takes bytes in order."""

    def update(self, data: memoryview | bytes | bytearray, /) -> None:
        """Take the next bytes."""
        ...

    def hexdigest(self) -> str:
        """The digest of all bytes so far."""
        ...


def make_hasher(algorithm: str) -> Hasher:
    """A hasher that has taken nothing yet.

    Raises:
        ValueError: there is no such algorithm.
    """
    if algorithm == "xxh3":
        hasher: Hasher = xxhash.xxh3_128()
        return hasher
    if algorithm == "sha256":
        return hashlib.sha256()
    raise ValueError(f"there is no digest {algorithm!r}, only {' and '.join(ALGORITHMS)}")


def digest_text(algorithm: str, hasher: Hasher) -> str:
    """A digest as manifests hold it, such as `xxh3:99aa06d3014798d86001c324468d497f`."""
    return f"{algorithm}:{hasher.hexdigest()}"


def digest_of(parts: Iterable[bytes | memoryview], algorithm: str = DEFAULT_ALGORITHM) -> str:
    """The digest of bytes in memory, part by part."""
    hasher = make_hasher(algorithm)
    for part in parts:
        hasher.update(part)
    return digest_text(algorithm, hasher)


def piece_digest(data: memoryview | bytes) -> int:
    """64 bits that tell a piece from nearly any other of its length."""
    return xxhash.xxh3_64_intdigest(data)
