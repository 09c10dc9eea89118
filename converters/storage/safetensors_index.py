"""The index of a sharded checkpoint, such as `model.safetensors.index.json`: which file holds which tensor. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Struct

from converters.errors import CheckpointError, Problem
from converters.sharding import Shard
from converters.storage.base import FileHeader
from converters.storage.safetensors_extents import first_of
from converters.storage.strict_json import StrictJsonError, describe, parse_object
from converters.text import printable

MAX_INDEX_NBYTES: Final = 64_000_000
"""Largest index that is read, in bytes: about 600,000 tensors."""

SUFFIX: Final = ".safetensors"

INDEXED_SUFFIXES: Final = (SUFFIX, ".bin", ".pt", ".pth")
"""How the names of files end that an index can be about."""

_RESAVE: Final = "The index is damaged or not meant for this tool; download it again."


class SafetensorsIndex(Struct, frozen=True):
    """What an index says.

    Attributes:
        weight_map: for each tensor, the name of the file that holds it.
        total_nbytes: its `metadata.total_size`, if it has one: bytes of all tensors together, see `count_differs`.
    """

    weight_map: Mapping[str, str]
    total_nbytes: int | float | None = None

    @property
    def filenames(self) -> tuple[str, ...]:
        """Every file that it names, once, sorted."""
        return tuple(sorted(set(self.weight_map.values())))


def parse_index(raw: bytes, where: str, suffix: str = SUFFIX) -> SafetensorsIndex:
    """Parse and check an index by itself; the files that it names are not looked at.

    Args:
        raw: its text.
        where: how errors name it.
        suffix: how the names of its files end.

    Raises:
        CheckpointError: it isn't valid JSON, has no weight map, or names files that are not beside it; all at once.
    """
    try:
        document = parse_object(raw)
    except StrictJsonError as fault:
        raise CheckpointError(f"the index is not valid: {fault}", where, _RESAVE) from None
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        found = describe(weight_map) if "weight_map" in document else "none"
        raise CheckpointError(f"expected a 'weight_map' from tensor to file, got {found}", where, _RESAVE)
    metadata = document.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    problems: list[Problem] = []
    if metadata is not None and not isinstance(metadata, dict):
        problems.append(Problem(f"expected an object as 'metadata', got {describe(metadata)}", where, _RESAVE))
    if total is not None and (type(total) not in {int, float} or total < 0):
        problems.append(Problem(f"expected bytes as 'metadata.total_size', got {describe(total)}", where, _RESAVE))
    problems.extend(_faults(weight_map, where, suffix))
    if problems:
        raise CheckpointError(first_of(problems))
    return SafetensorsIndex(weight_map, total)


def build_index(shards: Sequence[Shard]) -> tuple[bytes, SafetensorsIndex]:
    """Write the index of shards as transformers does, to the byte; returns its text and what that says."""
    weight_map = {info.name: shard.filename for shard in shards for info in shard.tensors}
    total_nbytes = sum(shard.nbytes for shard in shards)
    total_parameters = sum(info.size for shard in shards for info in shard.tensors)
    document = {
        "metadata": {"total_parameters": total_parameters, "total_size": total_nbytes},
        "weight_map": weight_map,
    }
    # As `indent=2` would write it, which takes Python's own encoder ten times as long.
    content = msgspec.json.format(json.dumps(document, sort_keys=True), indent=2) + "\n"
    return content.encode("utf-8"), SafetensorsIndex(weight_map, total_nbytes)


def compare_with_headers(index: SafetensorsIndex, headers: Mapping[str, FileHeader], where: str) -> Iterator[Problem]:
    """Say where the index and the headers of its files disagree, in both directions.

    Args:
        index: what the index says.
        headers: for each file that could be read, by name, its header.
        where: how problems name the index.
    """
    holder = {name: filename for filename, header in headers.items() for name in header.tensors}
    for name, filename in index.weight_map.items():
        if filename not in headers or name in headers[filename].tensors:
            continue
        found = f"; {printable(holder[name])} has it" if name in holder else ""
        yield Problem(
            f"the index says that {printable(filename)} holds this tensor, but it doesn't{found}",
            f"{where}: weight_map: {printable(name)}",
            "Index and files are of different versions; download all of them again.",
        )
    for filename, header in headers.items():
        for name in header.tensors:
            if name not in index.weight_map:
                yield Problem(
                    f"{printable(filename)} holds this tensor, but the index doesn't mention it",
                    f"{where}: weight_map: {printable(name)}",
                    "Index and files are of different versions; download all of them again.",
                )


def count_differs(index: SafetensorsIndex, headers: Mapping[str, FileHeader], where: str) -> Problem | None:
    """Say if `metadata.total_size` is not what the files hold.

    No library checks this number, and it is counted in several ways: bytes of the tensors (transformers, which counts
    a view as the whole memory that it is taken from), bytes of the files with their headers (older mlx-lm), or what it
    was before the weights were quantized. So a difference is worth a note, and no reason to refuse weights of which
    every byte is accounted for.
    """
    data_nbytes = sum(header.data_nbytes for header in headers.values())
    files_nbytes = sum(header.file_nbytes for header in headers.values())
    if index.total_nbytes is None or index.total_nbytes in {data_nbytes, files_nbytes}:
        return None
    return Problem(f"metadata.total_size is {index.total_nbytes:,}, but the tensors have {data_nbytes:,} bytes", where)


def _faults(weight_map: Mapping[str, object], where: str, suffix: str) -> Iterator[Problem]:
    seen: set[str] = set()
    for name, filename in weight_map.items():
        if not isinstance(filename, str):
            what = f"expected the name of a file, got {describe(filename)}"
        elif filename in seen:  # many tensors share a file, whose name is looked at once
            continue
        else:
            seen.add(filename)
            fault = filename_fault(filename, suffix)
            if fault is None:
                continue
            what = f"the file '{printable(filename)}' {fault}"
        yield Problem(what, f"{where}: weight_map: {printable(name)}", _RESAVE)


def is_index(filename: str) -> bool:
    """Whether a file is an index by its name, with a variant (`model.safetensors.index.fp16.json`) or without."""
    return index_suffix(filename) is not None


def index_suffix(filename: str) -> str | None:
    """How the names of the files end that an index is about, by its own name; None if it is no index."""
    if not filename.endswith(".json"):
        return None
    return next((suffix for suffix in INDEXED_SUFFIXES if f"{suffix}.index." in filename), None)


def filename_fault(filename: str, suffix: str = SUFFIX) -> str | None:
    """Say why a name in an index can't be a file beside it; None if it can."""
    if not filename.endswith(suffix) or filename == suffix:
        return f"is not a {suffix} file"
    if "://" in filename:
        return "is a URL"
    if "\\" in filename or (len(filename) > 1 and filename[1] == ":"):
        return "is a Windows path, not a plain file name"
    if "/" in filename or "\0" in filename or filename.startswith("."):
        return "is not a plain file name"
    return None
