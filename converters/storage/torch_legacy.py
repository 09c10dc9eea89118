"""The files of `torch.save` before version 1.6: pickles one after the other, and the data of all storages behind them.

Source: torch/serialization.py, `_legacy_save`.
"""

from __future__ import annotations

from typing import Final

from converters.errors import CheckpointError
from converters.storage.pickle_stack import PickleCutOffError
from converters.storage.torch_header import Extent, TorchHeader, make_header, storage_nbytes
from converters.storage.torch_pickle import MAX_PICKLE_NBYTES, Unpickled, unpickle
from converters.storage.torch_zip import ReadBytes
from converters.text import printable

_LEGACY_PICKLES: Final = 5
"""Magic number, version, about the system, what is saved, and the keys of its storages."""

_FIRST_WINDOW: Final = 1 << 20
_DAMAGED: Final = "It was truncated or damaged; copy or download it again."


def read_legacy_header(read: ReadBytes, file_nbytes: int, where: str) -> TorchHeader:
    """Read the pickles of a file that torch wrote before version 1.6, and find the data behind them.

    Raises:
        CheckpointError: as `read_zip_header`.
    """
    unpickled, keys, position = _legacy_pickles(read, file_nbytes, where)
    storages = unpickled.storages
    extents: dict[str, Extent] = {}
    for key in keys:
        storage = storages.get(key)
        nbytes = storage_nbytes(storage) if storage else 0
        # Nothing says how large a storage is that no tensor uses, and torch writes none.
        if storage is None or position + 8 + nbytes > file_nbytes or key in extents:
            raise CheckpointError(f"the data of its storage {printable(key)} is not there", where, _DAMAGED)
        size = int.from_bytes(read(position, 8), "little")
        if size != storage.size:
            what = f"its storage {printable(key)} should have {storage.size:,} elements, but has {size:,}"
            raise CheckpointError(what, where, _DAMAGED)
        extents[key] = Extent(key, position + 8, nbytes)
        position += 8 + nbytes
    if position != file_nbytes:
        raise CheckpointError(f"{file_nbytes - position:,} bytes at its end belong to no tensor", where, _DAMAGED)
    return make_header(unpickled.value, extents, file_nbytes, where, [])


def _legacy_pickles(read: ReadBytes, file_nbytes: int, where: str) -> tuple[Unpickled, list[str], int]:
    """What is saved, the keys of the storages in the order of their data, and where that data begins."""
    found: list[Unpickled] = []
    limit = min(file_nbytes, MAX_PICKLE_NBYTES)
    window = min(_FIRST_WINDOW, limit)
    data = read(0, window)
    while len(found) < _LEGACY_PICKLES:
        try:
            found.append(unpickle(data, found[-1].end if found else 0, where))
        except PickleCutOffError:
            # Nothing says how long they are, and the data behind them may be very long.
            if window == limit:
                what = f"its pickles don't end within {window:,} bytes"
                raise CheckpointError(what, where, _DAMAGED) from None
            window = min(4 * window, limit)
            data = read(0, window)
    system, saved, keys = found[2].value, found[3], found[4].value
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("its numbers are not little-endian", where, "Load it with torch, and save it again.")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError("it doesn't say which storages follow its pickles", where, _DAMAGED)
    return saved, keys, found[-1].end
