"""Zip archives that can be read in two ways, or that blow up."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.hostile.build import FLOATS, Member, archive, torch_file, write
from tests.hostile.case import CHECKPOINT, CONVERT, Case
from tests.pickles import pickled, tensor

KIND: Final = "zip"
FILE: Final = "in/model.pt"
PICKLE: Final = Member("archive/data.pkl", pickled({"a": tensor()}))
DATA: Final = Member("archive/data/0", FLOATS)
VERSION: Final = Member("archive/version", b"3\n")
GOOD: Final = (PICKLE, DATA, VERSION)


def _with(member: Member, **changes: object) -> bytes:
    """The right archive, but for one member."""
    return archive(*(replace(each, **changes) if each is member else each for each in GOOD))  # type: ignore[arg-type]


def _zip64(**sizes: int) -> bytes:
    return struct.pack("<HH", 1, 8 * len(sizes)) + b"".join(struct.pack("<Q", size) for size in sizes.values())


def _archives() -> dict[str, tuple[bytes, str]]:
    good = archive(*GOOD)
    flipped = bytearray(good)
    flipped[good.index(FLOATS) + 3] ^= 1
    bomb = Member("archive/data.pkl", b"\x80\2" + b"N0" * 20_000_000 + b"N.", method=8)
    lots = Member("archive/data.pkl", b"\x80\2" + b"N0" * 1_000_000 + b"N.", method=8)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    return {
        "cut off": (good[:-1], "does not end as a zip archive does"),
        "cut off in its data": (good[:80], "does not end as a zip archive does"),
        "only its first four bytes": (b"PK\3\4", "at least 22 bytes"),
        "bytes before it": (b"#!/bin/sh\n" + good, "neither a zip archive nor a pickle"),
        "bytes after it": (good + b"x", "does not end as a zip archive does"),
        "a comment": (archive(*GOOD, comment=b"hello"), "does not end as a zip archive does"),
        "a second archive behind it": (good + good, "should end at byte"),
        "a directory that isn't where it says": (archive(*GOOD, before=b"PK\3\4")[4:], "should end at byte"),
        "more members than it counts": (archive(*GOOD, count=2), "has 3 members, but should have 2"),
        "fewer members than it counts": (archive(*GOOD, count=60_000), "has 3 members, but should have 60,000"),
        "a member twice": (archive(*GOOD, DATA), "two members of the archive have this name"),
        "a pickle twice": (archive(PICKLE, PICKLE, DATA), "two members of the archive have this name"),
        "two folders": (archive(*GOOD, replace(PICKLE, name="other/data.pkl")), "several of its folders hold one"),
        "no folder": (archive(replace(PICKLE, name="data.pkl"), DATA), "expected NAME/data.pkl"),
        "no pickle": (archive(DATA, VERSION), "expected NAME/data.pkl"),
        "nothing": (archive(count=0), "zip archive"),
        "two members in the same bytes": (_with(DATA, at=0), "overlap those of the member before it"),
        "a member inside another": (_with(VERSION, at=40), "overlap those of the member before it"),
        "a member in the directory": (_with(DATA, at=len(good) - 60), "past the end of the archive's data"),
        "a member at 4 GB": (_with(DATA, at=2**32 - 2), "past the end of the archive's data"),
        "a member at 2**63": (
            _with(DATA, at=0xFFFFFFFF, extra=_zip64(at=2**63)),
            "past the end of the archive's data",
        ),
        "a size of 2**63": (
            _with(DATA, nbytes=0xFFFFFFFF, stored_nbytes=0xFFFFFFFF, extra=_zip64(a=2**63, b=2**63)),
            "end past the archive's data",
        ),
        "a size that is missing": (_with(DATA, nbytes=0xFFFFFFFF, stored_nbytes=0xFFFFFFFF), "its size is missing"),
        "a size twice": (_with(DATA, extra=_zip64(a=24) * 2), "has its size twice"),
        "another size before it": (_with(DATA, local_nbytes=99), "header before it is not what"),
        "another name before it": (_with(DATA, local_name="archive/data/1"), "header before it is not what"),
        "two sizes, as it is": (_with(DATA, nbytes=25), "takes 24 bytes as they are, but holds 25"),
        "a part of another disk": (_with(DATA, disk=3), "lies in another file of the archive"),
        "encrypted": (_with(DATA, flags=1), "is encrypted"),
        "an encrypted pickle": (_with(PICKLE, flags=1), "is encrypted"),
        "a wrong CRC of its pickle": (_with(PICKLE, crc=1), "its CRC is wrong"),
        "a wrong CRC of its data": (_with(DATA, crc=1), "the CRC of its data is wrong"),
        "one flipped bit": (bytes(flipped), "the CRC of its data is wrong"),
        "a pickle compressed by LZMA": (_with(PICKLE, method=14), "method 14"),
        "compressed data": (_with(DATA, method=8), "is compressed"),
        "compressed data that is none": (_with(PICKLE, method=8, stored_nbytes=20), "inflates to others"),
        "a pickle that inflates 1,000 times": (archive(bomb, DATA), "more than 100 times"),
        "a pickle that inflates to a million operations": (archive(lots, DATA), "inflate"),
        "a program of TorchScript": (archive(*GOOD, Member("archive/code/x.py", b"1")), "a TorchScript program"),
        "constants of TorchScript": (archive(*GOOD, Member("archive/constants.pkl", b"1")), "a TorchScript program"),
        "big-endian": (archive(*GOOD, Member("archive/byteorder", b"big")), "only little-endian"),
        "a byte order of a megabyte": (
            archive(*GOOD, Member("archive/byteorder", b"x" * 10**6)),
            "at most 1,000 bytes",
        ),
        "a name that is no UTF-8": (_with(VERSION, name=b"\xff\xfe", flags=0x0800), "is not valid"),
        "an end of 64 bits that is none": (archive(*GOOD)[:-22] + locator + end, "end of its directory is not where"),
        "a tar archive": (b"model".ljust(257, b"\0") + b"ustar" + b"\0" * 300, "a tar archive"),
    }


def _refused() -> Iterator[Case]:
    for what, (content, says) in _archives().items():
        yield Case(KIND, what, {FILE: content}, CHECKPOINT, ("model.pt", says))
    yield Case(KIND, "an archive of other files", {FILE: archive(Member("a.txt", b"hello"))}, CHECKPOINT, ("a.txt",))
    yield Case(
        KIND, "names that command the terminal", {FILE: archive(Member("\x1b[2J", b""))}, CHECKPOINT, (r"\x1b[2J",)
    )
    yield Case(KIND, "65,000 members and no pickle", _crowded, CHECKPOINT, ("expected NAME/data.pkl",), large=True)
    yield Case(KIND, "10 MB of a pickle of nothing", _long_pickle, CHECKPOINT, ("more than 10,000,000",), large=True)


def _crowded(root: Path) -> None:
    write(root / FILE, archive(*(Member(f"x/{place}") for place in range(65_000))))


def _long_pickle(root: Path) -> None:
    write(root / FILE, archive(replace(PICKLE, data=b"\x80\2" + b"N0" * 5_000_001 + b"N."), DATA))


def _accepted() -> Iterator[Case]:
    holds = {"a": FLOATS}
    files = {
        "a pickle that is compressed": _with(PICKLE, method=8),
        "a folder with another name": archive(*(replace(each, name=f"weights{str(each.name)[7:]}") for each in GOOD)),
        "other members beside it": archive(*GOOD, Member("archive/.data/serialization_id", b"1"), Member("x", b"y")),
        "members in another order": archive(DATA, VERSION, PICKLE),
        "no version": archive(PICKLE, DATA),
        "a name that leads out, never written": archive(*GOOD, Member("../../evil.pkl", b"1")),
        "sizes of 64 bits": _with(
            DATA, nbytes=0xFFFFFFFF, stored_nbytes=0xFFFFFFFF, local_nbytes=24, extra=_zip64(a=24, b=24)
        ),
        "padding in the directory": _with(DATA, extra=struct.pack("<HH", 0x4246, 8) + b"Z" * 8),
    }
    for what, content in files.items():
        yield Case(KIND, what, {FILE: content}, holds=holds)
    noisy = tuple(word for word in CONVERT if word != "--quiet")
    no_crc = _with(DATA, crc=0)
    yield Case(KIND, "no CRC, which is a note", {FILE: no_crc}, words=noisy, holds=holds, says=("saved without CRCs",))
    yield Case(
        KIND, "torch's file under another name", {"in/model.safetensors": torch_file({"a": tensor()})}, holds=holds
    )


CASES: Final = (*_refused(), *_accepted())
