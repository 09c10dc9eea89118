"""Whether an output directory may be made, or replaced, without anyone losing something; changes nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from converters.errors import CheckpointError, OutputError, OutputExistsError
from converters.storage.files import open_for_reading, raise_unwritable
from converters.storage.formats import DISTRIBUTED, METADATA
from converters.text import printable

# Nothing but weights is called so.
_WEIGHTS_SUFFIXES: Final = (".safetensors", DISTRIBUTED)
# Many programs call their files so; those of torch.save are told by their first bytes.
_TORCH_SUFFIXES: Final = (".bin", ".pt", ".pth")
_ZIP_START: Final = b"PK\x03\x04"
# What model directories on the Hub hold; anything else is somebody's work, and is not deleted.
_KNOWN_SUFFIXES: Final = frozenset(
    {
        ".safetensors",
        ".bin",
        ".pt",
        ".pth",
        DISTRIBUTED,
        ".gguf",
        ".msgpack",
        ".h5",
        ".onnx",
        ".json",
        ".jsonl",
        ".yaml",
        ".yml",
    }
    | {".txt", ".md", ".model", ".jinja", ".tiktoken", ".py", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp"}
)
_KNOWN_STARTS: Final = (
    "license",
    "licence",
    "notice",
    "copying",
    "use_policy",
    "readme",
    "tokenizer",
    ".gitattributes",
)
# Others are told by their suffix.
_KNOWN_NAMES: Final = frozenset({METADATA})
_KNOWN_FOLDERS: Final = frozenset({"additional_chat_templates", ".cache"})
_LISTED: Final = 5


def locate(output: Path) -> Path:
    """Make the path of an output absolute, its parent free of links.

    Raises:
        OutputError: it is no name for a directory, or its parent doesn't exist.
    """
    if output.name in {"", ".."}:
        raise OutputError("the output needs a name of its own", printable(str(output)), "Such as: converted/my-model.")
    try:
        parent = output.parent.resolve(strict=True)
        is_folder = parent.is_dir()
    except FileNotFoundError:
        raise OutputError(
            f"the directory {printable(str(output.parent))} doesn't exist",
            printable(str(output)),
            "Make it first (mkdir -p), or correct the path.",
        ) from None
    except OSError as error:
        raise_unwritable(error, output)
    if not is_folder:
        raise OutputError(f"{printable(str(parent))} is not a directory", printable(str(output)))
    return parent / output.name


def check_inputs_apart(output: Path, inputs: Sequence[Path]) -> None:
    """Check that the output is none of the inputs, in none of them, and around none of them.

    Args:
        output: as `locate` returned it.
        inputs: files and directories that exist.

    Raises:
        OutputError: it is.
    """
    for given in inputs:
        # A link counts as what it is and as what it points to: a snapshot in a Hub cache is made of links.
        for path in {given.resolve(), given.parent.resolve() / given.name}:
            if path == output or _is_same_file(path, output):
                relation = "is the input itself"
            elif path in output.parents:
                relation = "lies inside the input"
            elif output in path.parents:
                relation = "contains the input"
            else:
                continue
            raise OutputError(
                f"the output {relation}, {printable(str(given))}",
                printable(str(output)),
                "Choose an output elsewhere; inputs are never changed.",
            )


def check_replaceable(output: Path, *, overwrite: bool) -> None:
    """Check that nothing is at the output, or something that may be replaced: an empty directory, or a checkpoint.

    Args:
        output: as `locate` returned it.
        overwrite: whether the user asked for that.

    Raises:
        OutputExistsError: something is there that may not.
    """
    where = printable(str(output))
    if not os.path.lexists(output):
        return
    if output.is_symlink():
        hint = "Remove the link, or give the directory that it points to."
        raise OutputExistsError(f"is a symbolic link, to {printable(str(output.readlink()))}", where, hint)
    if not overwrite:
        raise OutputExistsError("already exists", where, "Choose another output, or replace this one with --overwrite.")
    if not output.is_dir():
        raise OutputExistsError(
            "is not a directory; only a directory is ever replaced", where, "Choose another output."
        )
    if reason := _reason_to_keep(output):
        raise OutputExistsError(
            f"is not replaced, since {reason}", where, "Choose another output, or remove it yourself."
        )


def _reason_to_keep(directory: Path) -> str | None:
    here, home = Path.cwd(), Path.home().resolve()
    if directory in {here, *here.parents}:
        return "the current directory is in it"
    if directory in {home, *home.parents}:
        return "your home directory is in it"
    if directory.is_mount():
        return "a file system is mounted there"
    try:
        with os.scandir(directory) as entries:
            is_folder = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        components = [name for name in is_folder if is_folder[name] and _is_component(directory / name)]
    except OSError as error:
        raise_unwritable(error, directory)
    unknown = sorted(
        name for name in is_folder if not _is_of_checkpoint(name, is_folder=is_folder[name]) and name not in components
    )
    if unknown:
        shown = ", ".join(printable(name) for name in unknown[:_LISTED])
        more = f" and {len(unknown) - _LISTED} more" if len(unknown) > _LISTED else ""
        return f"it holds what no checkpoint does: {shown}{more}"
    if is_folder and not components and not any(_is_weights(directory / name) for name in is_folder):
        kinds = f"{_WEIGHTS_SUFFIXES[0]} files and none of torch.save"
        return f"it holds no {kinds}, so it seems to be something else than a checkpoint"
    return None


def _is_component(directory: Path) -> bool:
    """Whether a directory holds a component of a model, such as `unet`, and nothing else."""
    with os.scandir(directory) as entries:
        names = [entry.name if entry.is_file(follow_symlinks=False) else "" for entry in entries]
    weights = any(_is_weights(directory / name) for name in names if name)
    return bool(names) and all(
        _is_of_checkpoint(name, is_folder=False) if weights else name.endswith("config.json") for name in names
    )


def _is_weights(file: Path) -> bool:
    """Whether a file holds weights, by its name or its first bytes."""
    if not file.name.endswith(_TORCH_SUFFIXES):
        return file.name.endswith(_WEIGHTS_SUFFIXES)
    try:
        descriptor, _ = open_for_reading(file, file.name)
    except CheckpointError:
        return False
    with os.fdopen(descriptor, "rb") as opened:
        return opened.read(len(_ZIP_START)) == _ZIP_START


def is_of_checkpoint(name: str) -> bool:
    """Whether a file, by its name relative to a directory, is what a directory of a checkpoint may hold."""
    return _is_of_checkpoint(PurePosixPath(name).name, is_folder=False)


def _is_of_checkpoint(name: str, *, is_folder: bool) -> bool:
    if is_folder:
        return name in _KNOWN_FOLDERS
    known = name in _KNOWN_NAMES or Path(name).suffix.lower() in _KNOWN_SUFFIXES
    return known or name.lower().startswith(_KNOWN_STARTS)


def _is_same_file(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:
        return False
