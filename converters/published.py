"""Checking a published directory against its manifest: files and tensors by digest, the index in both directions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, Final

from msgspec import Struct

from converters.digests import ALGORITHMS
from converters.errors import CheckpointError, Problem
from converters.manifest import MANIFEST, read_manifest
from converters.parts import SEPARATOR, WEIGHT_SUFFIXES
from converters.storage.checkpoint import open_checkpoint, resolve_member
from converters.storage.file_digests import Extent, FileDigests, digest_file
from converters.storage.open_files import open_file_at
from converters.storage.remote_path import RemotePath
from converters.storage.strict_json import describe
from converters.storage.unfinished import refuse_unfinished
from converters.text import printable

INDEX_SUFFIX: Final = ".index.json"

_LISTED: Final = 3
_DAMAGED: Final = "Fetch or convert it again; what is here isn't what was published."


class Checked(Struct, frozen=True):
    """What was found.

    Attributes:
        files: how many files were read and compared.
        tensors: how many tensors were compared.
        nbytes: how many bytes were read.
        problems: whatever differs from the manifest.
        notes: files that the manifest doesn't know, and that hold no weights and no index of them.
    """

    files: int
    tensors: int
    nbytes: int
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...]


class Published(Struct, frozen=True):
    """A directory, and what its manifest says of it.

    Attributes:
        directory: that `weightmap convert` made, here or in a store.
        outputs: the files that belong there.
        extents: for each file, the tensors in it.
    """

    directory: Path
    outputs: tuple[_Output, ...]
    extents: Mapping[str, Sequence[Extent]]

    @classmethod
    def open(cls, directory: Path) -> Published:
        """Read the manifest of a directory.

        Raises:
            CheckpointError: there is none, it can't be read, or it holds no digests.
        """
        if not isinstance(directory, RemotePath):
            refuse_unfinished(directory)
        manifest = read_manifest(directory)
        where = printable(str(directory / MANIFEST))
        try:
            outputs = tuple(_Output.of(entry) for entry in manifest["outputs"])
            extents = _extents(manifest["tensors"], {output.file: output for output in outputs})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"the manifest is damaged: {type(error).__name__}: {printable(str(error))}"
            raise CheckpointError(what, where, _DAMAGED) from None
        if twice := [file for file, count in Counter(output.file for output in outputs).items() if count > 1]:
            raise CheckpointError(f"the manifest is damaged: it has {printable(twice[0])} twice", where, _DAMAGED)
        if not outputs or not all(output.algorithm in ALGORITHMS for output in outputs):
            what = "the manifest holds no digests that this weightmap knows"
            raise CheckpointError(what, where, "Convert again, and not with --digest none.")
        return cls(directory, outputs, extents)

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(output.nbytes for output in self.outputs)

    def check(self, *, threads: int = 2, progress: Callable[[int], None] = lambda _: None) -> Checked:
        """Compare all files with their digests, and indexes with headers.

        Args:
            threads: files that are read at once.
            progress: called with the number of bytes just read, from several threads.
        """

        def check_one(output: _Output) -> list[Problem]:
            return _check_one(self.directory, output, self.extents.get(output.file, ()), progress)

        with ThreadPoolExecutor(threads, thread_name_prefix="weightmap-files") as pool:
            problems = [problem for found in pool.map(check_one, self.outputs) for problem in found]
        unknown = _unknown(self.directory, {output.file for output in self.outputs})
        weights = [name for name in unknown if name.endswith((*WEIGHT_SUFFIXES, INDEX_SUFFIX))]
        problems += [
            Problem(
                "is an index of weights, and the manifest doesn't know it"
                if name.endswith(INDEX_SUFFIX)
                else "holds weights, and the manifest doesn't know it",
                self._where(name),
                "Remove it.",
            )
            for name in weights
        ]
        if not problems:
            names = {extent.name: file for file, found in self.extents.items() for extent in found}
            indexes = (output for output in self.outputs if output.file.endswith(INDEX_SUFFIX))
            problems += [problem for index in indexes for problem in _check_index(self.directory, index, names)]
        notes = [
            Problem("the manifest doesn't know this file", self._where(name)) for name in unknown if name not in weights
        ]
        count = sum(map(len, self.extents.values()))
        return Checked(len(self.outputs), count, self.nbytes, tuple(problems), tuple(notes))

    def _where(self, name: str) -> str:
        return printable(str(self.directory / name))


class _Output(Struct, frozen=True):
    file: str
    nbytes: int
    digest: str
    algorithm: str

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> _Output:
        file, nbytes, digest = entry["file"], entry["nbytes"], entry.get("digest", "")
        if not (isinstance(file, str) and isinstance(digest, str) and type(nbytes) is int):
            raise TypeError(f"an output has a value of a wrong type: {describe(file)}")
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or "\0" in file or str(path) != file or file in {".", MANIFEST}:
            raise ValueError(f"{describe(file)} is no name of a file in this directory")
        return cls(file, nbytes, digest, digest.partition(":")[0])


def _extents(tensors: Mapping[str, Mapping[str, Any]], outputs: Mapping[str, _Output]) -> dict[str, list[Extent]]:
    """The tensors in each file, in the order of their bytes; they lie in the file, and apart."""
    extents: dict[str, list[Extent]] = {}
    for name, entry in tensors.items():
        if "digest" not in entry:
            continue
        (start, end), digest, output = entry["bytes"], entry["digest"], outputs.get(entry["file"])
        if output is None or not isinstance(digest, str):
            raise ValueError(f"the tensor {describe(name)} has no file, or no digest")
        if not (type(start) is int and type(end) is int and 0 <= start <= end <= output.nbytes):
            raise ValueError(f"the tensor {describe(name)} isn't inside of its file")
        extents.setdefault(output.file, []).append(Extent(name, start, end, digest))
    for inside in extents.values():
        inside.sort(key=lambda extent: (extent.start, extent.end))
        for first, second in pairwise(inside):
            if first.end > second.start:
                raise ValueError(f"the tensors {describe(first.name)} and {describe(second.name)} overlap")
    return extents


def _check_one(
    directory: Path, output: _Output, extents: Sequence[Extent], progress: Callable[[int], None]
) -> list[Problem]:
    where = printable(str(directory / output.file))
    try:
        file = open_file_at(resolve_member(directory, output.file), where)
    except CheckpointError as error:
        return list(error.problems)
    try:
        if file.nbytes != output.nbytes:
            return [Problem(f"expected {output.nbytes:,} bytes, got {file.nbytes:,}", where, _DAMAGED)]
        found, _ = digest_file(output.file, file.nbytes, file.read_into, extents, output.algorithm, passed=progress)
    except CheckpointError as error:
        return list(error.problems)
    finally:
        file.close()
    return _differences(output, extents, found, where)


def _differences(output: _Output, extents: Sequence[Extent], found: FileDigests, where: str) -> list[Problem]:
    expected = {extent.name: extent.digest for extent in extents}
    wrong = [extent.name for extent in found.tensors if extent.digest != expected[extent.name]]
    more = f" and {len(wrong) - _LISTED:,} more" if len(wrong) > _LISTED else ""
    shown = ", ".join(map(printable, wrong[:_LISTED])) + more
    if found.digest == output.digest:
        what = f"has the digest in the manifest, and {shown} in it not: the manifest is damaged"
        return [Problem(what, where, _DAMAGED)] if wrong else []
    place = f"in {shown}" if wrong else "outside of its tensors"
    what = f"expected {printable(output.digest)}, got {found.digest}: its bytes differ {place}"
    return [Problem(what, where, _DAMAGED)]


def _unknown(directory: Path, known: set[str]) -> list[str]:
    """The files that the manifest doesn't know, in a store as well as here; what is hidden at the top aside."""
    names = _names_below(directory, PurePosixPath())
    return [name for name in names if name not in known and name != MANIFEST and not name.startswith(".")]


