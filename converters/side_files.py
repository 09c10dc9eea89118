"""config.json, and the files of a checkpoint directory that hold no weights: which are carried along, which are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from converters.adapters import ADAPTER_CONFIG, ADAPTER_NAME
from converters.config_file import CONFIG_SUFFIXES, config_text, load_config
from converters.digests import digest_of
from converters.errors import ConfigError
from converters.manifest import MANIFEST, Input
from converters.parts import WEIGHT_SUFFIXES
from converters.spec import CONFIG_FILE, Side
from converters.storage.checkpoint import resolve_member
from converters.storage.files import make_directory, read_small_file, write_new_file
from converters.storage.formats import METADATA
from converters.text import printable

PLAIN = Side("")
"""A side that says nothing of its files: one config.json, and weights that any name may have."""

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
_INDEX_SUFFIX = ".index.json"
_CARRIED_DIRECTORIES = frozenset({"additional_chat_templates"})


class SideFiles(Struct, frozen=True):
    """What lies beside the weights.

    Attributes:
        carried: paths relative to the source that are copied, byte for byte.
        left: names in the source that are not, weights and config.json excepted.
        described: configs and indexes, which the output has of its own; paths relative to the source, too.
    """

    root: Path
    carried: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    described: tuple[str, ...] = ()

    def inputs(self, digest: str | None) -> list[Input]:
        """What was read of these files, for the manifest.

        Raises:
            CheckpointError: one can't be read any more.
        """
        found = []
        for name in (*self.described, *self.carried):
            where = printable(str(self.root / name))
            content = read_small_file(resolve_member(self.root, name), MAX_CARRIED_NBYTES, where)
            found.append(Input(name, len(content), digest_of([content], digest) if digest is not None else None))
        return found

    def copy_to(self, directory: Path) -> None:
        """Copy the carried files.

        Raises:
            CheckpointError: one can't be read, or is too large to be what its name says.
            OutputError: one can't be written.
        """
        for name in self.carried:
            source = resolve_member(self.root, name)
            data = read_small_file(source, MAX_CARRIED_NBYTES, printable(str(self.root / name)))
            target = directory / name
            make_directory(target.parent)
            write_new_file(target, data, sync=False)  # all of it is flushed before the rename


def find_side_files(root: Path, weights: Sequence[str], side: Side = PLAIN) -> SideFiles:
    """Sort the files of a checkpoint directory; `weights` are those that hold its tensors.

    Of a file, only what describes it is there: its config, and itself if it is an index.
    """
    if not root.is_dir():
        names = {CONFIG_FILE, side.config_file, root.name if _is_index(root.name) else ""} - {""}
        beside = (name for name in sorted(names) if (root.parent / name).is_file())
        return SideFiles(root.parent, described=tuple(beside))
    carried, left, described = [], [], _described_in_folders(root, weights, side)
    folders = {part.directory for part in side.files} | {file.partition("/")[0] for _, file in side.configs}
    for entry in sorted(root.iterdir(), key=lambda path: path.name):
        name = entry.name
        if name in folders or name in weights:
            continue
        if name in {CONFIG_FILE, side.config_file, MANIFEST} or _is_index(name):
            foreign = _is_index(name) and not _is_index_of(name, weights)  # of the same weights in another format
            if entry.is_file() and name not in described and not foreign:
                described.append(name)
            continue
        if not _is_text(name):  # the manifest couldn't name it
            left.append(name)
            continue
        if entry.is_dir():
            inner = [
                f"{name}/{file.name}" for file in sorted(entry.iterdir()) if file.is_file() and _is_text(file.name)
            ]
            if name in _CARRIED_DIRECTORIES:
                carried.extend(inner)
            elif not name.startswith("."):
                left.append(f"{name}/")
        elif name in _CARRIED_NAMES or name.lower().startswith(_CARRIED_STARTS):
            carried.append(name)
        elif not name.startswith("."):
            left.append(name)
    return SideFiles(root, tuple(carried), tuple(left), tuple(described))


def _described_in_folders(root: Path, weights: Sequence[str], side: Side) -> list[str]:
    """Configs and indexes of parts, which lie in directories of their own."""
    folders = sorted({folder for name in weights if (folder := name.rpartition("/")[0])})
    indexes = [
        f"{folder}/{file.name}"
        for folder in folders
        for file in sorted((root / folder).iterdir(), key=lambda path: path.name)
        if _is_index_of(file.name, weights) and file.is_file()
    ]
    return [*indexes, *(file for _, file in _configs_of_parts(side) if (root / file).is_file())]


def _is_index(name: str) -> bool:
    """Whether a file says where the weights are; of a distributed checkpoint, that is `.metadata`."""
    return name.endswith(_INDEX_SUFFIX) or name == METADATA


def _is_index_of(name: str, weights: Sequence[str]) -> bool:
    suffix = Path(name.removesuffix(_INDEX_SUFFIX)).suffix
    return name == METADATA or (name.endswith(_INDEX_SUFFIX) and any(file.endswith(suffix) for file in weights))


def _is_text(name: str) -> bool:
    """Whether a file's name is valid Unicode; to Linux, names are bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_config(path: Path, side: Side = PLAIN) -> dict[str, Any] | None:
    """The config of a checkpoint (a directory, a file beside its config, or the config itself); None without one.

    The config.json of a part in a directory of its own is found under the part's label.

    Raises:
        ConfigError: it is no mapping in JSON or YAML, or can't be read.
    """
    if path.suffix in CONFIG_SUFFIXES and not path.name.endswith(_INDEX_SUFFIX):
        return load_config(path)
    root = path if path.is_dir() else path.parent
    config: dict[str, Any] | None = None if side.config_file else {}
    if side.config_file:
        name = side.config_file if (root / side.config_file).exists() else CONFIG_FILE
        config = load_config(resolve_member(root, name), name) if (root / name).exists() else None
    for label, inner in _configs_of_parts(side):
        if (root / inner).exists():
            if config is not None and label in config:
                raise _two_of(label, str(root / side.config_file), inner)
            config = {**(config or {}), label: load_config(resolve_member(root, inner))}
    return config


