"""Puts files together byte by byte, right or wrong in every way; neither torch nor numpy is needed."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.pickles import pickled

FLOATS: Final = struct.pack("<6f", 0.5, -1.25, 2.0, 3.5, -4.75, 5.0)
"""The data of most tensors here: six numbers."""


def write(path: Path, content: bytes | str) -> None:
    """Write a file, and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)


# --- safetensors -----------------------------------------------------------------------------------------------------


def safetensors(header: str | bytes | Mapping[str, Any], data: bytes = b"") -> bytes:
    """A file with this header, whatever that says."""
    text = json.dumps(header) if isinstance(header, Mapping) else header
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw + data


def entry(dtype: str = "F32", shape: Sequence[int] = (2, 3), begin: int = 0, end: int = 24) -> dict[str, Any]:
    """A tensor's entry in a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def tensors(*names: str) -> bytes:
    """A right file with six numbers for each name."""
    header = {name: entry(begin=24 * place, end=24 * place + 24) for place, name in enumerate(names)}
    return safetensors(header, FLOATS * len(names))


# --- zip archives ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an archive, whatever its headers say of it; None stands for what is right.

    Attributes:
        name: its name.
        data: what it holds.
        method: 0 as it is, 8 deflated.
        flags: of both headers.
        crc: of both headers.
        nbytes: in the directory: bytes that it holds.
        stored_nbytes: in the directory: bytes that it takes.
        local_name: in the header before it.
        local_nbytes: likewise.
        at: where the directory says that it begins.
        extra: the directory's extra field.
        disk: the number of the disk that the directory names.
    """

    name: str | bytes
    data: bytes = b""
    method: int = 0
    flags: int = 0
    crc: int | None = None
    nbytes: int | None = None
    stored_nbytes: int | None = None
    local_name: str | None = None
    local_nbytes: int | None = None
    at: int | None = None
    extra: bytes = b""
    disk: int = 0


def archive(*members: Member, count: int | None = None, before: bytes = b"", comment: bytes = b"") -> bytes:
    """An archive of these members, in this order."""
    content, directory = bytearray(before), bytearray()
    for member in members:
        raw = member.name.encode() if isinstance(member.name, str) else member.name
        stored = _deflated(member.data) if member.method == 8 else member.data
        crc = zlib.crc32(member.data) if member.crc is None else member.crc
        nbytes = len(member.data) if member.nbytes is None else member.nbytes
        stored_nbytes = len(stored) if member.stored_nbytes is None else member.stored_nbytes
        at = len(content) if member.at is None else member.at
        local = raw if member.local_name is None else member.local_name.encode()
        own_nbytes = nbytes if member.local_nbytes is None else member.local_nbytes
        content += struct.pack(
            "<4s5H3L2H", b"PK\3\4", 20, member.flags, member.method, 0, 0, crc, stored_nbytes, own_nbytes, len(local), 0
        )
        content += local + stored
        directory += struct.pack("<4s6H", b"PK\1\2", 20, 20, member.flags, member.method, 0, 0)
        directory += struct.pack(
            "<3L5H2L", crc, stored_nbytes, nbytes, len(raw), len(member.extra), 0, member.disk, 0, 0, at
        )
        directory += raw + member.extra
    count = len(members) if count is None else count
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), len(content), len(comment)) + comment
    return bytes(content + directory + end)


def _deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


def torch_file(value: object, storages: Mapping[str, bytes] | None = None, **members: bytes) -> bytes:
    """A file of `torch.save` that holds a pickle put together by hand."""
    return torch_file_of(pickled(value), storages, **members)


def torch_file_of(data: bytes, storages: Mapping[str, bytes] | None = None, **members: bytes) -> bytes:
    """A file of `torch.save` with these bytes as its pickle."""
    found = {"data.pkl": data, "byteorder": b"little", **members}
    found |= {f"data/{key}": each for key, each in ({"0": FLOATS} if storages is None else storages).items()}
    return archive(*(Member(f"archive/{each}", content) for each, content in (found | {"version": b"3\n"}).items()))


LEGACY_MAGIC: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle of a file that torch wrote before version 1.6."""


def legacy_file(
    value: object, keys: object = ("0",), data: bytes | None = None, system: object = None, version: bytes = b""
) -> bytes:
    """A file of an older `torch.save`: five pickles, then the storages."""
    system = {"protocol_version": 1001, "little_endian": True} if system is None else system
    parts = [LEGACY_MAGIC, version or b"\x80\x02M\xe9\x03.", pickled(system), pickled(value), pickled(list(keys))]  # type: ignore[call-overload]
    return b"".join(parts) + (struct.pack("<Q", 6) + FLOATS if data is None else data)


# --- numpy -----------------------------------------------------------------------------------------------------------


def npy(header: str | None = None, data: bytes = FLOATS, version: tuple[int, int] = (1, 0), **fields: str) -> bytes:
    """An array with this header; or one of six numbers, but for these fields."""
    parts = {"descr": "'<f4'", "fortran_order": "False", "shape": "(2, 3)"} | fields
    text = header if header is not None else "{" + ", ".join(f"'{key}': {value}" for key, value in parts.items()) + "}"
    raw = (text + "\n").encode("latin-1" if version < (3, 0) else "utf-8")
    length = struct.pack("<H" if version < (2, 0) else "<I", len(raw))
    return b"\x93NUMPY" + bytes(version) + length + raw + data


def npz(**arrays: bytes) -> bytes:
    """An archive of arrays."""
    return archive(*(Member(f"{each}.npy", content) for each, content in arrays.items()))
