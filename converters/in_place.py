"""Conversion where the files lie: new names in the headers, not a byte of data moved, and a way back at any moment.

Only for a spec that does nothing but rename. What the headers, the index and the config become is worked out and
checked first; then a journal is written, see `storage/in_place_journal.py`, and only then is anything changed. A kill
or a power cut leaves the journal, by which the next run in place takes everything back before it begins.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from converters.config_file import config_text, load_config
from converters.convert import Options, Prepared, prepare
from converters.errors import CheckpointError, OutputError, Problem
from converters.filesystem import LockedError, exclusive_lock
from converters.manifest import MANIFEST
from converters.renames import obstacles, renaming
from converters.spec import CONFIG_FILE, Spec
from converters.staging_names import lock_name
from converters.storage.files import (
    close_quietly,
    open_for_reading,
    raise_unwritable,
    read_exactly,
    read_small_file,
)
from converters.storage.in_place_journal import (
    MAX_JOURNAL_NBYTES,
    FileChange,
    apply,
    remove_journal,
    undo,
    write_journal,
)
from converters.storage.remote_path import RemotePath
from converters.storage.safetensors import SafetensorsReader
from converters.storage.safetensors_header import SafetensorsHeader, rename_header
from converters.storage.safetensors_index import (
    MAX_INDEX_NBYTES,
    SUFFIX,
    compare_with_headers,
    index_suffix,
    parse_index,
)
from converters.storage.strict_json import parse_object
from converters.storage.unfinished import JOURNAL
from converters.tensor_info import TensorInfo
from converters.text import printable

_ELSEWHERE: Final = "Convert into another directory: give OUTPUT, without --in-place."
_LISTED: Final = 3


class InPlace(Struct, frozen=True):
    """What was done in place.

    Attributes:
        prepared: the plan that was carried out, and what it was made of; its reader is closed.
        directory: where.
        changed: the names of the files that were changed, in order.
        removed: the names of those that were removed.
        nbytes: bytes that were written to them.
    """

    prepared: Prepared
    directory: Path
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    nbytes: int


class _Work(Struct, frozen=True):
    """What has to change, and the headers that the weights have afterwards."""

    changes: tuple[FileChange, ...]
    headers: Mapping[str, SafetensorsHeader]
    index: str | None


def convert_in_place(spec: Spec, source: Path, options: Options) -> InPlace:
    """Convert a checkpoint where it lies; an interrupted run is taken back first.

    Args:
        spec: in the direction in which it is applied; it must do nothing but rename.
        source: the directory of the checkpoint.
        options: as for a conversion; the files keep their names and sizes.

    Raises:
        WeightmapError: as `prepare`.
        OutputError: it can't be done in place, for all the reasons that the error names, and nothing was changed; or
            the disk failed, and everything was taken back, or will be by the next run if the error says so.
    """
    with _locked(source) as directory:
        undo(directory)
        with prepare(spec, directory, options) as prepared:
            work = _work_out(prepared, directory)
            prepared.reader.check_unchanged()
            if work.changes:
                _carry_out(work, directory)
    return InPlace(
        prepared,
        directory,
        tuple(change.name for change in work.changes if change.new is not None),
        tuple(change.name for change in work.changes if change.new is None),
        sum(len(change.new or b"") for change in work.changes),
    )


def undo_interrupted(source: Path) -> bool:
    """Take back what a run in place that was interrupted has begun; returns whether there was anything.

    Raises:
        CheckpointError: the journal is damaged, or files were changed since.
        OutputError: another run works there, it is no directory, or the disk failed.
    """
    with _locked(source) as directory:
        return undo(directory)


@contextmanager
def _locked(source: Path) -> Iterator[Path]:
    """The real directory, with the lock that keeps other runs from it."""
    where = printable(str(source))
    if isinstance(source, RemotePath) or not source.is_dir():
        hint = "Give the directory that holds config.json and the weights."
        raise OutputError("only a directory on this machine can be converted in place", where, hint)
    directory = source.resolve()
    with ExitStack() as lock:
        try:
            is_held = lock.enter_context(exclusive_lock(lock_name(directory)))
        except LockedError as error:
            what = f"another run is working on this directory: {printable(str(error))}"
            raise OutputError(what, where, "Wait until it is done.") from None
        except OSError as error:
            raise_unwritable(error, lock_name(directory))
        if not is_held and (directory / JOURNAL).exists():
            what = "a conversion in place runs here or was interrupted, and this file system has no locks to tell which"
            raise OutputError(what, where, "If none runs, copy the directory to a local disk, and run it there.")
        yield directory


def _carry_out(work: _Work, directory: Path) -> None:
    try:
        write_journal(directory, work.changes)
        apply(directory, work.changes)
        _check(work, directory)
    except BaseException as error:
        try:
            undo(directory)
        except (OSError, OutputError, CheckpointError) as failure:
            raise OutputError(
                f"the conversion in place failed ({error}), and so did taking it back ({failure})",
                printable(str(directory)),
                "The journal is still there. Once the disk works again, run the same command: it takes everything back "
                "first.",
            ) from error
        raise
    remove_journal(directory)


def _check(work: _Work, directory: Path) -> None:
    """Read back what was written."""
    try:
        with SafetensorsReader(directory, {name: directory / name for name in work.headers}) as reader:
            differing = [name for name, header in work.headers.items() if reader.headers[name] != header]
            problems = [
                Problem("its header is not the one that was written", printable(str(directory / name)))
                for name in differing
            ]
            if work.index is not None:
                where = printable(str(directory / work.index))
                index = parse_index(read_small_file(directory / work.index, MAX_INDEX_NBYTES, where), where)
                problems.extend(compare_with_headers(index, reader.headers, where))
    except CheckpointError as error:
        raise OutputError(error.problems) from error
    if problems:
        raise OutputError(problems)


# --- what has to change ----------------------------------------------------------------------------------------------


def _work_out(prepared: Prepared, directory: Path) -> _Work:
    """What has to change.

    Raises:
        OutputError: it can't be done in place, for all these reasons.
    """
    problems = [*obstacles(prepared.plan), *_problems_of_files(prepared)]
    changes: list[FileChange] = []
    headers: dict[str, SafetensorsHeader] = {}
    index = None
    if isinstance(prepared.reader, SafetensorsReader) and not problems:
        infos = {name: target.info for name, target in renaming(prepared.plan).items()}
        for filename, header in prepared.reader.headers.items():
            where = printable(str(directory / filename))
            try:
                start, headers[filename] = rename_header(header, infos)
            except OutputError as error:
                problems.extend(Problem(each.what, each.where or where) for each in error.problems)
                continue
            if headers[filename] != header:  # else its spelling stays as it is, too
                old = _read(directory, filename, nbytes=len(start))
                changes.append(FileChange(filename, old, start, is_start=True))
        index = _index_name(directory)
        changes += [_index_change(directory, index, infos)] if index is not None else []
        changes += _config_changes(prepared, directory)
        changes = [change for change in changes if change.old != change.new]
        if changes and (directory / MANIFEST).exists():
            changes.append(FileChange(MANIFEST, _read(directory, MANIFEST), None))
        problems.extend(_unsafe(changes, directory))
    if problems:
        raise OutputError([*problems[:-1], replace(problems[-1], hint=_ELSEWHERE)])
    return _Work(tuple(changes), headers, index)


def _problems_of_files(prepared: Prepared) -> Iterator[Problem]:
    """Say why the files can't stay the ones they are."""
    source, target = prepared.spec.source, prepared.target
    files = sorted(set(prepared.reader.file_of.values()))
    where = printable(str(prepared.reader.path))
    if not isinstance(prepared.reader, SafetensorsReader) and not source.files:
        yield Problem("only safetensors files can be converted in place", where)
    for side in (source, target):
        if side.files or side.configs or "/" in side.config_file:
            yield Problem(
                f"{side.layout} keeps its weights or configs in several places, whose files would move", where
            )
    if target.file and files != [target.file]:
        yield Problem(f"{target.layout} keeps its weights in {target.file}, and here is {_listed(files)}", where)
    elif others := sorted({shard.filename for shard in prepared.plan.shards if not shard.filename.endswith(SUFFIX)}):
        yield Problem(f"the output would be written in another format, to {_listed(others)}", where)


