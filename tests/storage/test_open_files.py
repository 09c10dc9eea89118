"""Runs of a file, read by one call."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from converters.errors import CheckpointError
from converters.storage.open_files import LocalFile

CONTENT = bytes(range(251)) * 40
POSITIONS = [7, 9000, 0, 8, len(CONTENT) - 100]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(CONTENT)
    return tmp_path / "file"


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("most", [1, 99, 100])
def test_runs_follow_each_other(path: Path, mapped: bool, most: int, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001 - a row
    preadv = os.preadv
    # The system may read less than it was asked to.
    monkeypatch.setattr(os, "preadv", lambda file, buffers, at: preadv(file, [buffers[0][:most]], at))
    file = LocalFile(path, "file")
    if mapped:
        file.map()
    buffer = bytearray(100 * len(POSITIONS))
    file.read_runs(POSITIONS, 100, memoryview(buffer))
    file.close()
    assert buffer == b"".join(CONTENT[position : position + 100] for position in POSITIONS)


def test_a_run_that_is_not_there_is_an_error(path: Path) -> None:
    file = LocalFile(path, "file")
    os.truncate(path, len(CONTENT) - 1)
    with pytest.raises(CheckpointError, match=r"^file: the file was truncated while it was read: 1 bytes are missing"):
        file.read_runs(POSITIONS, 100, memoryview(bytearray(500)))
    file.close()


def test_a_disk_that_fails_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def preadv(*_: object) -> int:
        raise OSError(5, "Input/output error")

    file = LocalFile(path, "file")
    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(CheckpointError, match=r"^file: can't be read: Input/output error"):
        file.read_runs(POSITIONS, 100, memoryview(bytearray(500)))
    file.close()
