"""Checkpoints of several files, each with a place of its own: components, and the parts of a tensor-parallel model.

A side of a spec that lists such `files:` writes every key as `LABEL:KEY`. A label is a word (`unet`), or a placeholder
(`{t}`) that stands in the file's name too; then the number of the file is an index in the key like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from converters.errors import CoverageError, Location, SpecError
from converters.sharding import Shard, split_into_shards
from converters.tensor_info import TensorInfo
from converters.text import printable

SEPARATOR: Final = ":"
WEIGHT_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz")


class Part(Struct, frozen=True):
    """One file of a checkpoint, or with a placeholder as many as there are.

    Attributes:
        label: what stands before the colon in its keys, without braces.
        before: of the file's path, up to the number; all of it, but for the suffix, where there is no placeholder.
        after: of the file's path, between the number and the suffix.
        suffix: such as `.safetensors`.
        digits: at least so many, with leading zeros; None for a part without a placeholder.
    """

    label: str
    before: str
    after: str
    suffix: str
    digits: int | None = None

    @property
    def numbered(self) -> bool:
        """Whether there is a file for each index."""
        return self.digits is not None

    @property
    def label_text(self) -> str:
        """The label as the spec writes it."""
        return f"{{{self.label}}}" if self.numbered else self.label

    @property
    def file_text(self) -> str:
        """The file as the spec writes it."""
        if self.digits is None:
            return self.before + self.suffix
        width = f":0{self.digits}" if self.digits > 1 else ""
        return f"{self.before}{{{self.label}{width}}}{self.after}{self.suffix}"

    @property
    def directory(self) -> str:
        """The directory of its file, relative to the checkpoint's; empty where it is that one."""
        parent = str(PurePosixPath(self.before + "x").parent)
        return "" if parent == "." else parent

    def stem(self, label: str) -> str:
        """The path of the file with this label, without its suffix."""
        return self.before if self.digits is None else f"{self.before}{int(label):0{self.digits}d}{self.after}"

    def label_of(self, file: str) -> str | None:
        """The label of a file, whatever its suffix; None where it is none of this part's."""
        stem, dot, suffix = file.rpartition(".")
        if f"{dot}{suffix}" not in WEIGHT_SUFFIXES:
            return None
        if self.digits is None:
            return self.label if stem == self.before else None
        number = stem[len(self.before) : len(stem) - len(self.after)]
        if not (stem.startswith(self.before) and stem.endswith(self.after) and number.isascii() and number.isdigit()):
            return None
        label = str(int(number))
        return label if self.stem(label) == stem else None


def parse_part(label: str, file: str, location: Location | None = None) -> Part:
    """Read an entry of `files:`.

    Raises:
        SpecError: the file isn't a path inside the checkpoint's directory, or its placeholder isn't that of the label.
    """
    hint = "write 'unet: unet/model.safetensors', or '\"{t}\": \"consolidated.{t:02}.pth\"' for one file an index"
    path = _path_inside(file, location, hint)
    if path.suffix not in WEIGHT_SUFFIXES:
        raise SpecError(f"{file!r} doesn't end in one of {', '.join(WEIGHT_SUFFIXES)}", location, hint)
    stem = file.removesuffix(path.suffix)
    numbered = label.startswith("{") and label.endswith("}")
    name = label[1:-1] if numbered else label
    if not name.isidentifier():
        raise SpecError(f"{label!r} is no label of a file", location, hint)
    if not numbered:
        if "{" in file or "}" in file:
            raise SpecError(f"{file!r} has a placeholder, and its label {label!r} has none", location, hint)
        return Part(name, stem, "", path.suffix)
    before, brace, rest = stem.partition("{")
    inner, close, after = rest.partition("}")
    placeholder, colon, width = inner.partition(":")
    padded = not colon or (width.isascii() and width.isdigit() and width.startswith("0") and int(width) > 0)
    if not brace or not close or placeholder != name or not padded or "{" in after or "}" in after:
        raise SpecError(f"{file!r} must have {{{name}}} once, or {{{name}:02}} for leading zeros", location, hint)
    return Part(name, before, after, path.suffix, int(width) if colon else 1)


