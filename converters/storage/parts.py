"""A checkpoint of several files that each have a place of their own, as one reader and one writer; see `parts.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from msgspec.structs import replace

from converters.errors import CheckpointError, Problem
from converters.parts import SEPARATOR, Part, split_key
from converters.sharding import DEFAULT_SUFFIX, Shard
from converters.spec import Side
from converters.storage.base import CheckpointReader, CheckpointWriter, Closing, OpenFile, RangeWriter, WriteOptions
from converters.storage.checkpoint import open_checkpoint
from converters.storage.file_digests import FileDigests
from converters.storage.reflink import Place, SharingWriter
from converters.tensor_info import TensorInfo
from converters.text import printable

_INDEX = ".index.json"


def open_side(path: Path, side: Side) -> CheckpointReader:
    """Open a checkpoint of a layout: a file, or a directory, whose weights are in the files that the side names.

    A part that has been sharded, or saved with another suffix, is found as well. What is in a single piece is read as
    part 0 where the parts have numbers, and that is noted.

    Raises:
        CheckpointError: nothing is there, or a file is damaged; all problems at once.
    """
    parts = side.files
    if side.file and (path / side.file).exists():
        return open_checkpoint(path / side.file)
    if not parts or not path.exists():
        return open_checkpoint(path)
    found = dict(_find(path, parts)) if path.is_dir() else {}
    if not found and path.is_file() and (siblings := dict(_find(path.parent, parts))):
        others = [name for name in siblings.values() if name != path]
        if others:
            raise CheckpointError(
                f"this is one part of {len(siblings)}; {printable(others[0].name)} is another",
                printable(str(path)),
                f"give the directory that holds all of them: {printable(str(path.parent))}",
            )
    if not found and not any(part.numbered for part in parts):
        expected = ", ".join(part.file_text for part in parts)
        raise CheckpointError(f"none of {expected} is here", printable(str(path)), "give the directory that holds them")
    readers: dict[str, CheckpointReader] = {}
    with ExitStack() as stack:
        problems: list[Problem] = []
        for label, file in (found or {"0": path}).items():
            try:
                readers[label] = stack.enter_context(open_checkpoint(file))
            except CheckpointError as error:
                problems.extend(error.problems)
        if problems:
            raise CheckpointError(problems)
        stack.pop_all()
    if found:
        return PartsReader(path, readers)
    return _in_one_piece(path, parts, readers["0"])


def _in_one_piece(path: Path, parts: Sequence[Part], reader: CheckpointReader) -> CheckpointReader:
    expected = next(part.file_text for part in parts if part.numbered)
    note = f"no {expected} is here, so all of it is taken for the only part"
    return PartsReader(path, {"0": reader}, (Problem(note, printable(str(path))),))


def _find(directory: Path, parts: Sequence[Part]) -> Iterator[tuple[str, Path]]:
    """The label and the file, or the index, of each part that is there, in the order of the labels."""
    for part in parts:
        folder = directory / PurePosixPath(part.before + "x").parent
        depth = part.after.count("/")
        names = sorted(file.relative_to(folder).as_posix() for file in folder.glob("*/" * depth + "*"))
        here: dict[str, list[str]] = {}
        for name in names:
            file = f"{part.directory}/{name}" if part.directory else name
            label = part.label_of(file.removesuffix(_INDEX))
            if label is not None:
                here.setdefault(label, []).append(name)
        for label in sorted(here, key=lambda text: (len(text), text)):
            safetensors = (DEFAULT_SUFFIX, f"{DEFAULT_SUFFIX}{_INDEX}")
            chosen = [name for name in here[label] if name.endswith(safetensors)] or here[label]
            if len(chosen) > 1:
                raise CheckpointError(
                    f"ambiguous: {', '.join(map(printable, chosen))} are all the part {label}",
                    printable(str(folder)),
                    "keep the one that you mean",
                )
            yield label, folder / chosen[0]


class PartsReader(Closing):
    """Several opened checkpoints as one, whose keys begin with their labels."""

    def __init__(self, path: Path, readers: Mapping[str, CheckpointReader], notes: Sequence[Problem] = ()) -> None:
        self.path = path
        self.readers = readers
        self.notes = (*notes, *(note for reader in readers.values() for note in reader.notes))
        self.tensors: dict[str, TensorInfo] = {}
        self.file_of: dict[str, str] = {}
        self.files: dict[str, OpenFile] = {}
        for label, reader in readers.items():
            root = reader.path if reader.path.is_dir() else reader.path.parent
            folder = root.relative_to(path) if path.is_dir() else Path()
            self.files.update({(folder / name).as_posix(): file for name, file in reader.files.items()})
            for name, info in reader.tensors.items():
                key = f"{label}{SEPARATOR}{name}"
                self.tensors[key] = replace(info, name=key)
                self.file_of[key] = (folder / reader.file_of[name]).as_posix()

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """See `CheckpointReader`."""
        label, inner = split_key(name)
        self.readers[label].read_into(inner, offset, buffer)

    def check_unchanged(self) -> None:
        """See `CheckpointReader`."""
        for reader in self.readers.values():
            reader.check_unchanged()

    def close(self) -> None:
        """Close all of them."""
        for reader in self.readers.values():
            reader.close()


class PartsWriter:
    """Writes each part with a writer of its own; `shards` are those of all parts."""

    def __init__(
        self,
        directory: Path,
        shards: Sequence[Shard],
        open_writer: Callable[[Path, Sequence[Shard], WriteOptions], CheckpointWriter],
        options: WriteOptions,
    ) -> None:
        self._filenames = [shard.filename for shard in shards]
        self._writers: dict[str, CheckpointWriter] = {}
        self._place: list[tuple[str, int]] = []
        by_part: dict[str, list[Shard]] = {}
        for shard in shards:
            own = by_part.setdefault(shard.part, [])
            self._place.append((shard.part, len(own)))
            tensors = tuple(replace(info, name=split_key(info.name)[1]) for info in shard.tensors)
            own.append(replace(shard, filename=PurePosixPath(shard.filename).name, tensors=tensors, part=""))
            (directory / shard.filename).parent.mkdir(parents=True, exist_ok=True)
        for shard in shards:
            if shard.part not in self._writers:
                folder = (directory / shard.filename).parent
                self._writers[shard.part] = open_writer(folder, by_part[shard.part], options)

    def start_shard(self, shard: int) -> None:
        """See `CheckpointWriter`."""
        part, number = self._place[shard]
        self._writers[part].start_shard(number)

    def open_range(self, name: str, offset: int, nbytes: int) -> RangeWriter:
        """See `RangesWriter`."""
        part, inner = split_key(name)
        return self._writers[part].open_range(inner, offset, nbytes)

    def write_from(self, name: str, offset: int, data: memoryview) -> None:
        """See `CheckpointWriter`."""
        part, inner = split_key(name)
        self._writers[part].write_from(inner, offset, data)

    def share_from(self, name: str, offset: int, nbytes: int, source: Place) -> tuple[int, int]:
        """See `SharingWriter`."""
        part, inner = split_key(name)
        writer = self._writers[part]
        return writer.share_from(inner, offset, nbytes, source) if isinstance(writer, SharingWriter) else (0, 0)

    def finish_shard(self, shard: int) -> FileDigests | None:
        """See `CheckpointWriter`."""
        part, number = self._place[shard]
        found = self._writers[part].finish_shard(number)
        if found is None:
            return None
        tensors = (replace(extent, name=f"{part}{SEPARATOR}{extent.name}") for extent in found.tensors)
        return replace(found, file=self._filenames[shard], tensors=tuple(tensors))

    def keep_shard(self, shard: int) -> None:
        """See `CheckpointWriter`."""
        part, number = self._place[shard]
        self._writers[part].keep_shard(number)

    def finish(self) -> Sequence[Path]:
        """See `CheckpointWriter`."""
        return [path for writer in self._writers.values() for path in writer.finish()]

    def stop(self) -> None:
        """See `CheckpointWriter`."""
        for writer in self._writers.values():
            writer.stop()

    def abort(self) -> None:
        """See `CheckpointWriter`."""
        for writer in self._writers.values():
            writer.abort()
