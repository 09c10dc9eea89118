"""Finding a checkpoint: which files belong to it, and whether they agree with each other."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from converters.collector import paused
from converters.errors import CheckpointError, Problem
from converters.storage.base import CheckpointReader
from converters.storage.files import raise_unreadable, read_small_file
from converters.storage.formats import METADATA, NPZ, TORCH_SUFFIXES
from converters.storage.locations import locate
from converters.storage.readers import open_file, open_files
from converters.storage.remote_path import RemotePath
from converters.storage.safetensors import SafetensorsReader
from converters.storage.safetensors_extents import first_of
from converters.storage.safetensors_index import (
    MAX_INDEX_NBYTES,
    SUFFIX,
    SafetensorsIndex,
    compare_with_headers,
    count_differs,
    index_suffix,
    is_index,
    parse_index,
)
from converters.storage.shard_names import shard_count, shard_family
from converters.storage.unfinished import refuse_unfinished
from converters.text import printable

if TYPE_CHECKING:
    from converters.storage.dcp_reader import DcpReader
    from converters.storage.torch_reader import TorchReader

# What transformers' Trainer keeps beside the weights, in files of torch.save.
_TRAINING_STATE: Final = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")
_LISTED: Final = 5


@paused()
def open_checkpoint(path: Path | str) -> CheckpointReader:
    """Open a checkpoint: one file, an index, or a directory as on the Hub.

    A text may also be the URL of one in an object store, or the name of a repository on the Hub.

    In a directory, every safetensors file must belong to the one checkpoint that is there: a single file such as
    `model.safetensors` or `diffusion_pytorch_model.safetensors`, or the files of one index. Only where there are none,
    files of torch.save are looked for, in the same way. To choose among several, give the file or the index itself.
    What format a file has is told from its first bytes, not from its name.

    A link that the caller names is followed. Links within a directory are not, except those that stay inside of it,
    and those of a Hub cache's snapshot into the cache's own `blobs`.

    Raises:
        CheckpointError: nothing is there, it is ambiguous, or its parts are damaged or contradict each other; all
            problems at once.
    """
    path = locate(path)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise_unreadable(error, printable(str(path)))
    if not isinstance(path, RemotePath):
        refuse_unfinished(path.resolve() if stat.S_ISDIR(mode) else path.resolve().parent)
    if stat.S_ISDIR(mode):
        return _open_directory(path)
    if is_index(path.name):
        return _open_sharded(path, path.parent, path.name)
    if path.name == METADATA:
        return _open_dcp(path, path.parent)
    return open_file(path, path.name, path.resolve())


def _open_directory(path: Path) -> CheckpointReader:
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise_unreadable(error, printable(str(path)))
    torch_files = [name for name in names if _is_torch_weights(name)]
    distributed = [METADATA] if METADATA in names else []
    files, indexes = _weights(names, (SUFFIX,))
    notes: tuple[Problem, ...] = ()
    if files or indexes:
        notes = _also_here(path, [*distributed, *torch_files], "safetensors files are")
    elif distributed:
        return _open_dcp(path, path, _also_here(path, torch_files, "distributed checkpoint is"))
    else:
        files, indexes = _weights(names, TORCH_SUFFIXES)
        if not files and not indexes:
            files = [name for name in names if name.endswith(NPZ) and not name.startswith(".")]
    if not files and not indexes:
        raise _nothing_found(path, names)
    if len(indexes) == 1:
        return _open_sharded(path, path, indexes[0], files, notes)
    if len(indexes) > 1:
        raise _ambiguous(path, indexes, "Several indexes are here")
    kind = Path(files[0]).suffix
    if len(files) > 1:
        shards = [name for name in files if shard_count(name)]
        if shards:
            raise CheckpointError(
                f"{len(shards)} shards ({_list(shards)}), but no index that says what belongs together",
                printable(str(path)),
                f"Download the file *{kind}.index.json that belongs to them, too; or give one file itself.",
            )
        what = {SUFFIX: "safetensors files", NPZ: ".npz files"}.get(kind, "files of torch.save")
        raise _ambiguous(path, files, f"Several {what} are here, and no index")
    if shard_count(files[0]) > 1:
        raise CheckpointError(
            f"{printable(files[0])} is one shard of {shard_count(files[0])}; the others and their index are missing",
            printable(str(path)),
            f"Download the others and *{kind}.index.json; or give this file itself, to read only what is in it.",
        )
    return open_file(path, files[0], resolve_member(path, files[0]), notes)


def _also_here(path: Path, names: Sequence[str], chosen: str) -> tuple[Problem, ...]:
    """Say what else is in a directory and could be meant."""
    if not names:
        return ()
    shown = f"{_list(names)} {'is' if len(names) == 1 else 'are'} here, too"
    return (Problem(f"{shown}; the {chosen} read", printable(str(path))),)


def _open_dcp(path: Path, root: Path, notes: tuple[Problem, ...] = ()) -> DcpReader:
    """Open a checkpoint of torch.distributed.checkpoint; `root` is its directory."""
    from converters.storage.dcp_metadata import MAX_METADATA_NBYTES, parse_metadata
    from converters.storage.dcp_reader import DcpReader

    where = printable(str(root / METADATA))
    metadata = parse_metadata(read_small_file(resolve_member(root, METADATA), MAX_METADATA_NBYTES, where), where)
    files: dict[str, Path] = {}
    problems: list[Problem] = []
    for filename in sorted({stored.filename for chunks in metadata.chunks.values() for stored in chunks}):
        try:
            files[filename] = resolve_member(root, filename)
        except CheckpointError as error:
            problems.extend(error.problems)
    if problems:
        raise CheckpointError(problems)
    return DcpReader(path, metadata, files, notes)


def _weights(names: Sequence[str], suffixes: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The files of weights of a kind, and their indexes."""
    files = [name for name in names if name.endswith(suffixes) and not name.startswith((".", *_TRAINING_STATE))]
    return files, [name for name in names if index_suffix(name) in suffixes]


