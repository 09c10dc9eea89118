"""What the writers of all formats have in common: shards of known sizes, filled in any order, flushed and read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from converters.errors import CheckpointError, OutputError, Problem
from converters.sharding import Shard
from converters.storage.base import DEFAULT_WRITE_OPTIONS, FileHeader, WriteOptions
from converters.storage.file_digests import FileDigests
from converters.storage.files import write_new_file
from converters.storage.open_files import byte_view
from converters.storage.open_shard import FileLayout, OpenShard, RangeWriter
from converters.storage.safetensors_index import SafetensorsIndex, build_index, compare_with_headers
from converters.tensor_info import TensorInfo
from converters.text import printable


class ShardWriter:
    """Writes shards, whose tensors are known beforehand, into a directory that exists already.

    Shards can be written in any order and by several threads. Nothing that exists is ever overwritten, and a shard
    counts as written only once it is flushed to the disk.
    """

    def __init__(
        self,
        directory: Path,
        shards: Sequence[Shard],
        layouts: Sequence[FileLayout],
        index_name: str,
        options: WriteOptions = DEFAULT_WRITE_OPTIONS,
    ) -> None:
        """Nothing is written yet.

        Args:
            directory: where the files go.
            shards: the files, as `split_into_shards` gives them.
            layouts: the layout of each of them.
            index_name: the name of the index, which is written if there are several shards.
            options: whether to flush, and which digests to make.

        Raises:
            OutputError: there are no shards, or two of them have a tensor or name in common.
        """
        if not shards:
            raise OutputError(
                "there is nothing to write: the checkpoint would have no tensors", printable(str(directory))
            )
        self._directory = directory
        self._shards = tuple(shards)
        self._layouts = tuple(layouts)
        self._index_name = index_name
        self._options = options
        self._shard_of = _place_tensors(self._shards)
        self._open: dict[int, OpenShard] = {}
        self._finished: set[int] = set()

    def start_shard(self, shard: int) -> None:
        """Create the file of the shard with this number, counted from zero, in its final size, and write its header.

        Raises:
            OutputError: the file exists already, or writing failed.
        """
        self._open[shard] = OpenShard(self._path(shard), self._shards[shard], self._layouts[shard], self._options)

    def open_range(self, name: str, offset: int, nbytes: int) -> RangeWriter:
        """See `RangesWriter`; safe to call from several threads.

        Raises:
            OutputError: the disk is full.
            ValueError: the range is outside of the tensor, or its shard is not open.
        """
        return self._shard_with(name).open_range(name, offset, nbytes)

    def write_from(self, name: str, offset: int, data: memoryview) -> None:
        """Write `data` from byte `offset` of the tensor on; safe to call from several threads.

        Raises:
            OutputError: the disk is full, or writing failed.
            ValueError: the range is outside of the tensor, or its shard is not open.
        """
        writer, data = self.open_range(name, offset, data.nbytes), byte_view(data)
        writer.note(data)
        writer.write(0, data)
        writer.close()

    def finish_shard(self, shard: int) -> FileDigests | None:
        """Write what follows the tensors, read the file back by digest, flush it to the disk and close it.

        Returns:
            What the file holds, if digests are wanted.

        Raises:
            OutputError: bytes of a tensor were never written, or written twice, or flushing failed; the shard can't
                be finished any more then.
        """
        opened = self._open.pop(shard, None)
        if opened is None:
            raise ValueError(f"{self._shards[shard].filename} is not open for writing")
        found = opened.finish()
        self._finished.add(shard)
        return found

    def keep_shard(self, shard: int) -> None:
        """Take a shard that is there already for finished; `finish` checks its header like that of any other."""
        self._finished.add(shard)

    def finish(self) -> Sequence[Path]:
        """Write the index, if there is one; read all files again, and compare them with the plan.

        Raises:
            OutputError: a shard is not finished, writing failed, or what is on the disk is not what was planned.
        """
        paths = self._finished_files()
        index: SafetensorsIndex | None = None
        if len(self._shards) > 1:
            path = self._directory / self._index_name
            content, index = build_index(self._shards)
            write_new_file(path, content, sync=self._options.sync)
            paths.append(path)
        self._check_written(index)
        return paths

    def stop(self) -> None:
        """Let reading back end early, with an error."""
        for opened in list(self._open.values()):
            opened.stop()

    def abort(self) -> None:
        """Close all files that are still open, without finishing them."""
        while self._open:
            self._open.popitem()[1].close()

    def read_headers(self, files: Mapping[str, Path]) -> Mapping[str, FileHeader]:
        """Read the header of each file, by name.

        Raises:
            CheckpointError: a file is not valid.
        """
        raise NotImplementedError

    def _finished_files(self) -> list[Path]:
        if missing := [s.filename for number, s in enumerate(self._shards) if number not in self._finished]:
            raise OutputError(f"{len(missing)} shards were not finished: {', '.join(missing[:5])}")
        return [self._path(number) for number in range(len(self._shards))]

    def _shard_with(self, name: str) -> OpenShard:
        """The file that is open and has this tensor.

        Raises:
            ValueError: it isn't open.
        """
        shard, _ = self._shard_of[name]
        opened = self._open.get(shard)
        if opened is None:
            raise ValueError(f"{self._shards[shard].filename} is not open for writing")
        return opened

    def _check_written(self, index: SafetensorsIndex | None) -> None:
        files = {shard.filename: self._path(number) for number, shard in enumerate(self._shards)}
        try:
            written = self.read_headers(files)
        except CheckpointError as error:
            raise OutputError(error.problems) from error
        problems = [
            Problem("its header on the disk is not the one that was written", printable(str(self._path(number))))
            for number, shard in enumerate(self._shards)
            if self._layouts[number].differs(written[shard.filename])
        ]
        if index is not None:
            problems.extend(compare_with_headers(index, written, printable(str(self._directory / self._index_name))))
        if problems:
            raise OutputError(problems)

    def _path(self, shard: int) -> Path:
        return self._directory / self._shards[shard].filename


def _place_tensors(shards: Sequence[Shard]) -> dict[str, tuple[int, TensorInfo]]:
    shard_of: dict[str, tuple[int, TensorInfo]] = {}
    problems = []
    filenames: set[str] = set()
    for number, shard in enumerate(shards):
        if shard.filename in filenames:
            problems.append(Problem("two shards have this name", printable(shard.filename)))
        filenames.add(shard.filename)
        for info in shard.tensors:
            if info.name in shard_of:
                other = shards[shard_of[info.name][0]].filename
                problems.append(Problem(f"this tensor is in {other} and in {shard.filename}", printable(info.name)))
            shard_of[info.name] = (number, info)
    if problems:
        raise OutputError(problems)
    return shard_of
