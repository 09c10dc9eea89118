"""Which writer writes a checkpoint: its files' names tell the format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from converters.errors import OutputError
from converters.sharding import Shard, index_filename
from converters.storage.base import DEFAULT_WRITE_OPTIONS, CheckpointWriter, WriteOptions
from converters.storage.formats import DISTRIBUTED, TORCH_SUFFIXES
from converters.storage.parts import PartsWriter
from converters.storage.safetensors import SafetensorsWriter
from converters.storage.shard_names import shard_family


def open_writer(
    directory: Path, shards: Sequence[Shard], options: WriteOptions = DEFAULT_WRITE_OPTIONS
) -> CheckpointWriter:
    """Make the writer of these shards, whose files all have one format unless they belong to parts.

    Raises:
        OutputError: there are no shards, or a tensor can't be stored in their format.
    """
    if any(shard.part for shard in shards):
        _check_folders(shards)
        return PartsWriter(directory, shards, open_writer, options)
    first = PurePosixPath(shards[0].filename) if shards else PurePosixPath("model.safetensors")
    family = shard_family(first.name) or first.stem
    index_name = index_filename(family, first.suffix)
    if first.suffix == DISTRIBUTED:
        from converters.storage.dcp_writer import DcpWriter

        return DcpWriter(directory, shards, options=options)
    if first.suffix in TORCH_SUFFIXES:
        from converters.storage.torch_writer import TorchWriter

        return TorchWriter(directory, shards, index_name=index_name, options=options)
    return SafetensorsWriter(directory, shards, index_name=index_name, options=options)


def _check_folders(shards: Sequence[Shard]) -> None:
    """Check that no two parts would be one distributed checkpoint, since a folder is one.

    Raises:
        OutputError: two would.
    """
    parts: dict[PurePosixPath, str] = {}
    for shard in shards:
        path = PurePosixPath(shard.filename)
        if path.suffix == DISTRIBUTED and parts.setdefault(path.parent, shard.part) != shard.part:
            raise OutputError(
                f"the parts {parts[path.parent]} and {shard.part} would be one distributed checkpoint, since they lie "
                "in one directory",
                hint="Write another format, such as --format safetensors.",
            )