def weight_files(names: Sequence[str]) -> list[str]:
    """Which of the files in a directory hold weights: those of safetensors, or else those of torch.save."""
    return _weights(names, (SUFFIX,))[0] or _weights(names, TORCH_SUFFIXES)[0]


def _is_torch_weights(name: str) -> bool:
    return name.endswith(TORCH_SUFFIXES) and not name.startswith((".", *_TRAINING_STATE))


def _open_sharded(
    path: Path, root: Path, index_name: str, present: Sequence[str] | None = None, notes: tuple[Problem, ...] = ()
) -> SafetensorsReader | TorchReader:
    """Open the shards of an index.

    Args:
        path: what the user gave.
        root: the directory of the index.
        index_name: its name there.
        present: all files of that kind in `root`, if every one of them must belong to the checkpoint.
        notes: what was noticed so far.
    """
    where = printable(str(root / index_name))
    suffix = index_suffix(index_name) or SUFFIX
    index = parse_index(read_small_file(resolve_member(root, index_name), MAX_INDEX_NBYTES, where), where, suffix)
    problems = list(_left_out(index, root, index_name, present))
    files: dict[str, Path] = {}
    missing: list[str] = []
    for filename in index.filenames:
        if not _is_there(root / filename):
            missing.append(filename)
            continue
        try:
            file = resolve_member(root, filename)
        except CheckpointError as error:
            problems.extend(error.problems)
            continue
        if _is_there(file):
            files[filename] = file
        else:
            missing.append(filename)
    problems.extend(_missing(missing, index, root, index_name))
    try:
        reader = open_files(path, files, notes)
    except CheckpointError as error:
        raise CheckpointError([*first_of(problems), *error.problems]) from None
    if index.weight_map != reader.file_of:
        problems.extend(compare_with_headers(index, reader.headers, where))
    if problems:
        reader.close()
        raise CheckpointError(first_of(problems))
    if note := count_differs(index, reader.headers, where):
        reader.notes = (*reader.notes, note)
    return reader


def _left_out(index: SafetensorsIndex, root: Path, index_name: str, present: Sequence[str] | None) -> Iterable[Problem]:
    """Say which files beside an index would be left out without a word."""
    if present is None:
        families = {(shard_family(name), Path(name).suffix) for name in index.filenames if shard_family(name)}
        names = [entry.name for entry in root.iterdir()]
        present = [name for name in names if (shard_family(name), Path(name).suffix) in families]
    where = printable(str(root))
    for name in sorted(set(present) - set(index.filenames)):
        shown, shown_index = printable(name), printable(index_name)
        if shard_count(name):
            hint = f"Remove it if an earlier save left it there; else download {shown_index} again."
            yield Problem(f"the shard {shown} is not mentioned in {shown_index}", where, hint)
        else:
            hint = f"Give the one that you mean: {printable(str(root / name))} or {printable(str(root / index_name))}."
            yield Problem(f"ambiguous: both {shown} and {shown_index} are here", where, hint)


def _missing(filenames: Sequence[str], index: SafetensorsIndex, root: Path, index_name: str) -> Iterator[Problem]:
    """Say which files are missing."""
    held: dict[str, list[str]] = {filename: [] for filename in filenames}
    for name, filename in index.weight_map.items() if filenames else ():
        if filename in held:
            held[filename].append(name)
    for filename, names in held.items():
        yield Problem(
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


def _is_there(file: Path) -> bool:
    # `exists` raises where the system finds a name too long.
    return file.exists() if isinstance(file, RemotePath) else os.path.lexists(file)


def _blobs_of(directory: Path) -> list[Path]:
    """List the `blobs` of the Hub cache that a snapshot, or a folder in one, belongs to: at most one."""
    lineage = [directory, *directory.parents]
    return [up.parent.parent / "blobs" for up in lineage if up.parent.name == "snapshots"]


def _nothing_found(path: Path, names: Sequence[str]) -> CheckpointError:
    inside = [name for name in names if any((path / name).glob("*" + SUFFIX))]
    hint = "Give the directory that holds model.safetensors, or the file itself."
    if inside:
        hint = f"There are some in {_list([f'{path / name}' for name in inside])}: give one of these."
    return CheckpointError(
        "no safetensors files in this directory, and none of torch or numpy", printable(str(path)), hint
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
