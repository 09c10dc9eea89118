"""The two small protocols that every checkpoint format implements; the engine knows nothing else of formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from msgspec import Struct

from converters.digests import DEFAULT_ALGORITHM
from converters.errors import Problem
from converters.storage.file_digests import FileDigests
from converters.tensor_info import TensorInfo


class FileHeader(Protocol):
    """What one file of a checkpoint says of itself."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor in it, by name."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """The free text that it carries."""
        ...

    @property
    def data_nbytes(self) -> int:
        """Bytes of all its tensors together."""
        ...

    @property
    def file_nbytes(self) -> int:
        """Bytes of the whole file."""
        ...


class OpenFile(Protocol):
    """A file that is open for reading, wherever it is."""

    @property
    def nbytes(self) -> int:
        """Its size when it was opened."""
        ...

    @property
    def identity(self) -> str:
        """What tells it from its replacement, or from a changed version of itself: inode and times, or an ETag."""
        ...

    @property
    def is_local(self) -> bool:
        """Whether reading it costs no transfer."""
        ...

    def read_into(self, position: int, buffer: memoryview) -> None:
        """Fill a buffer of bytes from `position` on; safe to call from several threads."""
        ...

    def change(self) -> str | None:
        """What happened to the file since it was opened; None if nothing did."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


class WriteOptions(Struct, frozen=True):
    """How a checkpoint is written, whatever its format.

    Attributes:
        sync: whether each file is flushed to the disk; without it a power cut after success can lose the output.
        digest: the algorithm of the digests of files and tensors, for which each file is read back; None for none.
    """

    sync: bool = True
    digest: str | None = DEFAULT_ALGORITHM


DEFAULT_WRITE_OPTIONS = WriteOptions()


class CheckpointReader(Protocol):
    """An opened checkpoint: headers are read and checked on opening, tensor data only by `read_into`."""

    @property
    def path(self) -> Path:
        """What was opened: a file or a directory."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name, in the order of the files and of the data in them."""
        ...

    @property
    def file_of(self) -> Mapping[str, str]:
        """For each tensor, the name of the file (relative to `path`'s directory) that holds it."""
        ...

    @property
    def files(self) -> Mapping[str, OpenFile]:
        """The open files that hold tensors or say where they are, by name as in `file_of`."""
        ...

    @property
    def notes(self) -> Sequence[Problem]:
        """What the user should know, though nothing is wrong enough to refuse the checkpoint."""
        ...

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the tensor's bytes from `offset` on; safe to call from several threads.

        Raises:
            CheckpointError: the file was truncated or replaced since it was opened, or reading failed.
        """
        ...

    def check_unchanged(self) -> None:
        """Raise `CheckpointError` if any file's size, mtime or inode differs from when it was opened."""
        ...

    def close(self) -> None:
        """Close the files."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Closing:
    """Closes itself at the end of a `with` statement."""

    def close(self) -> None:
        """Close the files."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RangeWriter(Protocol):
    """Takes a range of a tensor's bytes; what is the same for all of them is looked up once."""

    def note(self, data: memoryview) -> None:
        """Take notice of the next bytes, from the first to the last of the range; by one thread at a time."""
        ...

    def write(self, place: int, data: memoryview) -> None:
        """Write bytes that were noted, to their place in the range; safe to call from several threads."""
        ...

    def close(self) -> None:
        """All bytes of the range are written; before that none of them counts."""
        ...


@runtime_checkable
class RangesWriter(Protocol):
    """A writer that takes ranges."""

    def open_range(self, name: str, offset: int, nbytes: int) -> RangeWriter:
        """Begin to write `nbytes` bytes of a tensor, from byte `offset` on; safe to call from several threads.

        Raises:
            OutputError: there is no room for them.
        """
        ...


class CheckpointWriter(RangesWriter, Protocol):
    """Writes one checkpoint, whose tensors and shards are known beforehand, into a directory."""

    def write_from(self, name: str, offset: int, data: memoryview) -> None:
        """Write `data` at `offset` of the tensor's bytes; safe to call from several threads."""
        ...

    def start_shard(self, shard: int) -> None:
        """Create the shard's file and write its header; call before any `write_from` into it."""
        ...

    def finish_shard(self, shard: int) -> FileDigests | None:
        """Flush the shard to disk (fsync) and close it; call once all of its tensors are written.

        Returns:
            What the file holds, if digests are wanted.
        """
        ...

    def keep_shard(self, shard: int) -> None:
        """Take a shard that is there already for finished, instead of writing it."""
        ...

    def finish(self) -> Sequence[Path]:
        """Write the index, if there is one, check that it agrees with the headers as written; return all files."""
        ...

    def stop(self) -> None:
        """Let what runs end early, with an error; `abort` follows once it has."""
        ...

    def abort(self) -> None:
        """Close every open file without finishing it."""
        ...
