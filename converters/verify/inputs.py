"""Which files a verification read, told apart by their digests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from converters.spec import CONFIG_FILE
from converters.storage.checkpoint import resolve_member
from converters.storage.safetensors_header import LENGTH_NBYTES, MAX_HEADER_NBYTES
from converters.storage.safetensors_index import is_index
from converters.verify.report import Input, InputFile

CHUNK = 4 << 20
"""Bytes that are hashed at once."""


def describe_input(role: str, path: Path, weights: Iterable[str], *, contents: bool) -> Input:
    """Hash the files of a checkpoint: config and index whole; weights whole with `contents`, else their headers.

    Args:
        role: `source` or `target`.
        path: what the user gave, a file or a directory.
        weights: the names of the files that hold its tensors.
        contents: whether to read all of them.

    Raises:
        CheckpointError: a file isn't there any more.
        OSError: a file can't be read.
    """
    root = path if path.is_dir() else path.parent
    names = sorted(set(weights))
    small = [
        entry.name
        for entry in root.iterdir()
        if entry.name == CONFIG_FILE or (is_index(entry.name) and path in {root, entry})
    ]
    files = [_digest(root, name, contents=True) for name in sorted(small)]
    files.extend(_digest(root, name, contents=contents) for name in names)
    return Input(role, str(path), tuple(files))


def _digest(root: Path, name: str, *, contents: bool) -> InputFile:
    file_path = resolve_member(root, name)
    digest = hashlib.sha256()
    with file_path.open("rb") as file:
        nbytes = file.seek(0, 2)
        file.seek(0)
        if contents:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        else:
            start = file.read(LENGTH_NBYTES)
            length = int.from_bytes(start, "little")
            if length <= MAX_HEADER_NBYTES:
                digest.update(start + file.read(length))
            else:
                # Other formats have their headers at both ends: a zip archive its directory, with all CRCs.
                digest.update(start + file.read(CHUNK))
                file.seek(max(0, nbytes - CHUNK))
                digest.update(file.read(CHUNK))
    return InputFile(name, nbytes, digest.hexdigest(), "contents" if contents else "header")
