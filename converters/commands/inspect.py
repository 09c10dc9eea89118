"""`weightmap inspect`: what is in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converters.collector import paused
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

_CONFIG_FILE = "config.json"
_FILES_SHOWN = 4
_VALUES_SHOWN = 8
"""Values of a config that doesn't name its model."""


@click.command(context_settings=dict(CONTEXT_SETTINGS))
@checkpoint_argument("path")
@revision_option
@click.option("--depth", type=click.IntRange(min=1), metavar="N", help="Show only so many levels of the tree.")
@json_option
@debug_option
@paused()
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
        config_file, config, trouble = _config_of(path)
        if as_json:
            tree = root if depth is None else _cut(root, depth)
            print_json(_as_json(reader, root, tree, config_file, config, trouble))
            return
        lines = [bold(printable(str(path))), *labelled([*_model(config_file, config, trouble), *_pairs(reader, root)])]
        lines += ["", *(f"  {line}" for line in render_key_tree(root if depth is None else _cut(root, depth)))]
        click.echo("\n".join(lines))
        for note in (*map(str, reader.notes), *trouble):
            warn(note.replace("\n    ", " "))


def _config_of(path: Path) -> tuple[str, dict[str, Any] | None, list[str]]:
    """The config beside the weights and its name, or what is wrong with it: no reason not to show the weights."""
    from converters.config_file import load_config
    from converters.errors import WeightmapError
    from converters.storage.checkpoint import resolve_member

    root = path if path.is_dir() else path.parent
    name = _CONFIG_FILE
    try:
        if (root / name).exists():
            return name, load_config(resolve_member(root, name), name), []
        name = next((other for other in _other_names(root) if (root / other).exists()), name)
        return name, load_config(root / name) if name != _CONFIG_FILE else None, []
    except WeightmapError as error:
        return name, None, [str(error)]


def _other_names(root: Path) -> list[str]:
    """What else a config may be called: as PEFT does, or as a layout of the shipped specs does."""
    from converters.adapters import ADAPTER_CONFIG
    from converters.commands.finding import known_specs
    from converters.config_file import CONFIG_SUFFIXES
    from converters.storage.safetensors_index import is_index

    texts = {entry.name for entry in root.iterdir() if entry.suffix in CONFIG_SUFFIXES and not is_index(entry.name)}
    if ADAPTER_CONFIG in texts:
        return [ADAPTER_CONFIG]
    if not texts:
        return []
    sides = [side for spec in known_specs() for side in (spec.source, spec.target)]
    return sorted({side.config_file for side in sides} & texts)


def _cut(node: KeyNode, depth: int) -> KeyNode:
    """The tree down to so many levels."""
    from msgspec.structs import replace

    return replace(node, children=tuple(_cut(child, depth - 1) for child in node.children) if depth else ())


def _pairs(reader: CheckpointReader, root: KeyNode) -> list[tuple[str, str]]:
    from converters.commands.terminal import counted
    from converters.text import format_nbytes, printable

    dtypes = _dtypes(root)
    nbytes = format_nbytes(sum(nbytes for _, nbytes in dtypes.values()))
    total = f"{counted(len(reader.tensors), 'tensor')}, {counted(_parameters(root), 'parameter')}, {nbytes}"
    mix = ", ".join(
        label if len(dtypes) == 1 else f"{label} in {counted(count, 'tensor')} ({format_nbytes(nbytes)})"
        for label, (count, nbytes) in dtypes.items()
    )
    by_file = _by_file(reader)
    shown = [*by_file] if len(by_file) <= _FILES_SHOWN else [next(iter(by_file)), next(reversed(by_file))]
    sizes = [f"{printable(name)} ({format_nbytes(sum(info.nbytes for info in by_file[name]))})" for name in shown]
    files = ", ".join(sizes) if len(by_file) <= _FILES_SHOWN else f"{len(by_file)} files: {sizes[0]} to {sizes[-1]}"
    texts = _metadata(reader, by_file)
    metadata = ", ".join(f"{printable(key, 60)}: {printable(value, 100)}" for key, value in texts.items())
    return [("holds", total), ("dtypes", mix), ("files", files), ("metadata", metadata)]


def _model(config_file: str, config: dict[str, Any] | None, trouble: list[str]) -> list[tuple[str, str]]:
    """What the config says the weights are for; where it has no name for that, the first of what it does say."""
    from converters.text import printable

    if config is None:
        return [
            ("model", f"unknown, {config_file} can't be read" if trouble else f"unknown, there is no {config_file}")
        ]
    said = [str(config["model_type"])] if isinstance(config.get("model_type"), str) else []
    classes = config.get("architectures")
    said += [str(name) for name in classes] if isinstance(classes, list) else []
    if said:
        return [("model", printable(", ".join(said), 200))]
    values = [(key, value) for key, value in config.items() if isinstance(value, str | int | float)]
    text = ", ".join(f"{printable(str(key), 40)}: {printable(str(value), 60)}" for key, value in values[:_VALUES_SHOWN])
    more = f" and {len(config) - _VALUES_SHOWN} more" if len(config) > _VALUES_SHOWN else ""
    return [("model", f"{config_file} doesn't say"), ("config", f"{text}{more}")]


def _tensors(node: KeyNode) -> Iterator[KeyNode]:
    """The nodes that stand for tensors: few, of however many tensors."""
    if node.dtype is not None:
        yield node
    for child in node.children:
        yield from _tensors(child)


def _parameters(root: KeyNode) -> int:
    return sum(prod(node.shape or ()) * node.tensor_count for node in _tensors(root))


def _dtypes(root: KeyNode) -> dict[str, tuple[int, int]]:
    """For each dtype, tensors and bytes; the one with the most bytes first."""
    found: dict[str, tuple[int, int]] = {}
    for node in _tensors(root):
        count, nbytes = found.get(str(node.dtype), (0, 0))
        found[str(node.dtype)] = (count + node.tensor_count, nbytes + node.nbytes)
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def _by_file(reader: CheckpointReader) -> dict[str, list[TensorInfo]]:
    """The tensors of each file."""
    headers = getattr(reader, "headers", {})
    if headers:
        return {name: [*header.tensors.values()] for name, header in headers.items()}
    held: dict[str, list[TensorInfo]] = {}
    for name, info in reader.tensors.items():
        held.setdefault(reader.file_of[name], []).append(info)
    return held


def _metadata_of(reader: CheckpointReader, filename: str) -> dict[str, str]:
    """The free text of a file, in the formats that have some."""
    header = getattr(reader, "headers", {}).get(filename)
    return dict(header.metadata) if header is not None else {}


def _metadata(reader: CheckpointReader, filenames: Iterable[str]) -> dict[str, str]:
    """The metadata of all files together; the first one to say something is right."""
    found: dict[str, str] = {}
    for filename in filenames:
        found = {**_metadata_of(reader, filename), **found}
    return found


def _as_json(
    reader: CheckpointReader,
    root: KeyNode,
    shown: KeyNode,
    config_file: str,
    config: dict[str, Any] | None,
    trouble: list[str],
) -> dict[str, Any]:
    return {
        "path": str(reader.path),
        "tensors": root.tensor_count,
        "parameters": _parameters(root),
        "nbytes": root.nbytes,
        "dtypes": {label: {"tensors": count, "nbytes": nbytes} for label, (count, nbytes) in _dtypes(root).items()},
        "config_file": None if config is None else config_file,
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
        "tree": [child.to_json() for child in shown.children],
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
