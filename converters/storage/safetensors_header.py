"""The header of a safetensors file: bytes in, checked tensors and offsets out, and the way back. Pure: no files.

A file is an 8-byte little-endian length, that many bytes of JSON, and the tensors' data. The JSON maps each name to
its dtype, shape and `data_offsets`, a byte range within the data. A header is accepted only if these ranges tile
the data exactly, so that no byte has two owners and none is without one.

Source: the format's description in huggingface/safetensors (README.md), and its reader (safetensors/src/tensor.rs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from converters.errors import CheckpointError, OutputError, Problem
from converters.storage.content import HINTS, sniff
from converters.storage.safetensors_extents import check_tiling, parse_extents
from converters.storage.safetensors_scan import HeaderEntry, scan_header
from converters.storage.strict_json import JsonObject, StrictJsonError, describe, parse_object
from converters.tensor_info import TensorInfo
from converters.text import printable

LENGTH_NBYTES: Final = 8
"""Bytes before the JSON, which say how long it is."""

MAX_HEADER_NBYTES: Final = 100_000_000
"""Longest header that is read or written, in bytes; the same as in the safetensors library."""

BLOCK: Final = 4096
"""Bytes of a block in the usual file systems; files can share whole blocks."""

METADATA_KEY: Final = "__metadata__"
"""The key of a header that holds free text; no tensor can have this name."""

PT_METADATA: Final[Mapping[str, str]] = {"format": "pt"}
"""The metadata of files for PyTorch; transformers refuses files without it."""


class SafetensorsHeader(Struct, frozen=True):
    """What a safetensors file says of itself, checked.

    Attributes:
        tensors: every tensor by name, in the order of its data.
        offsets: for each name, where its data begins, in bytes from the start of the data.
        metadata: the free text of `__metadata__`.
        data_start: where the data begins, in bytes from the start of the file.
        data_nbytes: bytes of all tensors together.
    """

    tensors: Mapping[str, TensorInfo]
    offsets: Mapping[str, int]
    metadata: Mapping[str, str]
    data_start: int
    data_nbytes: int

    @property
    def file_nbytes(self) -> int:
        """Bytes of the whole file: length, header and data."""
        return self.data_start + self.data_nbytes


def parse_length(start: bytes, file_nbytes: int, where: str) -> int:
    """Read the length of the JSON from the first bytes of a file.

    Args:
        start: the first bytes of the file: at least 8 if it has them; a few hundred let a wrong format be named.
        file_nbytes: size of the whole file.
        where: how errors name the file.

    Raises:
        CheckpointError: the file is empty, truncated, too long in its header, or something else altogether.
    """
    length = int.from_bytes(start[:LENGTH_NBYTES], "little")
    first = start[LENGTH_NBYTES : LENGTH_NBYTES + 1]
    # Only where a header is out of the question: its length may well begin like some other format.
    impossible = first not in {b"{", b""} or length > MAX_HEADER_NBYTES or len(start) < LENGTH_NBYTES
    if impossible and (found := sniff(start)):
        raise CheckpointError(f"this is {found}, not a safetensors file", where, HINTS.get(found))
    if len(start) < LENGTH_NBYTES:
        what = f"a safetensors file has at least {LENGTH_NBYTES} bytes, this one has {file_nbytes}"
    elif length > MAX_HEADER_NBYTES:
        what = f"its first 8 bytes give a header of {length:,} bytes, above the limit of {MAX_HEADER_NBYTES:,}"
    elif length > file_nbytes - LENGTH_NBYTES:
        what = f"its header needs {length:,} bytes, but only {file_nbytes - LENGTH_NBYTES:,} follow its length"
    elif length == 0 or first != b"{":
        what = "its header does not begin with '{'"
    else:
        return length
    raise CheckpointError(what, where, "It was truncated or damaged, or is something else; copy or download it again.")


def parse_header(raw: bytes | bytearray, file_nbytes: int, where: str) -> SafetensorsHeader:
    """Parse and check the JSON of a header.

    Args:
        raw: the JSON, as long as `parse_length` said, with the spaces that pad it.
        file_nbytes: size of the whole file.
        where: how errors name the file.

    Raises:
        CheckpointError: the JSON is not valid, a tensor contradicts itself, or the byte ranges don't tile the data.
    """
    data_start = LENGTH_NBYTES + len(raw)
    header = _parse_quickly(raw, data_start)
    if header is None or header.file_nbytes != file_nbytes:
        header = _parse_strictly(raw, data_start, file_nbytes, where)
    return header


def build_header(
    tensors: Sequence[TensorInfo], metadata: Mapping[str, str] = PT_METADATA, data_phase: int | None = None
) -> tuple[bytes, SafetensorsHeader]:
    """Lay tensors out in a file: its first bytes (length and JSON), and the header that they hold.

    The widest dtypes come first, else the given order is kept: so each tensor's data begins at a multiple of its
    element's size, and readers that map the file can use it in place.

    Args:
        tensors: what the file holds.
        metadata: its free text.
        data_phase: where the data begins, modulo `BLOCK`: a multiple of 8. Without it, at the next multiple of 8.

    Raises:
        OutputError: a name is taken twice, is `__metadata__` or not valid Unicode, a size is not whole bytes, or the
            header would be longer than readers accept.
    """
    problems = _problems_of_targets(tensors)
    if problems:
        raise OutputError(problems)
    ordered = in_file_order(tensors)
    offsets: dict[str, int] = {}
    position = 0
    for info in ordered:
        offsets[info.name] = position
        position += info.nbytes
    raw = _encode(ordered, offsets, metadata)
    raw += b" " * (-len(raw) % 8 if data_phase is None else (data_phase - LENGTH_NBYTES - len(raw)) % BLOCK)
    if len(raw) > MAX_HEADER_NBYTES:
        raise OutputError(
            f"the header of a shard with {len(ordered):,} tensors takes {len(raw):,} bytes; "
            f"readers accept {MAX_HEADER_NBYTES:,}",
            hint="Use smaller shards, or shorter names.",
        )
    header = SafetensorsHeader(
        tensors={info.name: info for info in ordered},
        offsets=offsets,
        metadata=dict(metadata),
        data_start=LENGTH_NBYTES + len(raw),
        data_nbytes=position,
    )
    return len(raw).to_bytes(LENGTH_NBYTES, "little") + raw, header


def in_file_order(tensors: Sequence[TensorInfo]) -> list[TensorInfo]:
    """The order in which the data of tensors follows each other in a file: the widest dtypes first."""
    return sorted(tensors, key=lambda info: -info.dtype.bits)


def rename_header(header: SafetensorsHeader, renamed: Mapping[str, TensorInfo]) -> tuple[bytes, SafetensorsHeader]:
    """Give the tensors of a file other names and shapes, and leave each byte of data where it is.

    Args:
        header: of the file as it is.
        renamed: for each of its tensors, by name, what it becomes, of as many bytes.

    Returns:
        The first bytes of the file (length and JSON), as many as before, and the header that they hold.

    Raises:
        OutputError: no file can hold such names, or they need more room than the header has.
    """
    tensors = [renamed[name] for name in header.tensors]
    problems = _problems_of_targets(tensors)
    if problems:
        raise OutputError(problems)
    offsets = {renamed[name].name: offset for name, offset in header.offsets.items()}
    raw = _encode(tensors, offsets, header.metadata)
    room = header.data_start - LENGTH_NBYTES
    if len(raw) > room:
        raise OutputError(f"its header has room for {room:,} bytes, and needs {len(raw):,} with the new names")
    result = replace(header, tensors={info.name: info for info in tensors}, offsets=offsets)
    return room.to_bytes(LENGTH_NBYTES, "little") + raw.ljust(room), result


def _encode(tensors: Sequence[TensorInfo], offsets: Mapping[str, int], metadata: Mapping[str, str]) -> bytes:
    """The JSON of a header, without padding."""
    document: JsonObject = {METADATA_KEY: dict(metadata)} if metadata else {}
    for info in tensors:
        begin = offsets[info.name]
        document[info.name] = HeaderEntry(info.dtype.label, info.shape, (begin, begin + info.nbytes))
    return msgspec.json.encode(document)


def _parse_quickly(raw: bytes | bytearray, data_start: int) -> SafetensorsHeader | None:
    """Read a header in the usual form; None if it has another form, or is wrong: then the strict parser says how."""
    try:
        scanned = scan_header(raw)
        if scanned is None:
            return None
        metadata = _parse_metadata(None if scanned.metadata is None else parse_object(scanned.metadata))
    except StrictJsonError:
        return None
    return SafetensorsHeader(scanned.tensors, scanned.offsets, metadata, data_start, scanned.data_nbytes)


def _parse_strictly(raw: bytes | bytearray, data_start: int, file_nbytes: int, where: str) -> SafetensorsHeader:
    try:
        document = parse_object(raw)
        metadata = _parse_metadata(document.pop(METADATA_KEY, None))
    except StrictJsonError as error:
        raise CheckpointError(f"its header is not valid: {error}", where, "Download or save the file again.") from None
    extents = parse_extents(document, where)
    data_nbytes = check_tiling(extents, file_nbytes - data_start, where)
    return SafetensorsHeader(
        tensors={info.name: info for _, _, info in extents},
        offsets={info.name: begin for begin, _, info in extents},
        metadata=metadata,
        data_start=data_start,
        data_nbytes=data_nbytes,
    )


def _parse_metadata(value: object) -> dict[str, str]:
    # The library writes no null itself, but reads it as no metadata, and published checkpoints hold it.
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise StrictJsonError(f"'{METADATA_KEY}' must map strings to strings, got {describe(value)}")
    for key, text in value.items():
        if not isinstance(text, str):
            raise StrictJsonError(
                f"'{METADATA_KEY}' must map strings to strings, but '{printable(key)}' is {describe(text)}"
            )
    return value


def _problems_of_targets(tensors: Sequence[TensorInfo]) -> list[Problem]:
    return [] if _can_be_stored(tensors) else _find_problems(tensors)


def _can_be_stored(tensors: Sequence[TensorInfo]) -> bool:
    """Whether nothing is wrong with tensors, of which there may be a hundred thousand."""
    names = [info.name for info in tensors]
    try:
        "".join(names).encode("utf-8")
    except UnicodeEncodeError:
        return False
    if METADATA_KEY in names or len(set(names)) < len(names):
        return False
    return not any(info.dtype.bits % 8 and info.size * info.dtype.bits % 8 for info in tensors)


def _find_problems(tensors: Sequence[TensorInfo]) -> list[Problem]:
    problems: list[Problem] = []
    seen: set[str] = set()
    for info in tensors:
        where = printable(info.name)
        if info.name == METADATA_KEY:
            problems.append(Problem("no tensor can have this name: safetensors keeps its metadata there", where))
        if info.name in seen:
            problems.append(Problem("two tensors of one shard have this name", where))
        seen.add(info.name)
        try:
            info.name.encode("utf-8")
        except UnicodeEncodeError:
            problems.append(Problem("a name must be valid Unicode, and this one holds a lone surrogate", where))
        if info.size * info.dtype.bits % 8:
            problems.append(
                Problem(
                    f"shape {list(info.shape)} of {info.dtype} ends within a byte; safetensors can't hold it", where
                )
            )
    return problems
