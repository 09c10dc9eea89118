"""Writes checkpoints that `torch.distributed.checkpoint.load` reads, without torch: `.metadata` and `.distcp` files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from converters.errors import CheckpointError, OutputError, Problem
from converters.sharding import Shard
from converters.storage.base import DEFAULT_WRITE_OPTIONS, FileHeader, WriteOptions
from converters.storage.dcp_metadata import parse_metadata
from converters.storage.dcp_metadata_writer import StoredTensor, write_metadata
from converters.storage.dcp_reader import DcpReader
from converters.storage.files import write_new_file
from converters.storage.formats import METADATA
from converters.storage.open_shard import Pieces
from converters.storage.shard_writer import ShardWriter
from converters.storage.torch_layout import TorchLayout
from converters.storage.torch_pickle_writer import write_tensor_pickle
from converters.text import printable


class DcpWriter(ShardWriter):
    """Writes a distributed checkpoint: each shard is a `.distcp` file, each tensor one chunk in it."""

    def __init__(
        self, directory: Path, shards: Sequence[Shard], *, options: WriteOptions = DEFAULT_WRITE_OPTIONS
    ) -> None:
        """Lay out all shards; nothing is written yet.

        Args:
            directory: where the files go.
            shards: the files, as `split_into_shards` gives them.
            options: whether to flush, and which digests to make.

        Raises:
            OutputError: there are no shards, torch has no such dtype, or two shards have a tensor or name in common.
        """
        self._places = [_Layout(shard) for shard in shards]
        super().__init__(directory, shards, self._places, METADATA, options)

    def finish(self) -> Sequence[Path]:
        """Write `.metadata`; read everything again, and compare it with the plan.

        Raises:
            OutputError: a shard is not finished, writing failed, or what is on the disk is not what was planned.
        """
        files = self._finished_files()
        path = self._directory / METADATA
        stored = [each for layout in self._places for each in layout.stored]
        content = write_metadata(stored)
        write_new_file(path, content, sync=self._options.sync)
        where = printable(str(path))
        try:
            metadata = parse_metadata(content, where)
            with DcpReader(self._directory, metadata, {file.name: file for file in files}) as reader:
                written = dict(reader.tensors)
        except CheckpointError as error:
            raise OutputError(error.problems) from error
        planned = {each.info.name: each.info for each in stored}
        if written != planned:
            different = [name for name, info in planned.items() if written.get(name) != info]
            raise OutputError(
                Problem("it is not on the disk as it was planned", f"{where}: {printable(name)}") for name in different
            )
        return [*files, path]

    def read_headers(self, files: Mapping[str, Path]) -> Mapping[str, FileHeader]:
        """A `.distcp` file has no header; `finish` reads `.metadata` instead."""
        raise NotImplementedError


class _Layout:
    """Lays out one file: an archive of `torch.save` for each tensor, one after the other."""

    def __init__(self, shard: Shard) -> None:
        self.file_nbytes = 0
        self.stored: list[StoredTensor] = []
        self._archives: dict[str, TorchLayout] = {}
        for info in shard.tensors:
            archive = TorchLayout(Shard("archive", (info,)), pickle=write_tensor_pickle(info), base=self.file_nbytes)
            self._archives[info.name] = archive
            self.stored.append(StoredTensor(info, shard.filename, self.file_nbytes, archive.file_nbytes))
            self.file_nbytes += archive.file_nbytes

    def position(self, name: str) -> int:
        return self._archives[name].position(name)

    def before(self) -> Pieces:
        for archive in self._archives.values():
            yield from archive.before()

    def passed(self, name: str, offset: int, data: memoryview) -> None:
        self._archives[name].passed(name, offset, data)

    def after(self, descriptor: int, where: str) -> Pieces:
        for archive in self._archives.values():
            yield from archive.after(descriptor, where)

    def differs(self, header: FileHeader) -> bool:
        raise NotImplementedError
