"""Finding a checkpoint: which files belong to it, and whether they agree with each other."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from converters.errors import CheckpointError, Problem
from converters.storage.files import raise_unreadable, read_small_file
from converters.storage.safetensors import SafetensorsReader
from converters.storage.safetensors_index import (
    MAX_INDEX_NBYTES,
    SUFFIX,
    SafetensorsIndex,
    compare_with_headers,
    count_differs,
    is_index,
    parse_index,
)
from converters.text import printable

_PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt")
_LISTED: Final = 5


def open_checkpoint(path: Path) -> SafetensorsReader:
    """Open a checkpoint: one file, an index, or a directory as on the Hub.

    In a directory, every safetensors file must belong to the one checkpoint that is there: a single file such as
    `model.safetensors` or `diffusion_pytorch_model.safetensors`, or the files of one index. To choose among several,
    give the file or the index itself.

    A link that the caller names is followed. Links within a directory are not, except those that stay inside of it,
    and those of a Hub cache's snapshot into the cache's own `blobs`.

    Raises:
        CheckpointError: nothing is there, it is ambiguous, or its parts are damaged or contradict each other; all
            problems at once.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise_unreadable(error, printable(str(path)))
    if stat.S_ISDIR(mode):
        return _open_directory(path)
    if is_index(path.name):
        return _open_sharded(path, path.parent, path.name)
    if path.name.endswith(_PICKLE_SUFFIXES):
        raise _pickle_refused([path.name], path.parent)
    return SafetensorsReader(path, {path.name: path.resolve()})


def _open_directory(path: Path) -> SafetensorsReader:
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise_unreadable(error, printable(str(path)))
    indexes = [name for name in names if is_index(name)]
    files = [name for name in names if name.endswith(SUFFIX) and not name.startswith(".")]
    if not files and not indexes:
        raise _nothing_found(path, names)
    if len(indexes) == 1:
        return _open_sharded(path, path, indexes[0], files)
    if len(indexes) > 1:
        raise _ambiguous(path, indexes, "Several indexes are here")
    if len(files) > 1:
        shards = [name for name in files if shard_count(name)]
        if shards:
            raise CheckpointError(
                f"{len(shards)} shards ({_list(shards)}), but no index that says what belongs together",
                printable(str(path)),
                "Download the file *.safetensors.index.json that belongs to them, too; or give one file itself.",
            )
        raise _ambiguous(path, files, "Several safetensors files are here, and no index")
    if shard_count(files[0]) > 1:
        raise CheckpointError(
            f"{printable(files[0])} is one shard of {shard_count(files[0])}; the others and their index are missing",
            printable(str(path)),
            "Download the others and *.safetensors.index.json; or give this file itself, to read only what is in it.",
        )
    return SafetensorsReader(path, {files[0]: resolve_member(path, files[0])})


def _open_sharded(path: Path, root: Path, index_name: str, present: Sequence[str] | None = None) -> SafetensorsReader:
    """Open the shards of an index.

    Args:
        path: what the user gave.
        root: the directory of the index.
        index_name: its name there.
        present: all safetensors files in `root`, if every one of them must belong to the checkpoint.
    """
    where = printable(str(root / index_name))
    index = parse_index(read_small_file(resolve_member(root, index_name), MAX_INDEX_NBYTES, where), where)
    problems = list(_left_out(index, root, index_name, present))
    files: dict[str, Path] = {}
    for filename in index.filenames:
        try:
            file = resolve_member(root, filename)
        except CheckpointError as error:
            problems.extend(error.problems)
            continue
        if os.path.lexists(file):
            files[filename] = file
        else:
            problems.append(_missing(index, filename, root, index_name))
    try:
        reader = SafetensorsReader(path, files)
    except CheckpointError as error:
        raise CheckpointError([*problems, *error.problems]) from None
    problems.extend(compare_with_headers(index, reader.headers, where))
    if problems:
        reader.close()
        raise CheckpointError(problems)
    if note := count_differs(index, reader.headers, where):
        reader.notes = (note,)
    return reader


