"""One pass over a file, in order: its digest, that of each tensor in it, and whether it holds what was written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Generic, Self, TypeVar

import xxhash
from msgspec import Struct
from msgspec.structs import replace

from converters.digests import Hasher, digest_text, make_hasher

CHUNK: Final = 256 << 10
"""Bytes that are read at once: they stay in cache while they are hashed."""

Piece = tuple[int, int, int | None]
"""First byte, last byte plus one, and `piece_digest` of what was written; None where it never passed through memory."""

H = TypeVar("H", bound=Hasher)

ReadInto = Callable[[int, memoryview], None]
"""Fills a buffer with the bytes of a file from a position on."""


class Extent(Struct, frozen=True):
    """Where a tensor lies in its file, and the digest of these bytes (empty where it isn't known yet)."""

    name: str
    start: int
    end: int
    digest: str = ""


class FileDigests(Struct, frozen=True):
    """What a file holds.

    Attributes:
        file: its name, relative to the checkpoint.
        nbytes: its size.
        digest: of all its bytes; None where none was wanted.
        tensors: those in it, in the order of their bytes; each with its digest.
    """

    file: str
    nbytes: int
    digest: str | None
    tensors: tuple[Extent, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` reads it back."""
        tensors = {extent.name: [extent.start, extent.end, extent.digest] for extent in self.tensors}
        return {"file": self.file, "nbytes": self.nbytes, "digest": self.digest, "tensors": tensors}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What `to_json` gave.

        Raises:
            ValueError, KeyError, TypeError: it is something else.
        """
        tensors = (Extent(name, start, end, digest) for name, (start, end, digest) in data["tensors"].items())
        return cls(data["file"], data["nbytes"], data["digest"], tuple(tensors))


class _SpanHasher(Generic[H]):
    """Hashes spans of a file, which are in order and don't overlap, while its bytes pass."""

    def __init__(self, spans: Sequence[tuple[int, int, object]], make: Callable[[], H]) -> None:
        self._spans = spans
        self._make = make
        self._number = 0
        self._hasher = make()

    def take(self, position: int, data: memoryview) -> Iterator[tuple[int, H]]:
        """Take the file's bytes from `position` on; gives the number and the hasher of each span that they end."""
        stop = position + len(data)
        while self._number < len(self._spans):
            start, end, _ = self._spans[self._number]
            if stop <= start < end:
                return
            self._hasher.update(data[max(start - position, 0) : max(end - position, 0)])
            if end > stop:
                return
            yield self._number, self._hasher
            self._number += 1
            self._hasher = self._make()


def digest_file(
    file: str,
    nbytes: int,
    read_into: ReadInto,
    extents: Sequence[Extent],
    algorithm: str,
    *,
    pieces: Sequence[Piece] = (),
    passed: Callable[[int], None] = lambda _: None,
) -> tuple[FileDigests, int | None]:
    """Read a file once, from its beginning to its end.

    Args:
        file: its name, as the result has it.
        nbytes: its size.
        read_into: reads it.
        extents: the tensors in it, which don't overlap.
        algorithm: one of `converters.digests.ALGORITHMS`.
        pieces: what was written, in order; it may grow by what `read_into` gives.
        passed: called with the number of bytes just read; may raise to end the pass.

    Returns:
        The digests, and the position of the first piece that isn't what was written; None where all are.

    Raises:
        WeightmapError: what `read_into` raises.
    """
    ordered = sorted(extents, key=lambda extent: (extent.start, extent.end))
    whole = make_hasher(algorithm)
    tensors = _SpanHasher([(extent.start, extent.end, None) for extent in ordered], lambda: make_hasher(algorithm))
    written = _SpanHasher(pieces, xxhash.xxh3_64)
    found: list[Extent] = []
    wrong: int | None = None
    buffer = memoryview(bytearray(min(CHUNK, nbytes)))
    for position in range(0, nbytes, CHUNK):
        data = buffer[: min(CHUNK, nbytes - position)]
        read_into(position, data)
        whole.update(data)
        for number, hasher in tensors.take(position, data):
            found.append(replace(ordered[number], digest=digest_text(algorithm, hasher)))
        for number, piece in written.take(position, data):
            if wrong is None and pieces[number][2] not in {None, piece.intdigest()}:
                wrong = pieces[number][0]
        passed(len(data))
    if not nbytes:
        found += [
            replace(each, digest=digest_text(algorithm, make_hasher(algorithm))) for each in ordered if not each.end
        ]
    return FileDigests(file, nbytes, digest_text(algorithm, whole), tuple(found)), wrong
