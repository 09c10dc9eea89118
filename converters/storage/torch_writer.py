"""Writes checkpoints in files of `torch.save`, without torch; `torch.load` reads them, with `mmap=True` in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from converters.sharding import Shard, index_filename
from converters.storage.base import DEFAULT_WRITE_OPTIONS, FileHeader, WriteOptions
from converters.storage.shard_writer import ShardWriter
from converters.storage.torch_layout import TorchLayout
from converters.storage.torch_reader import TorchReader


class TorchWriter(ShardWriter):
    """Writes files of `torch.save`, whose tensors are known beforehand, into a directory that exists already."""

    def __init__(
        self,
        directory: Path,
        shards: Sequence[Shard],
        *,
        index_name: str = index_filename("pytorch_model", ".bin"),
        options: WriteOptions = DEFAULT_WRITE_OPTIONS,
    ) -> None:
        """Lay out all shards; nothing is written yet.

        Args:
            directory: where the files go.
            shards: the files, as `split_into_shards` gives them.
            index_name: the name of the index, which is written if there are several shards.
            options: whether to flush, and which digests to make.

        Raises:
            OutputError: there are no shards, torch has no such dtype, or two shards have a tensor or name in common.
        """
        super().__init__(directory, shards, [TorchLayout(shard) for shard in shards], index_name, options)

    def read_headers(self, files: Mapping[str, Path]) -> Mapping[str, FileHeader]:
        """Read the header of each file, by name.

        Raises:
            CheckpointError: a file is not valid.
        """
        with TorchReader(self._directory, files) as reader:
            return reader.headers
