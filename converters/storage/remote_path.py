"""Places that are no local files, as paths: a URL of an object store, or a repository of the Hub.

Whatever opens a checkpoint takes a `Path`, and asks it for little: its names, its parent, whether it is a directory and
what is in it. `RemotePath` answers these from a store, so that nothing else needs to know where the bytes are. It is
never made from what a file says, only from what the user or the caller wrote.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Generator, Mapping
from fnmatch import fnmatchcase
from pathlib import PosixPath
from typing import Any, Final, NoReturn, Protocol, Self

from msgspec import Struct

from converters.errors import CheckpointError
from converters.text import printable

HUB: Final = "hf"


class Entry(Struct, frozen=True):
    """What a store says of one place.

    Attributes:
        is_dir: whether it is a directory, or a common beginning of names that counts as one.
        nbytes: of a file.
        identity: what tells a file from its replacement, such as an ETag; all that the store knows.
    """

    is_dir: bool
    nbytes: int = 0
    identity: tuple[tuple[str, str], ...] = ()


class Store(Protocol):
    """What a `RemotePath` asks; keys are in the store's own terms."""

    def entry(self, key: str, *, fresh: bool = False) -> Entry | None:
        """What is at a place, None if nothing is; with `fresh` what is there now, whatever was known."""
        ...

    def names(self, key: str) -> list[str]:
        """The names in a directory."""
        ...

    def read(self, key: str, start: int, stop: int) -> bytes:
        """The bytes of a file from `start` to `stop`; may be fewer where the store misbehaves."""
        ...


class RemotePath(PosixPath):
    """`s3://bucket/model`, or `hf://OWNER/NAME@COMMIT/FILE`: a path that is asked of a store.

    It holds nothing but its text, so that what is made of it by `/` and `parent` is of the same kind.
    """

    __slots__ = ()

    def __str__(self) -> str:
        text = super().__str__()
        scheme, colon, rest = text.partition(":/")
        # A path has one slash where a URL has two.
        return f"{scheme}://{rest.lstrip('/')}" if colon and "/" not in scheme else text

    def __fspath__(self) -> str:
        raise CheckpointError(
            "this can be done with local files only", printable(str(self)), "Copy it here first, and give that."
        )

    @property
    def scheme(self) -> str:
        """Such as `s3`."""
        return self.parts[0].removesuffix(":")

    @property
    def is_repository(self) -> bool:
        """Whether it is in a repository of the Hub."""
        return self.scheme == HUB

    @property
    def inner(self) -> tuple[str, ...]:
        """The parts of a path in a repository of the Hub."""
        return self.parts[3:]

    def store(self) -> tuple[Store, str]:
        """The store that it is in, and the key that it has there.

        Raises:
            CheckpointError: what it needs isn't installed, or there is no such store.
        """
        if self.is_repository:
            from converters.storage.hub import repository

            return repository("/".join(self.parts[1:3])), "/".join(self.inner)
        from converters.storage.object_store import object_store

        return object_store(self.scheme), str(self)

    def entry(self, *, fresh: bool = False) -> Entry | None:
        """What is there; None if nothing is.

        Raises:
            CheckpointError: the store can't be reached, or refuses.
        """
        store, key = self.store()
        return store.entry(key, fresh=fresh)

    def exists(self, **_: Any) -> bool:  # noqa: ANN401 - a later Python's options
        """Whether anything is there."""
        return self.entry() is not None

    def is_dir(self, **_: Any) -> bool:  # noqa: ANN401 - as above
        """Whether a directory is there."""
        found = self.entry()
        return found is not None and found.is_dir

    def is_file(self, **_: Any) -> bool:  # noqa: ANN401 - as above
        """Whether a file is there."""
        found = self.entry()
        return found is not None and not found.is_dir

    def is_symlink(self) -> bool:
        """Stores have no links."""
        return False

    def stat(self, **_: Any) -> os.stat_result:  # noqa: ANN401 - as above
        """Kind and size; times are unknown.

        Raises:
            FileNotFoundError: nothing is there.
        """
        found = self.entry()
        if found is None:
            import errno

            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        mode = stat.S_IFDIR if found.is_dir else stat.S_IFREG
        return os.stat_result((mode, 0, 0, 1, 0, 0, found.nbytes, 0, 0, 0))

    def iterdir(self) -> Generator[Self, None, None]:
        """What is in the directory."""
        store, key = self.store()
        yield from (self / name for name in store.names(key))

    def glob(self, pattern: str, **_: Any) -> Generator[Self, None, None]:  # noqa: ANN401 - as above
        """What matches a pattern with `*` in some of its parts."""
        first, _slash, rest = pattern.partition("/")
        for entry in self.iterdir() if self.is_dir() else ():
            if fnmatchcase(entry.name, first):
                yield from entry.glob(rest) if rest else (entry,)

    def resolve(self, strict: bool = False) -> Self:  # noqa: ARG002, FBT001, FBT002 - pathlib's signature
        """Itself, without `..`."""
        parts: list[str] = []
        for part in self.parts:
            if part != "..":
                parts.append(part)
            elif parts:
                parts.pop()
        return type(self)("/".join(parts))

    def open(self, mode: str = "r", *_: Any, **__: Any) -> Any:  # noqa: ANN401 - as above
        """A stream of its bytes; for reading only."""
        from converters.storage.remote_file import RemoteStream

        if mode != "rb":
            self.__fspath__()
        return io.BufferedReader(RemoteStream(self))


def unreachable(error: BaseException, where: str, doing: str = "can't be read") -> NoReturn:
    """Say what a store's library said. Each has errors of its own kinds, so their names and first lines have to do."""
    if isinstance(error, CheckpointError):
        raise error
    first = str(error).strip().split("\n", 1)[0]
    said = f"{type(error).__name__}: {first}" if first else type(error).__name__
    raise CheckpointError(
        f"{doing}: {printable(said, 300)}", where, "Check the address, your access to it, and the network."
    ) from error


def missing_library(library: str, extra: str, where: str) -> NoReturn:
    """Say what to install."""
    raise CheckpointError(
        f"{library} is needed to read this, and isn't installed",
        where,
        f"Install it: pip install 'weightmap[{extra}]'.",
    ) from None


def identity_of(info: Mapping[str, Any], fields: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Those of a store's fields that tell a file from its replacement."""
    return tuple((field, str(info[field])) for field in fields if info.get(field) is not None)