def _two_of(label: str, main: str, inner: str) -> ConfigError:
    return ConfigError(
        f"'{printable(label)}' is a key of it, and the label of {printable(inner)}",
        printable(main),
        "with 'config_file: null', and the main config under 'files:' with a label of its own, the two are apart",
    )


def _configs_of_parts(side: Side) -> list[tuple[str, str]]:
    """The label and the file of each config that isn't the main one."""
    beside = [(part.label, f"{part.directory}/{CONFIG_FILE}") for part in side.files if part.directory]
    return [*beside, *side.configs]


def read_adapter_config(path: Path) -> dict[str, Any] | None:
    """The adapter_config.json of a PEFT adapter (its directory, or its file); None where it is something else.

    Raises:
        ConfigError: there is none beside the adapter's weights, or it isn't a JSON object.
    """
    root = path if path.is_dir() else path.parent
    names = [entry.name for entry in path.iterdir()] if path.is_dir() else [path.name]
    weights = [name for name in names if name.startswith(f"{ADAPTER_NAME}.") and name.endswith(WEIGHT_SUFFIXES)]
    if not weights:
        return None
    if not (root / ADAPTER_CONFIG).exists():
        what = f"{printable(weights[0])} is an adapter, and there is no {ADAPTER_CONFIG} beside it"
        raise ConfigError(what, printable(str(root)), f"download {ADAPTER_CONFIG}, too")
    return load_config(resolve_member(root, ADAPTER_CONFIG))


def write_config(directory: Path, config: Mapping[str, Any], side: Side = PLAIN) -> None:
    """Write the config under the name that the layout gives it; that of a part goes to its directory."""
    rest = dict(config)
    for label, file in _configs_of_parts(side):
        inner = rest.pop(label, None)
        if inner is not None and not isinstance(inner, Mapping):
            raise _two_of(label, side.config_file, file)
        if inner is not None:
            make_directory((directory / file).parent)
            _write_config_file(directory / file, inner)
    if side.config_file and (rest or not side.files):
        _write_config_file(directory / side.config_file, rest)


def _write_config_file(path: Path, config: Mapping[str, Any]) -> None:
    write_new_file(path, config_text(path.name, config).encode(), sync=False)  # all of it is flushed before the rename
