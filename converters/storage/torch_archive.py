"""The zip archives of `torch.save`, since version 1.6: which of their bytes belong to which tensor.

Source: torch/serialization.py, `_save`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from converters.errors import CheckpointError, Problem
from converters.storage.pickle_stack import PickleCutOffError
from converters.storage.torch_header import Extent, TorchHeader, first_problems, make_header
from converters.storage.torch_pickle import MAX_PICKLE_NBYTES, unpickle
from converters.storage.torch_zip import STORED, Member, ReadBytes, read_directory, read_member
from converters.text import printable

_LARGEST_SMALL_MEMBER: Final = 1000
_DAMAGED: Final = "It was truncated or damaged; copy or download it again."
_RESAVE: Final = "Load it where you trust its source, and save its state dict with torch.save."


def read_zip_header(read: ReadBytes, file_nbytes: int, where: str, name: str | None = None) -> TorchHeader:
    """Read the directory and the pickle of a zip archive.

    Args:
        read: gives bytes of the file.
        file_nbytes: size of the file.
        where: how errors name the file.
        name: what to call the tensor, where the archive holds a single one and no state dict.

    Raises:
        CheckpointError: it is damaged, no archive of `torch.save`, asks for what no tensor needs, or holds no state
            dict; a tensor has no place in it.
    """
    members = read_directory(read, file_nbytes, where)
    folder = _folder_of(members, where)
    small = {
        small_name: read_member(read, members[folder + small_name], _LARGEST_SMALL_MEMBER, where)
        for small_name in ("byteorder", "version")
        if folder + small_name in members
    }
    if small.get("byteorder", b"little") != b"little":
        raise CheckpointError(
            f"its numbers are in the byte order {printable(repr(small['byteorder']))}; only little-endian is supported",
            where,
            "Load it with torch, and save it again on a usual machine.",
        )
    pickled = read_member(read, members[folder + "data.pkl"], MAX_PICKLE_NBYTES, where)
    try:
        unpickled = unpickle(pickled, 0, where)
    except PickleCutOffError as fault:
        raise CheckpointError(str(fault), where, _DAMAGED) from None
    prefix = folder + "data/"
    extents: dict[str, Extent] = {}
    problems: list[Problem] = []
    for path, member in members.items():
        if not path.startswith(prefix):
            continue
        if member.method != STORED:
            problems.append(
                Problem("is compressed, so its tensors can't be read in parts", f"{where}: {printable(path)}", _RESAVE)
            )
        key = path[len(prefix) :]
        extents[key] = Extent(key, member.start, member.nbytes, member.crc)
    if problems:
        raise CheckpointError(first_problems(problems))
    notes = []
    if any(not extent.crc and extent.nbytes for extent in extents.values()):
        notes.append(Problem("it was saved without CRCs, so damage to its data can't be noticed", where))
    value = unpickled.value if name is None else {name: unpickled.value}
    return make_header(value, extents, file_nbytes, where, notes)


def _folder_of(members: Mapping[str, Member], where: str) -> str:
    """The folder of the archive that holds everything."""
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) == 1:
        folder = pickles[0].removesuffix("data.pkl")
        if folder + "constants.pkl" in members or any(name.startswith(folder + "code/") for name in members):
            raise CheckpointError(
                "this is a TorchScript program, not a state dict",
                where,
                "If you trust its source: torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE).",
            )
        return folder
    names = ", ".join(printable(name, 100) for name in list(members)[:5])
    what = "several of its folders hold one" if pickles else f"it holds {names or 'nothing'}"
    raise CheckpointError(
        f"this zip archive was not written by torch.save: expected NAME/data.pkl in it, but {what}",
        where,
        "If it is an archive of several files, unpack it first.",
    )