def _index_name(directory: Path) -> str | None:
    return next((file.name for file in sorted(directory.iterdir()) if index_suffix(file.name) == SUFFIX), None)


def _index_change(directory: Path, name: str, infos: Mapping[str, TensorInfo]) -> FileChange:
    old = _read(directory, name)
    document = parse_object(old)
    renamed = {infos[key].name: file for key, file in document["weight_map"].items()}
    if renamed == document["weight_map"]:
        return FileChange(name, old, old)
    document["weight_map"] = renamed
    return FileChange(name, old, (json.dumps(document, indent=2, sort_keys=True) + "\n").encode())


def _config_changes(prepared: Prepared, directory: Path) -> list[FileChange]:
    """The config under the name that the layout gives it; one that means the same stays as it is."""
    config, name = prepared.plan.config, prepared.target.config_file
    if config is None or not name:
        return []
    names = (prepared.spec.source.config_file, CONFIG_FILE)
    here = next((old for old in names if old and (directory / old).exists()), name)
    old = _read(directory, name) if (directory / name).exists() else None
    same = old is not None and load_config(directory / name) == config
    changes = [FileChange(name, old, old if same else config_text(name, config).encode())]
    return changes if here == name else [*changes, FileChange(here, _read(directory, here), None)]


def _unsafe(changes: Sequence[FileChange], directory: Path) -> Iterator[Problem]:
    """Say which files have other names, under which somebody would find them changed."""
    for change in changes:
        path = directory / change.name
        if change.old is None:
            continue
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            target = printable(str(path.readlink()))
            yield Problem(f"it is a link to {target}, which would be changed", printable(str(path)))
        elif status.st_nlink > 1:
            yield Problem("the file has other names (hard links), which would change, too", printable(str(path)))


def _read(directory: Path, name: str, nbytes: int | None = None) -> bytes:
    """What a file holds, or its first bytes."""
    where = printable(str(directory / name))
    descriptor, identity = open_for_reading((directory / name).resolve(), where)
    try:
        content = bytearray(min(identity.nbytes, MAX_JOURNAL_NBYTES) if nbytes is None else nbytes)
        read_exactly(descriptor, memoryview(content), 0, where)
    finally:
        close_quietly(descriptor)
    return bytes(content)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"
