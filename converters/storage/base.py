"""The two small protocols that every checkpoint format implements; the engine knows nothing else of formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from converters.errors import Problem
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


class CheckpointWriter(Protocol):
    """Writes one checkpoint, whose tensors and shards are known beforehand, into a directory."""

    def write_from(self, name: str, offset: int, data: memoryview) -> None:
        """Write `data` at `offset` of the tensor's bytes; safe to call from several threads."""
        ...

    def start_shard(self, shard: int) -> None:
        """Create the shard's file and write its header; call before any `write_from` into it."""
        ...

    def finish_shard(self, shard: int) -> None:
        """Flush the shard to disk (fsync) and close it; call once all of its tensors are written."""
        ...

    def finish(self) -> Sequence[Path]:
        """Write the index, if there is one, check that it agrees with the headers as written; return all files."""
        ...

    def abort(self) -> None:
        """Close every open file without finishing it."""
        ...
