"""The reader of .npz files on what numpy wrote, and on files that are damaged, hostile or hold something else."""

from __future__ import annotations

import io
import os
import resource
import struct
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.errors import CheckpointError
from converters.storage import zip_contents
from converters.storage.base import CheckpointReader
from converters.storage.checkpoint import open_checkpoint
from converters.storage.npz_reader import NpzReader
from converters.tensor_info import DType

RANDOM = np.random.default_rng(0)
ARRAYS: dict[str, Any] = {
    "scope/layer_0/kernel": RANDOM.standard_normal((50, 7)).astype("f4"),
    "fortran": np.asfortranarray(RANDOM.standard_normal((5, 7, 3))),
    "fortran with ones": np.asfortranarray(RANDOM.integers(0, 255, (3, 1, 50, 2)).astype("u1")),
    "transposed": RANDOM.standard_normal((60, 100)).astype("f2").T,
    "scalar": np.array(-3),
    "empty": np.zeros((0, 3), "f2", order="F"),
    "mask": RANDOM.random((3, 4)) > 0.5,
    "complex": (RANDOM.random((3, 4)) + 1j).astype("c8").T,
    "zeros": np.zeros((300, 1000)),
    "größe.npy": np.arange(3, dtype="u2"),
}
SAVERS = pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "deflated"])


def read(reader: CheckpointReader, name: str) -> bytes:
    data = bytearray(reader.tensors[name].nbytes)
    reader.read_into(name, 0, memoryview(data))
    return bytes(data)


def read_all(reader: CheckpointReader) -> None:
    for name in reader.tensors:
        read(reader, name)
    reader.check_unchanged()


def open_npz(path: Path) -> NpzReader:
    return NpzReader(path, path.name, path)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@SAVERS
def test_reads_what_numpy_wrote(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "model.npz", **ARRAYS)
    with open_npz(tmp_path / "model.npz") as reader:
        assert list(reader.tensors) == list(ARRAYS)
        assert set(reader.file_of.values()) == {"model.npz"}
        assert reader.notes == ()
        for name, array in ARRAYS.items():
            assert reader.tensors[name].shape == array.shape
            assert read(reader, name) == np.ascontiguousarray(array).tobytes()
        reader.check_unchanged()


@SAVERS
@settings(deadline=None)
@given(st.sampled_from(sorted(ARRAYS)), st.data())
def test_reads_any_range(save: Callable[..., None], name: str, data: st.DataObject) -> None:
    expected = np.ascontiguousarray(ARRAYS[name]).tobytes()
    with tempfile.TemporaryDirectory() as directory:
        save(Path(directory) / "model.npz", **{name: ARRAYS[name]})
        with open_npz(Path(directory) / "model.npz") as reader:
            for _ in range(5):
                offset = data.draw(st.integers(0, len(expected)))
                buffer = bytearray(data.draw(st.integers(0, len(expected) - offset)))
                reader.read_into(name, offset, memoryview(buffer))
                assert bytes(buffer) == expected[offset : offset + len(buffer)]
            with pytest.raises(ValueError, match="outside of"):
                reader.read_into(name, 1, memoryview(bytearray(len(expected))))
            reader.check_unchanged()


def test_bfloat16_is_noted(tmp_path: Path) -> None:
    array = RANDOM.standard_normal((4, 4)).astype(ml_dtypes.bfloat16)
    np.savez(tmp_path / "model.npz", w=array)
    with open_npz(tmp_path / "model.npz") as reader:
        assert reader.tensors["w"].dtype is DType.BF16
        assert read(reader, "w") == array.tobytes()
        assert "they are read as bfloat16: w" in str(reader.notes[0])


