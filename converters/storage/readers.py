"""Which reader reads a file: its first bytes tell the format, whatever its name says."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from converters.errors import CheckpointError, Problem
from converters.storage.base import CheckpointReader
from converters.storage.formats import LEGACY_START, NPZ, TORCH_SUFFIXES
from converters.storage.open_files import open_file_at
from converters.storage.safetensors import SafetensorsReader
from converters.text import printable

if TYPE_CHECKING:
    from converters.storage.torch_reader import TorchReader

_SNIFFED_NBYTES: Final = 512
_ZIP_NAME: Final = struct.Struct("<26xH2x")
_ZIP_START: Final = b"PK\x03\x04"
_SAFETENSORS_JSON: Final = 8


def open_files(path: Path, files: Mapping[str, Path], notes: Sequence[Problem] = ()) -> SafetensorsReader | TorchReader:
    """Open the files of one checkpoint, which are all of one format.

    Args:
        path: what the user gave, a file or a directory.
        files: for each file, its name and the path to open, which must not be a symbolic link.
        notes: what was noticed when the files were looked up.

    Raises:
        CheckpointError: a file can't be read or isn't valid, or they are of several formats; all problems at once.
    """
    torch_files = [name for name, file in files.items() if _is_torch(name, file)]
    if not torch_files:
        return SafetensorsReader(path, files, notes)
    if others := [name for name in files if name not in set(torch_files)]:
        raise CheckpointError(
            f"{printable(torch_files[0])} is a file of torch.save, and {printable(others[0])} isn't; "
            "one checkpoint has files of one format",
            printable(str(path)),
            "Download all of them again, in one format.",
        )
    from converters.storage.torch_reader import TorchReader

    return TorchReader(path, files, notes)


def open_file(path: Path, name: str, file: Path, notes: Sequence[Problem] = ()) -> CheckpointReader:
    """Open a checkpoint of a single file.

    Args:
        path: what the user gave, the file or its directory.
        name: the name of the file.
        file: the path to open, which must not be a symbolic link.
        notes: what was noticed when the file was looked up.

    Raises:
        CheckpointError: it can't be read or isn't valid; all problems at once.
    """
    start = _start_of(name, file)
    # The first member of an archive begins with its name.
    if start.startswith(_ZIP_START) and len(start) > _ZIP_NAME.size:
        length = _ZIP_NAME.unpack_from(start)[0]
        if name.endswith(NPZ) or start[_ZIP_NAME.size : _ZIP_NAME.size + length].endswith(b".npy"):
            from converters.storage.npz_reader import NpzReader

            return NpzReader(path, name, file, notes)
    return open_files(path, {name: file}, notes)


def _is_torch(name: str, file: Path) -> bool:
    """Whether to read a file as torch's; one that is neither, by the format that its name promises."""
    start = _start_of(name, file)
    if start[_SAFETENSORS_JSON : _SAFETENSORS_JSON + 1] == b"{":
        return False
    return name.endswith(TORCH_SUFFIXES) or start.startswith((_ZIP_START, LEGACY_START))


def _start_of(name: str, file: Path) -> bytes:
    """The first bytes of a file; none if it can't be read, since its reader will say why."""
    try:
        opened = open_file_at(file, name)
    except CheckpointError:
        return b""
    try:
        start = bytearray(min(_SNIFFED_NBYTES, opened.nbytes))
        opened.read_into(0, memoryview(start))
    except CheckpointError:
        return b""
    finally:
        opened.close()
    return bytes(start)
