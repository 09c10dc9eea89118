"""Writes checkpoints in safetensors files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from converters.sharding import Shard, index_filename
from converters.storage.base import DEFAULT_WRITE_OPTIONS, FileHeader, WriteOptions
from converters.storage.open_shard import Pieces
from converters.storage.reflink import Place, Reflinks
from converters.storage.safetensors_header import PT_METADATA, build_header
from converters.storage.safetensors_reader import SafetensorsReader
from converters.storage.shard_writer import ShardWriter


class SafetensorsWriter(ShardWriter):
    """Writes safetensors files, whose tensors are known beforehand, into a directory that exists already."""

    def __init__(
        self,
        directory: Path,
        shards: Sequence[Shard],
        *,
        index_name: str = index_filename(),
        metadata: Mapping[str, str] = PT_METADATA,
        options: WriteOptions = DEFAULT_WRITE_OPTIONS,
    ) -> None:
        """Lay out all shards; nothing is written yet.

        Args:
            directory: where the files go.
            shards: the files, as `split_into_shards` gives them.
            index_name: the name of the index, which is written if there are several shards.
            metadata: the free text in each shard's header.
            options: whether to flush, and which digests to make.

        Raises:
            OutputError: there are no shards, a tensor can't be stored, or two shards have a tensor or name in common.
        """
        super().__init__(directory, shards, [_Layout(shard, metadata) for shard in shards], index_name, options)
        self._reflinks = Reflinks()

    def share_from(self, name: str, offset: int, nbytes: int, source: Place) -> tuple[int, int]:
        """See `SharingWriter`; what is shared counts as written."""
        return self._shard_with(name).share(name, offset, nbytes, source, self._reflinks)

    def read_headers(self, files: Mapping[str, Path]) -> Mapping[str, FileHeader]:
        """Read the header of each file, by name.

        Raises:
            CheckpointError: a file is not valid.
        """
        with SafetensorsReader(self._directory, files) as reader:
            return reader.headers


class _Layout:
    def __init__(self, shard: Shard, metadata: Mapping[str, str]) -> None:
        self._start, self._header = build_header(shard.tensors, metadata, shard.data_phase)
        self.file_nbytes = self._header.file_nbytes

    def position(self, name: str) -> int:
        return self._header.data_start + self._header.offsets[name]

    def before(self) -> Pieces:
        return [(0, self._start)]

    def passed(self, name: str, offset: int, data: memoryview) -> None:
        """Nothing is kept of what was written."""

    def after(self, descriptor: int, where: str) -> Pieces:
        del descriptor, where  # the header came first
        return []

    def differs(self, header: FileHeader) -> bool:
        return header != self._header
