"""`weightmap inspect`: what is in a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converters.commands.options import (
    CONTEXT_SETTINGS,
    checkpoint_argument,
    debug_option,
    json_option,
    revision_option,
)

if TYPE_CHECKING:
    from converters.key_tree import KeyNode
    from converters.storage.base import CheckpointReader
    from converters.tensor_info import TensorInfo

_FILES_SHOWN = 4


@click.command(context_settings=dict(CONTEXT_SETTINGS))
@checkpoint_argument("path")
@revision_option
@click.option("--depth", type=click.IntRange(min=1), metavar="N", help="Show only so many levels of the tree.")
@json_option
@debug_option
def inspect(*, path: Path, revision: str | None, depth: int | None, as_json: bool) -> None:
    """Show what is in a checkpoint.

    Its keys are shown as a tree, with shapes, dtypes and sizes. What repeats is shown once: `layers.{0..31}` stands for
    32 layers with the same tensors. PATH is whatever `convert` takes: a file, an index, a directory, a repository of
    the Hub, or a URL. Only headers are read.
    """
    from converters.commands.terminal import bold, labelled, print_json, warn
    from converters.key_tree import build_key_tree, render_key_tree
    from converters.storage.checkpoint import open_checkpoint
    from converters.storage.locations import locate
    from converters.text import printable

    path = locate(path, revision)
    with open_checkpoint(path) as reader:
        root = build_key_tree(reader.tensors.values())
        config, trouble = _config_of(path)
        if as_json:
            print_json(_as_json(reader, root if depth is None else _cut(root, depth), config, trouble))
            return
        lines = [bold(printable(str(path))), *labelled(_pairs(reader, config))]
        lines += ["", *(f"  {line}" for line in render_key_tree(root if depth is None else _cut(root, depth)))]
        click.echo("\n".join(lines))
        for note in (*map(str, reader.notes), *trouble):
            warn(note.replace("\n    ", " "))


def _config_of(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The config.json beside the weights, or what is wrong with it: no reason not to show the weights."""
    from converters.errors import WeightmapError
    from converters.side_files import read_config

    try:
        return (read_config(path) if path.is_dir() else read_config(path.parent)), []
    except WeightmapError as error:
        return None, [str(error)]


def _cut(node: KeyNode, depth: int) -> KeyNode:
    """The tree down to so many levels."""
    from dataclasses import replace

    return replace(node, children=tuple(_cut(child, depth - 1) for child in node.children) if depth else ())


def _pairs(reader: CheckpointReader, config: dict[str, Any] | None) -> list[tuple[str, str]]:
    from converters.commands.terminal import counted
    from converters.text import format_nbytes, printable

    infos = reader.tensors.values()
    elements = sum(info.size for info in infos)
    total = f"{counted(len(infos), 'tensor')}, {counted(elements, 'parameter')}, {_nbytes(reader)}"
    dtypes = _dtypes(reader)
    mix = ", ".join(
        label if len(dtypes) == 1 else f"{label} in {counted(count, 'tensor')} ({format_nbytes(nbytes)})"
        for label, (count, nbytes) in dtypes.items()
    )
    sizes = [
        f"{printable(name)} ({format_nbytes(sum(info.nbytes for info in held))})"
        for name, held in _by_file(reader).items()
    ]
    files = ", ".join(sizes) if len(sizes) <= _FILES_SHOWN else f"{len(sizes)} files: {sizes[0]} to {sizes[-1]}"
    metadata = ", ".join(f"{printable(key, 60)}: {printable(value, 100)}" for key, value in _metadata(reader).items())
    return [("model", _model(config)), ("holds", total), ("dtypes", mix), ("files", files), ("metadata", metadata)]


def _model(config: dict[str, Any] | None) -> str:
    """What config.json says the weights are for."""
    from converters.text import printable

    if config is None:
        return "unknown, there is no config.json"
    said = [str(config["model_type"])] if isinstance(config.get("model_type"), str) else []
    classes = config.get("architectures")
    said += [str(name) for name in classes] if isinstance(classes, list) else []
    return printable(", ".join(said), 200) or "config.json doesn't say"


def _nbytes(reader: CheckpointReader) -> str:
    from converters.text import format_nbytes

    return format_nbytes(sum(info.nbytes for info in reader.tensors.values()))


def _dtypes(reader: CheckpointReader) -> dict[str, tuple[int, int]]:
    """For each dtype, tensors and bytes; the one with the most bytes first."""
    found: dict[str, tuple[int, int]] = {}
    for info in reader.tensors.values():
        count, nbytes = found.get(info.dtype.label, (0, 0))
        found[info.dtype.label] = (count + 1, nbytes + info.nbytes)
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def _by_file(reader: CheckpointReader) -> dict[str, list[TensorInfo]]:
    """The tensors of each file."""
    held: dict[str, list[TensorInfo]] = {name: [] for name in getattr(reader, "headers", {})}
    for name, info in reader.tensors.items():
        held.setdefault(reader.file_of[name], []).append(info)
    return held


def _metadata_of(reader: CheckpointReader, filename: str) -> dict[str, str]:
    """The free text of a file, in the formats that have some."""
    header = getattr(reader, "headers", {}).get(filename)
    return dict(header.metadata) if header is not None else {}


def _metadata(reader: CheckpointReader) -> dict[str, str]:
    """The metadata of all files together; the first one to say something is right."""
    found: dict[str, str] = {}
    for filename in _by_file(reader):
        found = {**_metadata_of(reader, filename), **found}
    return found


def _as_json(
    reader: CheckpointReader, root: KeyNode, config: dict[str, Any] | None, trouble: list[str]
) -> dict[str, Any]:
    infos = reader.tensors.values()
    return {
        "path": str(reader.path),
        "tensors": len(infos),
        "parameters": sum(info.size for info in infos),
        "nbytes": sum(info.nbytes for info in infos),
        "dtypes": {label: {"tensors": count, "nbytes": nbytes} for label, (count, nbytes) in _dtypes(reader).items()},
        "model_type": (config or {}).get("model_type"),
        "architectures": (config or {}).get("architectures"),
        "files": [
            {
                "name": name,
                "tensors": len(held),
                "nbytes": sum(info.nbytes for info in held),
                "metadata": _metadata_of(reader, name),
            }
            for name, held in _by_file(reader).items()
        ],
        "notes": [*map(str, reader.notes), *trouble],
        "tree": [child.to_json() for child in root.children],
        "keys": [
            {
                "name": name,
                "dtype": info.dtype.label,
                "shape": list(info.shape),
                "nbytes": info.nbytes,
                "file": reader.file_of[name],
            }
            for name, info in reader.tensors.items()
        ],
    }
