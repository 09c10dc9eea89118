"""What a safetensors header says of each tensor, checked: first each by itself, then whether they tile the data."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Final

from converters.errors import CheckpointError, Problem
from converters.storage.strict_json import JsonObject, describe
from converters.tensor_info import DType, TensorInfo
from converters.text import format_nbytes, printable

Extent = tuple[int, int, TensorInfo]
"""Where a tensor begins and ends, in bytes from the start of the data, and what it is."""

MAX_RANK: Final = 64
"""Most dimensions of a tensor, as in torch and numpy; without a bound, multiplying a hostile shape takes hours."""

MAX_REPORTED: Final = 20
"""How many problems of one file are listed; a broken header can have a hundred thousand."""

DTYPES: Final = {dtype.label: (dtype, dtype.bits) for dtype in DType}
"""Each dtype and its width in bits, by the name that a header uses."""

_MAX_INT: Final = 2**63 - 1
_FIELDS: Final = ("dtype", "shape", "data_offsets")
_OFFSETS: Final = 2
_INT_ONLY: Final = frozenset({int})


def parse_extents(document: JsonObject, where: str) -> list[Extent]:
    """Check each tensor by itself; one `(begin, end, info)` each, offsets in bytes within the data."""
    extents: list[Extent] = []
    problems: list[Problem] = []
    for name, entry in document.items():
        # This loop runs a hundred thousand times for a large model: it only says yes or no, and _fault says why.
        try:
            dtype, bits = DTYPES[entry["dtype"]]
            shape = entry["shape"]
            begin, end = entry["data_offsets"]
            if (
                len(entry) == len(_FIELDS)
                and type(shape) is list
                and type(begin) is type(end) is int
                and 0 <= begin <= end <= _MAX_INT
                and len(shape) <= MAX_RANK
                and (not shape or (_INT_ONLY.issuperset(map(type, shape)) and min(shape) >= 0))
                and prod(shape) * bits == (end - begin) * 8
                and (begin != end or is_addressable(shape))
            ):
                extents.append((begin, end, TensorInfo(name, tuple(shape), dtype)))
                continue
        except (KeyError, TypeError, ValueError):
            pass
        problems.append(Problem(_fault(entry), f"{where}: {printable(name)}"))
    _raise_all(problems)
    return extents


def check_tiling(extents: list[Extent], data_nbytes: int, where: str) -> int:
    """Sort the extents in place, and check that they cover the data once, without holes; return their end."""
    extents.sort(key=_by_range)
    position = 0
    problems: list[Problem] = []
    owner = ""
    for begin, end, info in extents:
        if begin != position:
            what = (
                f"no tensor owns bytes {position:,} to {begin:,} of the data"
                if begin > position
                else f"its bytes {begin:,} to {end:,} overlap those of '{printable(owner)}', which end at {position:,}"
            )
            problems.append(
                Problem(what, f"{where}: {printable(info.name)}", "The file is damaged; download it again.")
            )
        if end >= position:
            position, owner = end, info.name
    if position > data_nbytes:
        problems.append(
            Problem(
                f"its tensors need {position:,} bytes, but it holds {data_nbytes:,}",
                where,
                f"It was truncated ({format_nbytes(position - data_nbytes)} are missing); copy or download it again.",
            )
        )
    elif position < data_nbytes:
        problems.append(
            Problem(
                f"{data_nbytes - position:,} bytes at its end belong to no tensor",
                where,
                "Something was appended to it, or its header is damaged; download it again.",
            )
        )
    _raise_all(problems)
    return position


def _by_range(extent: Extent) -> tuple[int, int]:
    return extent[0], extent[1]


def is_addressable(shape: Sequence[int]) -> bool:
    """Whether the strides of an empty tensor fit into 64 bits, too: [0, 2**62, 2**62] is no shape of any library."""
    return prod(size or 1 for size in shape) <= _MAX_INT


def _fault(entry: Any) -> str:  # noqa: ANN401, PLR0911 - whatever the JSON held; one line for each cause
    """Say what is wrong with a tensor's entry in a header."""
    if not isinstance(entry, dict):
        return f"expected an object with dtype, shape and data_offsets, got {describe(entry)}"
    if missing := [field for field in _FIELDS if field not in entry]:
        return f"its {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    if unknown := [field for field in entry if field not in _FIELDS]:
        return f"the header format has no field '{printable(unknown[0])}'"
    label, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(label, str) or label not in DTYPES:
        return f"unknown dtype {describe(label)}; known are {', '.join(DTYPES)}"
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        wrong = next((size for size in shape if not _is_size(size)), None) if isinstance(shape, list) else shape
        return f"a shape is a list of whole numbers, got {describe(wrong)}"
    if not isinstance(offsets, list) or len(offsets) != _OFFSETS or not all(map(_is_size, offsets)):
        wrong = (
            next((offset for offset in offsets if not _is_size(offset)), None) if isinstance(offsets, list) else None
        )
        return f"data_offsets are two whole numbers, got {describe(offsets if wrong is None else wrong)}"
    return _size_fault(label, shape, *offsets)


def _size_fault(label: str, shape: list[int], begin: int, end: int) -> str:
    if begin > end:
        return f"data_offsets [{begin}, {end}] are not a range"
    if len(shape) > MAX_RANK:
        return f"it has {len(shape):,} dimensions; at most {MAX_RANK} are supported"
    if not is_addressable(shape):
        return f"shape {shape} is larger than any memory"
    nbits = prod(shape) * DTYPES[label][1]
    if nbits % 8:
        return f"shape {shape} of {label} ends within a byte ({nbits:,} bits)"
    return f"shape {shape} of {label} takes {nbits // 8:,} bytes, but data_offsets give {end - begin:,}"


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_INT


def first_of(problems: Sequence[Problem]) -> list[Problem]:
    """As many problems of one file as help, and how many more there are."""
    if len(problems) <= MAX_REPORTED:
        return list(problems)
    return [*problems[:MAX_REPORTED], Problem(f"... and {len(problems) - MAX_REPORTED:,} more problems of this file")]


def _raise_all(problems: list[Problem]) -> None:
    if problems:
        raise CheckpointError(first_of(problems))