def parse_config_entry(label: str, file: str, location: Location | None = None) -> tuple[str, str]:
    """Read an entry of `files:` that is a config and holds no weights.

    Raises:
        SpecError: the file isn't a path inside the checkpoint's directory, or the label is no name.
    """
    hint = "write 'scheduler: scheduler/scheduler_config.json'"
    _path_inside(file, location, hint)
    if not label.isidentifier():
        raise SpecError(f"{label!r} is no label of a config", location, hint)
    return label, file


def same_file(parts: Sequence[Part]) -> tuple[Part, Part] | None:
    """Two parts that one file would be, since a file is found whatever its suffix; None where each has its own."""
    for number, part in enumerate(parts):
        for other in (*parts[:number], *parts[number + 1 :]):
            if not other.numbered and part.label_of(other.file_text) is not None:
                return part, other
    return None


def _path_inside(file: str, location: Location | None, hint: str) -> PurePosixPath:
    path = PurePosixPath(file)
    inside = not path.is_absolute() and ".." not in path.parts and "\\" not in file and file.isprintable()
    if not file or not inside or str(path) != file:
        raise SpecError(f"{file!r} is no path of a file inside the checkpoint's directory", location, hint)
    return path


def split_key(key: str) -> tuple[str, str]:
    """The label of a key, empty where it has none, and the tensor's name in its file."""
    label, separator, name = key.partition(SEPARATOR)
    return (label, name) if separator else ("", key)


def label_prefix(parts: Sequence[Part], names: Iterable[str]) -> str:
    """What the names of a state dict lack to be keys: `0:` where it is the only one of numbered parts, else nothing."""
    if not any(part.numbered for part in parts):
        return ""
    return "" if any(split_key(name)[0].isdecimal() for name in names) else f"0{SEPARATOR}"


def common_label(parts: Sequence[Part], keys: Iterable[str]) -> str:
    """The inverse of `label_prefix`: `0:` where all keys begin so, as those of the only part do; else nothing."""
    prefix = f"0{SEPARATOR}"
    return prefix if any(part.numbered for part in parts) and all(key.startswith(prefix) for key in keys) else ""


def shards_in_one(file: str, tensors: Sequence[TensorInfo]) -> tuple[Shard, ...]:
    """All tensors in one file of this name, however large it grows; no tensors give no file."""
    return (Shard(file, tuple(tensors)),) if tensors else ()


def shards_of_parts(parts: Sequence[Part], tensors: Sequence[TensorInfo], max_shard_nbytes: int) -> tuple[Shard, ...]:
    """Place tensors, whose names have labels, in the files of their parts.

    A numbered file is always one, since its number says already what part it is. Others that would grow past the
    limit become several, with an index.

    Raises:
        CoverageError: a label is no number, and its file needs one.
    """
    by_label: dict[str, list[TensorInfo]] = {}
    for info in tensors:
        by_label.setdefault(split_key(info.name)[0], []).append(info)
    numbered = next((part for part in parts if part.numbered), None)
    plain: Mapping[str, Part] = {part.label: part for part in parts if not part.numbered}
    shards: list[Shard] = []
    for label, infos in by_label.items():
        part = plain.get(label, numbered)
        if part is None:
            raise AssertionError(f"the spec's check lets no key with the label {label!r} pass")
        if part.numbered and not (label.isascii() and label.isdigit() and str(int(label)) == label):
            what = f"{printable(infos[0].name)}: {printable(label)} is no number, and {part.file_text} needs one"
            raise CoverageError(what, hint=f"make it one, as in 'placeholders: {{{part.label}: int}}'")
        stem = part.stem(label)
        if part.numbered:
            files = shards_in_one(stem + part.suffix, infos)
        else:
            files = split_into_shards(infos, max_shard_nbytes, stem, part.suffix)
        shards.extend(replace(shard, part=label) for shard in files)
    return tuple(shards)