def _names_below(directory: Path, folder: PurePosixPath) -> Iterator[str]:
    for entry in sorted(directory.iterdir(), key=lambda path: path.name):
        name = folder / entry.name
        if entry.is_dir() and not entry.is_symlink():
            yield from _names_below(entry, name)
        else:
            yield str(name)


def _check_index(directory: Path, output: _Output, names: Mapping[str, str]) -> list[Problem]:
    """Open what an index says is one checkpoint, which compares it with the headers; and its names with the manifest's.

    Args:
        directory: the whole output.
        output: the index.
        names: for each tensor in the manifest, its file.
    """
    folder = PurePosixPath(output.file).parent
    try:
        with open_checkpoint(directory / output.file) as reader:  # by its name; what it may link to has another
            here = {name: (folder / file).as_posix() for name, file in reader.file_of.items()}
    except CheckpointError as error:
        return list(error.problems)
    files = set(here.values())
    there = {}
    for name, file in names.items():
        # Of its own files only: in one directory there may be several parts, each with an index. A shard that belongs
        # to it and isn't in it was found on opening.
        if file in files:
            # A tensor of a part has the part's label before its name in the manifest, and not in the index.
            inner = name.partition(SEPARATOR)[2]
            there[inner if name not in here and inner in here else name] = file
    where = printable(str(directory / output.file))
    return [
        Problem(
            f"{printable(name)} is {_placed(here.get(name))} by the index, {_placed(there.get(name))} by the manifest",
            where,
        )
        for name in sorted({*here, *there})
        if here.get(name) != there.get(name)
    ]


def _placed(file: str | None) -> str:
    return f"in {printable(file)}" if file is not None else "nowhere"
