"""Small disks that are made for an experiment, where that is allowed: in memory, or an ext4 in a file."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Final

_IMAGE_NBYTES: Final = 32 << 20


@dataclass(frozen=True, slots=True)
class Disk:
    """A mounted disk."""

    path: Path
    device: str
    kind: str

    def again(self) -> None:
        """Take the disk off, and mount it anew, as after a power cut."""
        _system("umount", str(self.path))
        _system("mount", "-o", "loop", self.device, str(self.path))

    def change(self, options: str) -> None:
        """Mount it with other options."""
        _system("mount", "-o", f"remount,{options}", str(self.path))


def why_no_memory_disk(root: Path) -> str:
    """Why no disk in memory can be mounted; empty if it can."""
    return _tried(lambda: memory_disk(root / "probe", "size=64k"))


def why_no_ext4(root: Path) -> str:
    """Why no ext4 can be made and mounted; empty if it can."""
    if which("mkfs.ext4") is None:
        return "there is no mkfs.ext4"
    return _tried(lambda: ext4_disk(root / "probe"))


@contextmanager
def memory_disk(path: Path, options: str) -> Iterator[Disk]:
    """A disk in memory, such as of `size=1m,nr_inodes=20`."""
    path.mkdir()
    _system("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path))
    try:
        yield Disk(path, "tmpfs", "tmpfs")
    finally:
        _system("umount", str(path))
        path.rmdir()


@contextmanager
def ext4_disk(path: Path) -> Iterator[Disk]:
    """An ext4 in a file beside its mount point."""
    image = path.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(_IMAGE_NBYTES)
    try:
        _system("mkfs.ext4", "-q", "-F", str(image))
        path.mkdir()
        _system("mount", "-o", "loop", str(image), str(path))
        try:
            yield Disk(path, str(image), "ext4")
        finally:
            _system("umount", str(path))
    finally:
        image.unlink()
        if path.exists():
            path.rmdir()


def _tried(disk: object) -> str:
    if os.geteuid() != 0:
        return "only root may mount a disk"
    try:
        with disk():  # type: ignore[operator]
            return ""
    except OSError as error:
        return f"no disk may be mounted here ({error})"


def _system(*words: str) -> None:
    """Run a command of the system."""
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise OSError(f"{words[0]}: {said[:200]}")
