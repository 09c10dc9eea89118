"""What the name of a shard says, such as `model-00001-of-00002.safetensors`."""

from __future__ import annotations

from typing import Final

from converters.storage.safetensors_index import INDEXED_SUFFIXES

_MAX_DIGITS: Final = 18


def shard_count(filename: str) -> int:
    """Read how many shards there are from a name such as `model-00001-of-00002.safetensors`; 0 if it has none."""
    split = _split_shard_name(filename)
    return split[1] if split else 0


def shard_family(filename: str) -> str | None:
    """Read what the names of one checkpoint's shards have in common, `model` of the name above; None if it has none."""
    split = _split_shard_name(filename)
    return split[0] if split else None


def _split_shard_name(filename: str) -> tuple[str, int] | None:
    suffix = next((suffix for suffix in INDEXED_SUFFIXES if filename.endswith(suffix)), None)
    if suffix is None:
        return None
    head, separator, count = filename.removesuffix(suffix).rpartition("-of-")
    family, dash, number = head.rpartition("-")
    if not separator or not dash or len(number) > _MAX_DIGITS or len(count) > _MAX_DIGITS:
        return None
    return (family, int(count)) if all(part.isascii() and part.isdigit() for part in (number, count)) else None