@SAVERS
def test_threads_read_one_array_together(tmp_path: Path, save: Callable[..., None]) -> None:
    array = RANDOM.integers(0, 255, 3_000_001).astype("u1")
    save(tmp_path / "model.npz", w=array)
    results: dict[int, bytes] = {}
    with open_npz(tmp_path / "model.npz") as reader:

        def work(offset: int) -> None:
            buffer = bytearray(1_000_000)
            reader.read_into("w", offset, memoryview(buffer))
            results[offset] = bytes(buffer)

        threads = [threading.Thread(target=work, args=(offset,)) for offset in (2_000_000, 0, 1_000_000, 500_000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(part == array.tobytes()[offset : offset + 1_000_000] for offset, part in results.items())
    assert len(results) == 4


def test_what_is_inflated_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "model.npz", w=ARRAYS["zeros"])
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    reader = open_npz(tmp_path / "model.npz")
    before = open_files()
    read(reader, "w")
    assert open_files() == before + 1
    assert list((tmp_path / "scratch").iterdir()) == []
    reader.close()
    assert open_files() == before - 1
    with pytest.raises(ValueError, match="is closed"):
        read(reader, "w")


@contextmanager
def file_size_limit(nbytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_to_inflate(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "model.npz", w=ARRAYS["zeros"])
    with (
        open_npz(tmp_path / "model.npz") as reader,
        file_size_limit(100_000),
        pytest.raises(CheckpointError, match="can't be inflated into a temporary file") as caught,
    ):
        read(reader, "w")
    assert "Set TMPDIR" in (caught.value.problems[0].hint or "")


def test_all_that_is_no_tensor_is_refused_by_name(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "model.npz",
        good=np.zeros(3),
        config=np.array({"a": 1}, dtype=object),
        labels=np.array(["a"]),
        big=np.zeros(3, ">f4"),
    )
    with zipfile.ZipFile(tmp_path / "model.npz", "a") as archive:
        archive.writestr("readme.txt", "text")
    with pytest.raises(CheckpointError) as caught:
        open_npz(tmp_path / "model.npz")
    found = {str(problem.where).rpartition(": ")[2]: problem.what for problem in caught.value.problems}
    assert sorted(found) == ["big.npy", "config.npy", "labels.npy", "readme.txt"]
    assert "a pickle, which could run code" in found["config.npy"]
    assert "big-endian" in found["big.npy"]
    assert "it is no array" in found["readme.txt"]
    assert all(problem.hint for problem in caught.value.problems)


def test_a_folder_of_arrays_that_was_zipped(tmp_path: Path) -> None:
    zipped(tmp_path / "model.npz", {"layer/": b"", "layer/w.npy": npy(np.arange(3))})
    with open_npz(tmp_path / "model.npz") as reader:
        assert list(reader.tensors) == ["layer/w"]


@pytest.mark.parametrize(("members", "message"), [
    ({}, "there are no arrays"),
    ({"w.npy": b""}, "no numpy array"),
    ({"w.npy": npy(np.zeros(3))[:-1]}, "takes 24 bytes, but 23 are there"),
    ({"w.npy": npy(np.zeros(3)) + b"x"}, "takes 24 bytes, but 25 are there"),
    ({"w.npy": npy(np.zeros(3))[:40]}, "cut off"),
    ({"w": npy(np.zeros(3))}, "no array"),
    ({"\x1b[2J.npy": b""}, r"\\x1b\[2J"),
])  # fmt: skip
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_members(tmp_path: Path, members: dict[str, bytes], message: str, method: int) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_npz(zipped(tmp_path / "model.npz", members, method))


def test_two_arrays_of_one_name(tmp_path: Path) -> None:
    zipped(tmp_path / "model.npz", {"v.npy": npy(np.zeros(3)), "w.npy": npy(np.ones(3))})
    raw = (tmp_path / "model.npz").read_bytes()
    (tmp_path / "model.npz").write_bytes(raw.replace(b"v.npy", b"w.npy"))
    with pytest.raises(CheckpointError, match="two members of the archive have this name"):
        open_npz(tmp_path / "model.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression(tmp_path: Path, method: int) -> None:
    with pytest.raises(CheckpointError, match="compressed by method"):
        open_npz(zipped(tmp_path / "model.npz", {"w.npy": npy(np.zeros(3))}, method))


def damage(path: Path, name: str, change: Callable[[bytearray], None]) -> None:
    """Change the stored bytes of a member."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
    raw = bytearray(path.read_bytes())
    lengths = struct.unpack_from("<2H", raw, info.header_offset + 26)
    start = info.header_offset + 30 + sum(lengths)
    part = raw[start : start + info.compress_size]
    change(part)
    raw[start : start + info.compress_size] = part
    path.write_bytes(raw)


def flip_last(part: bytearray) -> None:
    part[-1] ^= 1


@SAVERS
@pytest.mark.parametrize("name", ["kernel", "transposed"])
def test_a_flipped_bit_is_noticed(tmp_path: Path, save: Callable[..., None], name: str) -> None:
    path = tmp_path / "model.npz"
    save(path, kernel=ARRAYS["scope/layer_0/kernel"], transposed=ARRAYS["transposed"], other=np.zeros(3))
    damage(path, f"{name}.npy", flip_last)
    with (
        open_npz(path) as reader,
        pytest.raises(
            CheckpointError, match=rf"{name}\.npy: (its CRC is wrong|can't be inflated|its compressed data|should hold)"
        ),
    ):
        read_all(reader)


def test_a_flipped_bit_is_noticed_where_only_a_part_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    np.savez(path, w=np.arange(100.0), unread=np.arange(10.0))
    damage(path, "w.npy", flip_last)
    damage(path, "unread.npy", flip_last)
    with open_npz(path) as reader:
        reader.read_into("w", 8, memoryview(bytearray(16)))
        with pytest.raises(CheckpointError, match=r"w\.npy: its CRC is wrong"):
            reader.check_unchanged()


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.npz"
    np.savez_compressed(path, w=ARRAYS["zeros"])
    assert ARRAYS["zeros"].nbytes > 100 * path.stat().st_size
    open_npz(path).close()  # so little harms nobody, and tensors of zeros are common
    monkeypatch.setattr(zip_contents, "HARMLESS_NBYTES", 1 << 20)
    with pytest.raises(CheckpointError, match=r"would inflate to 2\.40 MB, more than 100 times"):
        open_npz(path)


@pytest.mark.parametrize(("claimed", "message"), [(15, "inflates to more"), (17, "inflates to fewer")])
def test_a_member_that_inflates_to_another_size_than_it_says(tmp_path: Path, claimed: int, message: str) -> None:
    """Both headers of the archive and the array's own agree; just the compressed data is another."""
    path = tmp_path / "model.npz"
    honest = npy(np.zeros(16))
    lie = npy(np.zeros(claimed))
    zipped(path, {"w.npy": honest}, zipfile.ZIP_DEFLATED)
    deflated = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    content = deflated.compress(lie[:128] + honest[128:]) + deflated.flush()
    damage(path, "w.npy", lambda part: part.__setitem__(slice(None), content))
    raw = path.read_bytes()
    path.write_bytes(raw.replace(struct.pack("<L", len(honest)), struct.pack("<L", len(lie))))
    with open_npz(path) as reader, pytest.raises(CheckpointError, match=message):
        read(reader, "w")


@SAVERS
def test_truncation_and_change_are_noticed(tmp_path: Path, save: Callable[..., None]) -> None:
    path = tmp_path / "model.npz"
    save(path, w=RANDOM.standard_normal((100, 100)))
    with open_npz(path) as reader:
        os.truncate(path, 1000)
        with pytest.raises(CheckpointError, match="truncated while it was read"):
            read(reader, "w")
        with pytest.raises(CheckpointError, match="was changed while it was read"):
            reader.check_unchanged()
    with pytest.raises(CheckpointError, match="not valid"):
        open_npz(path)


@SAVERS
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_no_damage_gives_any_other_error(save: Callable[..., None], data: st.DataObject) -> None:
    file = io.BytesIO()
    save(file, a=np.arange(7.0), b=ARRAYS["fortran"])
    raw = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.npz"
        path.write_bytes(raw[: data.draw(st.integers(len(raw) // 2, len(raw)))] if data.draw(st.booleans()) else raw)
        try:
            with open_npz(path) as reader:
                read_all(reader)
        except CheckpointError:
            return


def test_found_by_content_in_a_file_or_a_directory(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    np.savez(tmp_path / "model" / "weights.npz", **{"layer/w": np.arange(3)})
    (tmp_path / "other.bin").write_bytes((tmp_path / "model" / "weights.npz").read_bytes())
    for path in (tmp_path / "model", tmp_path / "model" / "weights.npz", tmp_path / "other.bin"):
        with open_checkpoint(path) as reader:
            assert isinstance(reader, NpzReader)
            assert list(reader.tensors) == ["layer/w"]
    np.savez(tmp_path / "model" / "more.npz", w=np.arange(3))
    with pytest.raises(CheckpointError, match=r"Several \.npz files are here"):
        open_checkpoint(tmp_path / "model")


def test_links_lead_only_into_the_directory(tmp_path: Path) -> None:
    np.savez(tmp_path / "secret.npz", w=np.arange(3))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.npz").symlink_to(tmp_path / "secret.npz")
    with pytest.raises(CheckpointError, match="symbolic link out of its directory"):
        open_checkpoint(tmp_path / "model")


def test_other_zip_archives_are_still_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not written by torch\.save"):
        open_checkpoint(zipped(tmp_path / "photos.zip", {"photo.jpg": b"jpeg"}))
