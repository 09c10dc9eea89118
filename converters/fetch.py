"""Which files of a repository on the Hub are needed, and having them here; its headers are read before that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from converters.adapters import ADAPTER_CONFIG
from converters.side_files import SideFiles, find_side_files
from converters.spec import CONFIG_FILE, Side
from converters.storage.base import CheckpointReader
from converters.storage.formats import METADATA
from converters.storage.locations import locate
from converters.storage.parts import open_side
from converters.storage.remote_path import RemotePath
from converters.storage.safetensors_index import index_suffix


def is_repository(path: Path) -> bool:
    """Whether a path is one into a repository of the Hub."""
    return isinstance(path, RemotePath) and path.is_repository


def fetch(given: Path | str, side: Side) -> Path:
    """Have a checkpoint here, for those who need whole files: one of the Hub is downloaded, all others are left alone.

    Raises:
        CheckpointError: there is no such checkpoint, or it can't be downloaded.
    """
    path = locate(given)
    if not is_repository(path):
        return path
    with open_side(path, side) as reader:
        weights = sorted(set(reader.file_of.values()))
        return fetch_opened(path, reader, find_side_files(path, weights, side), side)


def fetch_opened(path: Path, reader: CheckpointReader, side_files: SideFiles, side: Side) -> Path:
    """Download what was opened: its weights, the files that say what they are, and those that are carried along.

    Args:
        path: a path into a repository of the Hub, as `locate` gave it.
        reader: that path, opened.
        side_files: those beside the weights.
        side: what the spec says of its files.

    Raises:
        CheckpointError: it can't be downloaded.
    """
    from converters.storage.hub import download

    if not isinstance(path, RemotePath):
        raise TypeError(f"{path} is in no repository")
    root = path if path.is_dir() else path.parent
    weights = sorted(set(reader.file_of.values()))
    names = {*weights, *side_files.carried, *_small_files(root, weights, side)}
    return download(path, ["/".join((*root.inner, name)) for name in sorted(names)])


def _small_files(root: RemotePath, weights: list[str], side: Side) -> Iterator[str]:
    """Configs, and the indexes of those weights."""
    folders = {str(PurePosixPath(name).parent) for name in weights}
    suffixes = {PurePosixPath(name).suffix for name in weights}
    for folder in {".", *folders}:
        directory = root / folder if folder != "." else root
        for entry in directory.iterdir() if directory.is_dir() else ():
            name = entry.name
            wanted = name in {CONFIG_FILE, side.config_file, ADAPTER_CONFIG, METADATA}
            if wanted or index_suffix(name) in suffixes:
                yield name if folder == "." else f"{folder}/{name}"
