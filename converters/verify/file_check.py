"""The files of a target: a shard that isn't there, an index that counts wrong, text files that were left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from converters.errors import CheckpointError
from converters.side_files import MAX_CARRIED_NBYTES, find_side_files
from converters.spec import Side
from converters.storage.base import CheckpointReader
from converters.storage.checkpoint import resolve_member
from converters.storage.files import read_small_file
from converters.storage.safetensors import SafetensorsReader
from converters.storage.shard_names import shard_count, shard_family
from converters.text import printable
from converters.verify.report import Finding, Severity

_FORMAT: Final = "format"


def check_files(target: CheckpointReader) -> Iterator[Finding]:
    """Say what is odd about files that could all be opened."""
    names = sorted(set(target.file_of.values()))
    numbered = {name: shard_count(name) for name in names if shard_count(name)}
    for family, count, suffix in {(shard_family(name), count, Path(name).suffix) for name, count in numbered.items()}:
        for number in range(1, count + 1):
            name = f"{family}-{number:05d}-of-{count:05d}{suffix}"
            if name not in numbered:
                what = f"shard {number} of {count} is missing, by the names of the others"
                yield Finding("missing-shard", what, name, hint="copy it again, and the index that names it")
    if not isinstance(target, SafetensorsReader):
        return
    for note in target.notes:
        yield Finding("index-total-size", note.what, str(note.where) if note.where else None, severity=Severity.WARNING)
    for name, header in target.headers.items():
        if _FORMAT not in header.metadata:
            what = "its header doesn't say which framework it is for, and transformers may refuse it"
            yield Finding("no-format", what, name, severity=Severity.WARNING, hint="save it with metadata format: pt")


def check_side_files(source: Path, target: Path, weights: list[str], side: Side) -> Iterator[Finding]:
    """Say which text files (tokenizer, licence) are not the source's. Only warnings: they hold no weights.

    Args:
        source: what was converted; nothing is checked unless both are directories.
        target: what came out.
        weights: the names of the source's weights.
        side: the source's layout.
    """
    if not source.is_dir() or not target.is_dir():
        return
    for name in find_side_files(source, weights, side).carried:
        if not (target / name).exists():
            yield Finding("side-file-missing", "the source has this file, and the target doesn't", name,
                          severity=Severity.WARNING)  # fmt: skip
            continue
        try:
            contents = [
                read_small_file(resolve_member(root, name), MAX_CARRIED_NBYTES, printable(str(root / name)))
                for root in (source, target)
            ]
        except CheckpointError as error:
            yield Finding("side-file-unreadable", error.problems[0].what, name, severity=Severity.WARNING)
            continue
        if contents[0] != contents[1]:
            yield Finding("side-file-differs", "the file isn't the source's", name, severity=Severity.WARNING)
