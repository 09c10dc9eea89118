"""`--io`: the same bytes whichever way a source is read, and an error where it was truncated meanwhile."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import converters
from converters.errors import CheckpointError
from converters.storage import file_map
from converters.storage.base import CheckpointReader
from converters.storage.checkpoint import open_checkpoint
from converters.storage.file_map import FileMap
from converters.storage.open_files import READING, LocalFile, choose_reading
from tests.commands.support import SPEC, read_tensors, weightmap, write_checkpoint


def mapped_nbytes(path: Path) -> int:
    """Bytes of a file that count as memory of this process, as Linux says."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.mark.parametrize("io", READING)
def test_every_way_gives_the_same_bytes(io: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", shards=3, dtype="F16")
    spec = converters.load_spec(SPEC)
    converters.convert(spec, source, tmp_path / "plain")
    converters.convert(spec, source, tmp_path / io, io=io)
    assert read_tensors(tmp_path / io) == read_tensors(tmp_path / "plain")
    with pytest.raises(ValueError, match="io must be one of auto, read, mmap, got 'direct'"):
        converters.convert(spec, source, tmp_path / "none", io="direct")


def test_a_map_gives_what_the_file_holds_from_several_threads(tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = random.Random(2).randbytes(1_000_003)  # noqa: S311 - no secret
    path.write_bytes(content)
    file = LocalFile(path, "file")
    file.map()

    def read(seed: int) -> bool:
        drawn = random.Random(seed)  # noqa: S311 - no secret
        start = drawn.randrange(len(content))
        buffer = bytearray(drawn.randrange(len(content) - start + 1))
        file.read_into(start, memoryview(buffer))
        return buffer == content[start : start + len(buffer)]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(200)))
    file.close()


@pytest.mark.parametrize("io", ["read", "mmap"])
def test_a_source_that_is_truncated_meanwhile_is_an_error(io: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    path = source / "model.safetensors"
    with open_checkpoint(source) as reader:
        choose_reading(reader, io)
        name, info = list(reader.tensors.items())[-1]
        buffer = memoryview(bytearray(info.nbytes))
        reader.read_into(name, 0, buffer)
        os.truncate(path, path.stat().st_size - 4)
        with pytest.raises(CheckpointError, match="truncated while it was read: 4 bytes are missing at byte"):
            reader.read_into(name, 0, buffer)
        with pytest.raises(CheckpointError, match="changed while it was read"):
            reader.check_unchanged()


@pytest.mark.parametrize("io", ["auto", "read", "mmap"])
def test_a_conversion_whose_source_is_truncated_ends_with_an_error_and_no_output(
    io: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "source")
    path = source / "model.safetensors"
    nbytes = path.stat().st_size

    def cut_once_it_is_opened(reader: CheckpointReader, how: str) -> None:
        choose_reading(reader, how)
        os.truncate(path, nbytes // 2)

    monkeypatch.setattr("converters.run.choose_reading", cut_once_it_is_opened)
    result = weightmap("convert", "--spec", SPEC, source, tmp_path / "output", "--io", io, "--threads", "2")
    assert result.exit_code == 7, result.output
    assert "truncated while it was read" in result.stderr
    assert [entry.name for entry in tmp_path.iterdir() if not entry.name.startswith(".")] == ["source"]


def test_files_without_a_byte_and_files_in_turn_can_be_mapped(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    file = LocalFile(empty, "empty")
    file.map()
    file.read_into(0, memoryview(bytearray()))
    with pytest.raises(CheckpointError, match="truncated"):
        file.read_into(0, memoryview(bytearray(1)))
    file.close()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="this system doesn't tell what is mapped")
def test_what_was_read_through_a_map_does_not_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(20 << 20))
    descriptor = os.open(path, os.O_RDONLY)
    monkeypatch.setattr(file_map, "KEPT", 2 << 20)
    mapped = FileMap(descriptor, 20 << 20, "file")
    most = 0
    buffer = memoryview(bytearray(256 << 10))
    for start in range(0, 20 << 20, len(buffer)):
        mapped.read_into(start, buffer)
        most = max(most, mapped_nbytes(path))
    # The system may map more around what is touched than asked for, but not the file.
    assert 0 < most <= 8 << 20
    mapped.close()
    os.close(descriptor)
