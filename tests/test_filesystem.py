"""Locks where something is odd, and looking whether one is held. The rest is shown by test_publish.py."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from converters import filesystem
from converters.filesystem import LockedError, check_unlocked, exclusive_lock


def test_without_a_file_nobody_holds_it_and_none_is_made(tmp_path: Path) -> None:
    assert check_unlocked(tmp_path / "lock")
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_a_dead_holder_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("process 1 on there")
    assert check_unlocked(path)
    assert path.read_text() == "process 1 on there"


def test_a_living_holder_is_named_and_keeps_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with exclusive_lock(path):
        for _ in range(2):
            with pytest.raises(LockedError, match=f"process {os.getpid()} on "):
                check_unlocked(path)
        with pytest.raises(LockedError), exclusive_lock(path):
            pytest.fail("held twice")
    assert check_unlocked(path)


def test_looking_does_not_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("")
    assert check_unlocked(path)
    with exclusive_lock(path) as held:
        assert held


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic"):
        check_unlocked(tmp_path / "lock")


def test_without_locks_nobody_can_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(filesystem.fcntl, "flock", flock)
    assert not check_unlocked(tmp_path / "lock")
    (tmp_path / "lock").write_text("")
    assert not check_unlocked(tmp_path / "lock")


def test_a_directory_that_someone_locks_is_no_matter(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert check_unlocked(tmp_path / "lock")
    os.close(descriptor)


@pytest.mark.parametrize("text", ["", "process 1 on another machine"])
def test_without_locks_only_a_file_that_nobody_can_hold_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    path = tmp_path / "lock"
    if text:
        path.write_text(text)
    monkeypatch.setattr(filesystem.fcntl, "flock", flock)
    with exclusive_lock(path) as certain:
        assert not certain
    assert path.exists() == bool(text)


def test_a_full_disk_has_locks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the file would stay, and the lock be held as long as the process lives."""

    def pwrite(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "lock"
    monkeypatch.setattr(os, "pwrite", pwrite)
    with exclusive_lock(path) as certain:
        assert certain
        with pytest.raises(LockedError, match="another process"), exclusive_lock(path):
            pytest.fail("held twice")
    assert not path.exists()


def test_a_holder_whose_name_cant_be_read_is_a_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock on SMB keeps others from reading, too."""

    def pread(*_: object) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with exclusive_lock(tmp_path / "lock"):
        monkeypatch.setattr(os, "pread", pread)
        with pytest.raises(LockedError, match="another process"), exclusive_lock(tmp_path / "lock"):
            pytest.fail("held twice")
