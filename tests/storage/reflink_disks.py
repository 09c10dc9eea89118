"""File systems in a file, mounted for a test, and which blocks their files share."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MAKERS = {"xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"], "btrfs": ["mkfs.btrfs", "-q"], "ext4": ["mkfs.ext4", "-q"]}
_FIEMAP = 0xC020660B
_SYNC, _SHARED, _LAST = 1, 0x2000, 1
_HEAD = struct.Struct("=QQLLLL")
_EXTENT = struct.Struct("=QQQQQLLLL")
_EXTENTS = 4096


@contextmanager
def mounted(kind: str, directory: Path, nbytes: int = 640_000_000) -> Iterator[Path]:
    """A new, empty file system; its file has holes where nothing is written yet."""
    maker = MAKERS[kind]
    if shutil.which(maker[0]) is None:
        pytest.skip(f"{maker[0]} isn't installed")
    image, at = directory / f"{kind}.img", directory / kind
    at.mkdir()
    with image.open("wb") as file:
        file.truncate(nbytes)
    subprocess.run([*maker, image], check=True, capture_output=True)
    done = subprocess.run(["mount", "-o", "loop", image, at], check=False, capture_output=True, text=True)  # noqa: S607
    if done.returncode:
        pytest.skip(f"mounting isn't permitted here: {done.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)  # noqa: S607
        image.unlink()


def shared_nbytes(path: Path) -> int:
    """Bytes of a file whose blocks are those of another file, too, as the file system itself says."""
    shared, position = 0, 0
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while True:
            request = bytearray(_HEAD.pack(position, 2**63, _SYNC, 0, _EXTENTS, 0) + bytes(_EXTENT.size * _EXTENTS))
            fcntl.ioctl(descriptor, _FIEMAP, request)
            count = _HEAD.unpack_from(request)[3]
            for number in range(count):
                start, _, length, _, _, flags, *_ = _EXTENT.unpack_from(request, _HEAD.size + number * _EXTENT.size)
                shared += length if flags & _SHARED else 0
                position = start + length
                if flags & _LAST:
                    return shared
            if not count:
                return shared
    finally:
        os.close(descriptor)
