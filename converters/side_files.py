"""config.json, and the files of a checkpoint directory that hold no weights: which are carried along, which are not."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.errors import ConfigError
from converters.storage.checkpoint import resolve_member
from converters.storage.files import read_small_file
from converters.storage.strict_json import StrictJsonError, parse_object
from converters.text import printable

CONFIG = "config.json"
MAX_CONFIG_NBYTES = 16_000_000
MAX_CARRIED_NBYTES = 512_000_000
"""Bytes: the largest tokenizers take some tens of megabytes, so more than this is something else."""

# Text that belongs to a model whatever layout its weights have. The names are those of transformers and the Hub.
_CARRIED_NAMES = frozenset({
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "generation_config.json", "merges.txt",
    "preprocessor_config.json", "processor_config.json", "sentencepiece.bpe.model", "special_tokens_map.json",
    "spiece.model", "vocab.json", "vocab.txt", "image_processor_config.json", "video_preprocessor_config.json",
    "feature_extractor_config.json",
})  # fmt: skip
_CARRIED_STARTS = ("tokenizer", "license", "licence", "notice", "copying", "use_policy")
_CARRIED_DIRECTORIES = frozenset({"additional_chat_templates"})


@dataclass(frozen=True, slots=True)
class SideFiles:
    """What lies beside the weights.

    Attributes:
        carried: paths relative to the source that are copied, byte for byte.
        left: names in the source that are not, weights and config.json excepted.
    """

    root: Path
    carried: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def copy_to(self, directory: Path) -> None:
        """Copy the carried files.

        Raises:
            CheckpointError: one can't be read, or is too large to be what its name says.
        """
        for name in self.carried:
            source = resolve_member(self.root, name)
            data = read_small_file(source, MAX_CARRIED_NBYTES, printable(str(self.root / name)))
            target = directory / name
            target.parent.mkdir(exist_ok=True)
            _write_new(target, data)


def find_side_files(root: Path, weights: Sequence[str]) -> SideFiles:
    """Sort the files of a checkpoint directory; `weights` are those that hold its tensors."""
    if not root.is_dir():
        return SideFiles(root)
    carried, left = [], []
    for entry in sorted(root.iterdir(), key=lambda path: path.name):
        name = entry.name
        if name == CONFIG or name in weights or name.endswith(".safetensors.index.json"):
            continue
        if entry.is_dir():
            inner = [f"{name}/{file.name}" for file in sorted(entry.iterdir()) if file.is_file()]
            if name in _CARRIED_DIRECTORIES:
                carried.extend(inner)
            elif not name.startswith("."):
                left.append(f"{name}/")
        elif name in _CARRIED_NAMES or name.lower().startswith(_CARRIED_STARTS):
            carried.append(name)
        elif not name.startswith("."):
            left.append(name)
    return SideFiles(root, tuple(carried), tuple(left))


def read_config(path: Path) -> dict[str, Any] | None:
    """The config.json of a checkpoint (a directory, a file beside its config, or the config itself); None without one.

    Raises:
        ConfigError: it isn't a JSON object, or can't be read.
    """
    if path.suffix == ".json" and not path.name.endswith(".index.json"):
        config = path
    else:
        config = (path if path.is_dir() else path.parent) / CONFIG
        if not config.exists():
            return None
        config = resolve_member(config.parent, CONFIG)
    where = printable(str(config))
    try:
        # Published configs hold Infinity where a bound is open, as Python's json writes it.
        return parse_object(read_small_file(config, MAX_CONFIG_NBYTES, where), infinite=True)
    except StrictJsonError as error:
        raise ConfigError(str(error), where, "config.json must be one JSON object") from None


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Write config.json as transformers does: two spaces, sorted keys, a newline."""
    _write_new(directory / CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def _write_new(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