def _left_out(index: SafetensorsIndex, root: Path, index_name: str, present: Sequence[str] | None) -> Iterable[Problem]:
    """Say which files beside an index would be left out without a word."""
    if present is None:
        families = {shard_family(name) for name in index.filenames} - {None}
        present = [entry.name for entry in root.iterdir() if shard_family(entry.name) in families]
    where = printable(str(root))
    for name in sorted(set(present) - set(index.filenames)):
        shown, shown_index = printable(name), printable(index_name)
        if shard_count(name):
            hint = f"Remove it if an earlier save left it there; else download {shown_index} again."
            yield Problem(f"the shard {shown} is not mentioned in {shown_index}", where, hint)
        else:
            hint = f"Give the one that you mean: {printable(str(root / name))} or {printable(str(root / index_name))}."
            yield Problem(f"ambiguous: both {shown} and {shown_index} are here", where, hint)


def shard_count(filename: str) -> int:
    """Read how many shards there are from a name such as `model-00001-of-00002.safetensors`; 0 if it has none."""
    split = _split_shard_name(filename)
    return split[1] if split else 0


def shard_family(filename: str) -> str | None:
    """Read what the names of one checkpoint's shards have in common, `model` of the name above; None if it has none."""
    split = _split_shard_name(filename)
    return split[0] if split else None


def _split_shard_name(filename: str) -> tuple[str, int] | None:
    head, separator, count = filename.removesuffix(SUFFIX).rpartition("-of-")
    family, dash, number = head.rpartition("-")
    if not filename.endswith(SUFFIX) or not separator or not dash:
        return None
    return (family, int(count)) if all(part.isascii() and part.isdigit() for part in (number, count)) else None


def _missing(index: SafetensorsIndex, filename: str, root: Path, index_name: str) -> Problem:
    names = [name for name, holder in index.weight_map.items() if holder == filename]
    return Problem(
        f"the file is missing; {printable(index_name)} says that it holds {len(names):,} tensors, "
        f"among them {printable(names[0])}",
        printable(str(root / filename)),
        "Download it, too.",
    )


def resolve_member(root: Path, name: str) -> Path:
    """Find the file that a name in a directory stands for, without being led out of the directory.

    It may be missing.

    Raises:
        CheckpointError: it is a link to somewhere else, or to itself.
    """
    where = printable(str(root / name))
    try:
        directory = root.resolve(strict=True)
        target = (directory / name).resolve()
    except OSError as error:
        raise_unreadable(error, where)
    except RuntimeError:  # how Python 3.11 and 3.12 report a loop of links
        raise CheckpointError("it is a symbolic link to itself", where) from None
    if directory in target.parents or target.parent in _blobs_of(directory):
        return target
    raise CheckpointError(
        f"it is a symbolic link out of its directory, to {printable(str(target))}",
        where,
        "Only the Hub's own cache may link elsewhere. Copy the file here, or give the path of the real one.",
    )


def _blobs_of(directory: Path) -> list[Path]:
    """List the `blobs` of the Hub cache that a snapshot, or a folder in one, belongs to: at most one."""
    lineage = [directory, *directory.parents]
    return [up.parent.parent / "blobs" for up in lineage if up.parent.name == "snapshots"]


def _nothing_found(path: Path, names: Sequence[str]) -> CheckpointError:
    if pickles := [name for name in names if name.endswith((*_PICKLE_SUFFIXES, ".bin.index.json"))]:
        return _pickle_refused(pickles, path)
    inside = [name for name in names if any((path / name).glob("*" + SUFFIX))]
    hint = "Give the directory that holds model.safetensors, or the file itself."
    if inside:
        hint = f"There are some in {_list([f'{path / name}' for name in inside])}: give one of these."
    return CheckpointError("no safetensors files in this directory", printable(str(path)), hint)


def _pickle_refused(names: Sequence[str], directory: Path) -> CheckpointError:
    return CheckpointError(
        f"{_list(names)}: files that torch.save wrote are not supported yet",
        printable(str(directory)),
        "Where you trust their source, save them as safetensors first: AutoModel.from_pretrained(DIR)"
        ".save_pretrained(NEW_DIR) with transformers.",
    )


def _ambiguous(path: Path, names: Sequence[str], what: str) -> CheckpointError:
    return CheckpointError(
        f"{what}: {_list(names)}",
        printable(str(path)),
        f"Give the one that you mean, such as {printable(str(path / names[0]))}.",
    )


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"
