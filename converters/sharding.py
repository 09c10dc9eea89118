"""Which tensor goes into which file. Pure: names and sizes only.

The split is the one of `huggingface_hub.split_torch_state_dict_into_shards`, to the byte, so that a converted
checkpoint is laid out as transformers would have saved it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from converters.errors import WeightmapError
from converters.tensor_info import TensorInfo
from converters.text import printable

DEFAULT_BASE_NAME: Final = "model"
"""What transformers calls its weights; diffusers and others have names of their own."""

_UNIT_NBYTES: Final = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3}
_SIZE_HINT: Final = "Write a number and a decimal unit (KB, MB, GB, TB), such as 5GB, or a plain number of bytes."


DEFAULT_SUFFIX: Final = ".safetensors"


FORMATS: Final = {
    "safetensors": (DEFAULT_BASE_NAME, DEFAULT_SUFFIX),
    "bin": ("pytorch_model", ".bin"),
    "dcp": (DEFAULT_BASE_NAME, ".distcp"),
}
"""The formats of output, and what the files of each are called, as transformers does: base name and suffix."""


class Shard(Struct, frozen=True):
    """One file of a checkpoint, and the tensors in it.

    Attributes:
        filename: relative to the checkpoint's directory.
        tensors: in the order of the file.
        part: the label of the part that it belongs to, which the names of its tensors begin with; see `parts.py`.
        data_phase: where the data of a safetensors file begins within a block, see `storage/shared_blocks.py`; None
            where that doesn't matter.
    """

    filename: str
    tensors: tuple[TensorInfo, ...]
    part: str = ""
    data_phase: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors together, without the header."""
        return sum(info.nbytes for info in self.tensors)


def parse_size(text: str | int) -> int:
    """Read a size in decimal units ("5GB", "500 MB", "1.5TB") or in plain bytes; returns bytes.

    Raises:
        WeightmapError: not a size, or not above zero.
    """
    if isinstance(text, int):
        nbytes = text
    else:
        # Fractions are rounded as in huggingface_hub, through a float: "4.1KB" is 4099 bytes there, too.
        number, multiplier = _split_unit(text.strip())
        try:
            nbytes = int(number) if multiplier == 1 else int(float(number) * multiplier)
        except (ValueError, OverflowError):
            raise _not_a_size(text) from None
    if nbytes <= 0:
        raise WeightmapError(f"a size must be above zero, got '{printable(str(text))}'", hint=_SIZE_HINT)
    return nbytes


def split_into_shards(
    tensors: Sequence[TensorInfo],
    max_shard_nbytes: int,
    base_name: str = DEFAULT_BASE_NAME,
    suffix: str = DEFAULT_SUFFIX,
) -> tuple[Shard, ...]:
    """Fill files one after the other, in the order given; one that would grow past the limit is closed first.

    A tensor larger than the limit gets a file of its own, before the one that is being filled. Empty tensors all go
    where the first of them goes, since huggingface_hub takes them for views of one memory block (its `meta` tensors
    excepted). No tensors give no files.

    Args:
        tensors: what to place, in order; names must differ.
        max_shard_nbytes: most bytes of tensors in one file, above zero.
        base_name: `model` for `model.safetensors`, or `model-00001-of-00002.safetensors` and so on.
        suffix: what the files' names end in.
    """
    if max_shard_nbytes <= 0:
        raise ValueError(f"max_shard_nbytes must be above zero, got {max_shard_nbytes}")
    closed: list[list[TensorInfo]] = []
    filling: list[TensorInfo] = []
    filled_nbytes = 0
    empty: list[TensorInfo] = []
    for info in tensors:
        nbytes = info.nbytes
        if nbytes == 0:
            empty.append(info)
            if len(empty) > 1:
                continue
        if nbytes > max_shard_nbytes:
            closed.append([info])
            continue
        if filled_nbytes + nbytes > max_shard_nbytes:
            closed.append(filling)
            filling, filled_nbytes = [], 0
        filling.append(info)
        filled_nbytes += nbytes
    if filling:
        closed.append(filling)
    if len(empty) > 1:
        home = next(shard for shard in closed if any(info is empty[0] for info in shard))
        home.extend(empty[1:])
    return tuple(
        Shard(shard_filename(base_name, number, len(closed), suffix), tuple(shard))
        for number, shard in enumerate(closed, 1)
    )


def shard_filename(base_name: str, number: int, count: int, suffix: str = DEFAULT_SUFFIX) -> str:
    """Name the shard `number` of `count`, counted from one; a single shard has no number."""
    place = "" if count == 1 else f"-{number:05d}-of-{count:05d}"
    return f"{base_name}{place}{suffix}"


def index_filename(base_name: str = DEFAULT_BASE_NAME, suffix: str = DEFAULT_SUFFIX) -> str:
    """Name the index of a checkpoint in several shards."""
    return f"{base_name}{suffix}.index.json"


def in_format(shards: Sequence[Shard], file_format: str) -> tuple[Shard, ...]:
    """Name the same shards as the files of another format are named; see `FORMATS`."""
    base_name, suffix = FORMATS[file_format]
    usual = {base for base, _ in FORMATS.values()}
    renamed = []
    for shard in shards:
        path = PurePosixPath(shard.filename)
        base, dash, number = path.stem.partition("-")
        if base in usual and (not dash or "-of-" in number):
            path = path.with_name(f"{base_name}{dash}{number}")
        else:
            path = path.with_suffix("")
        renamed.append(replace(shard, filename=f"{path}{suffix}"))
    return tuple(renamed)


def _split_unit(text: str) -> tuple[str, int]:
    multiplier = _UNIT_NBYTES.get(text[-2:].upper())
    return (text[:-2].strip(), multiplier) if multiplier else (text, 1)


def _not_a_size(text: str) -> WeightmapError:
    hint = _SIZE_HINT
    if text.strip().upper().endswith("IB"):
        hint = "Binary units are not supported: a gibibyte is 1.073741824GB. " + _SIZE_HINT
    return WeightmapError(f"'{printable(text)}' is not a size", hint=hint)
