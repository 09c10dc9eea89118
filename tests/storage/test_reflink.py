"""Sharing blocks, on real file systems that can: the bytes are right, the file system says that they are shared."""

from __future__ import annotations

import fcntl
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from converters.storage.reflink import LEAST_NBYTES, Reflinks, SharedRanges
from converters.storage.safetensors_header import BLOCK
from tests.storage.reflink_disks import mounted, shared_nbytes

SIZE = 1_000_003


@pytest.fixture(scope="module", params=["xfs", "btrfs"])
def disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted(request.param, tmp_path_factory.mktemp("disk")) as path:
        yield path


@contextmanager
def two_files(directory: Path, seed: int, size: int = SIZE) -> Iterator[tuple[int, int, bytes, bytes]]:
    """A source and a target of other bytes, open, and what they hold."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    first, second = draw.randbytes(size), draw.randbytes(size)
    (directory / "source").write_bytes(first)
    (directory / "target").write_bytes(second)
    source, target = os.open(directory / "source", os.O_RDONLY), os.open(directory / "target", os.O_RDWR)
    try:
        yield source, target, first, second
    finally:
        os.close(source)
        os.close(target)


@pytest.mark.parametrize("seed", range(12))
def test_a_range_is_shared_but_for_its_edges(disk: Path, seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311 - no secret
    start = draw.randrange(2 * BLOCK)
    target_start = start % BLOCK + draw.randrange(3) * BLOCK
    nbytes = draw.randrange(LEAST_NBYTES + 3 * BLOCK, SIZE - 5 * BLOCK)
    with two_files(disk, seed) as (source, target, first, second):
        begin, end = Reflinks().share((source, start), (target, target_start), nbytes)
        assert 0 <= begin < BLOCK
        assert nbytes - BLOCK < end <= nbytes
        expected = bytearray(second)
        expected[target_start + begin : target_start + end] = first[start + begin : start + end]
        assert (disk / "target").read_bytes() == expected
        assert (disk / "source").read_bytes() == first
    assert shared_nbytes(disk / "target") == end - begin


def test_files_that_share_stay_apart(disk: Path) -> None:
    with two_files(disk, 3) as (source, target, first, _):
        begin, end = Reflinks().share((source, 0), (target, 0), SIZE)
        (disk / "source").write_bytes(bytes(SIZE))
        assert (disk / "target").read_bytes()[begin:end] == first[begin:end]


@pytest.mark.parametrize(("shift", "nbytes"), [(1, SIZE // 2), (8, SIZE // 2), (BLOCK, LEAST_NBYTES - 1), (0, 0)])
def test_what_is_not_aligned_or_not_worth_it_is_left_to_the_caller(disk: Path, shift: int, nbytes: int) -> None:
    with two_files(disk, 4) as (source, target, _, second):
        assert Reflinks().share((source, 0), (target, shift), nbytes) == (0, 0)
        assert (disk / "target").read_bytes() == second
    assert shared_nbytes(disk / "target") == 0


def test_a_file_system_that_cannot_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = fcntl.ioctl
    monkeypatch.setattr(fcntl, "ioctl", lambda *words: (asked.append(words[0]), real(*words))[1])
    with mounted("ext4", tmp_path, 64_000_000) as disk, two_files(disk, 5) as (source, target, _, second):
        links = Reflinks()
        for _ in range(3):
            assert links.share((source, 0), (target, 0), SIZE) == (0, 0)
        assert len(asked) == 1
        assert (disk / "target").read_bytes() == second


def test_two_file_systems_share_nothing(disk: Path, tmp_path: Path) -> None:
    with two_files(disk, 6) as (source, _, _, _), two_files(tmp_path, 7) as (_, target, _, second):
        assert Reflinks().share((source, 0), (target, 0), SIZE) == (0, 0)
        assert (tmp_path / "target").read_bytes() == second


@pytest.mark.parametrize("seed", range(20))
def test_what_is_shared_is_read_through_the_other_file(tmp_path: Path, seed: int) -> None:
    """Each byte comes from where it was said to be: the files here hold different ones, so that it shows."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    with two_files(tmp_path, seed, 5000) as (source, target, first, second):
        ranges, expected = SharedRanges(), bytearray(second)
        bounds = sorted(draw.sample(range(5000), 8))
        pairs = list(zip(bounds[::2], bounds[1::2], strict=True))
        for start, stop in draw.sample(pairs, len(pairs)):
            place = draw.randrange(5000 - (stop - start))
            ranges.add(start, stop, (source, place))
            expected[start:stop] = first[place : place + stop - start]
        for _ in range(50):
            position = draw.randrange(5000)
            buffer = bytearray(draw.randrange(5001 - position))
            ranges.read_into(target, position, memoryview(buffer), "file")
            assert buffer == expected[position : position + len(buffer)]
