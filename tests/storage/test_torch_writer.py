from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import huggingface_hub
import pytest
import torch
from torch import Tensor

from converters.errors import OutputError
from converters.sharding import FORMATS, Shard, in_format, shard_filename, split_into_shards
from converters.storage import torch_layout
from converters.storage.safetensors import SafetensorsWriter
from converters.storage.torch_pickle import read_pickle
from converters.storage.torch_pickle_writer import write_pickle
from converters.storage.torch_writer import TorchWriter
from converters.storage.writers import open_writer
from converters.tensor_info import DType, TensorInfo
from converters.torch_dtypes import from_torch
from tests.storage.torch_files import DTYPES, assert_reads, bits, open_one, some_tensor

STATE: dict[str, Tensor] = {
    **{dtype: some_tensor(dtype, 3, 5, 8, seed=number) for number, dtype in enumerate(DTYPES)},
    "scalar": torch.tensor(3.5),
    "odd": some_tensor("uint8", 7),
    "ключ": torch.tensor([1.5]),
    "long" * 2000: torch.tensor([2]),
    "": torch.tensor([3, 4], dtype=torch.int16),
    **{f"layers.{number}.weight": torch.full((1, 2), float(number)) for number in range(300)},
    "empty": torch.zeros(0, 3),
    "empty.too": torch.zeros(0, dtype=torch.uint16),
}


def infos(state: dict[str, Tensor]) -> list[TensorInfo]:
    return [TensorInfo(name, tuple(value.shape), from_torch(value.dtype)) for name, value in state.items()]


def shards_of(state: dict[str, Tensor], limit: int = 1 << 40) -> tuple[Shard, ...]:
    return split_into_shards(infos(state), limit, "pytorch_model", ".bin")


def write(
    directory: Path,
    shards: Sequence[Shard],
    state: dict[str, Tensor],
    piece: int = 1 << 20,
    order: Callable[[list[int]], list[int]] = list,
) -> Sequence[Path]:
    """Write in pieces of so many bytes, in some order."""
    directory.mkdir(exist_ok=True)
    writer = TorchWriter(directory, shards)
    try:
        for number, shard in enumerate(shards):
            writer.start_shard(number)
            for info in shard.tensors:
                data = memoryview(bits(state[info.name]))
                for at in order(list(range(0, len(data), piece))):
                    writer.write_from(info.name, at, data[at : at + piece])
            writer.finish_shard(number)
        return writer.finish()
    finally:
        writer.abort()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("one"), shards_of(STATE), STATE)[0]


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_loads_what_was_written(written: Path, *, mmap: bool) -> None:
    loaded = torch.load(written, weights_only=True, mmap=mmap)
    assert type(loaded) is dict
    assert list(loaded) == list(STATE)
    for name, value in loaded.items():
        expected = STATE[name]
        assert (value.dtype, value.shape, value.stride()) == (expected.dtype, expected.shape, expected.stride())
        assert bits(value) == bits(expected), name
        assert not value.requires_grad


def test_torch_finds_each_storage_where_it_computes_it(written: Path) -> None:
    """With debug checks on, torch compares the offsets that it computes with those in the archive."""
    script = (
        "import sys, torch, torch.utils.serialization\n"
        "torch.utils.serialization.config.load.calculate_storage_offsets = True\n"
        "loaded = torch.load(sys.argv[1], weights_only=True, mmap=True)\n"
        "print(len(loaded), loaded['layers.299.weight'].tolist())"
    )
    environment = {**os.environ, "TORCH_SERIALIZATION_DEBUG": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(written)], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == f"{len(STATE)} [[299.0, 299.0]]"


def test_every_crc_is_right_and_every_storage_is_aligned(written: Path) -> None:
    with zipfile.ZipFile(written) as opened:
        assert opened.testzip() is None
        raw = written.read_bytes()
        for info in opened.infolist():
            start = info.header_offset + 30
            start += sum(int.from_bytes(raw[start - at : start - at + 2], "little") for at in (4, 2))
            assert start % 64 == 0, info.filename
            assert info.compress_type == zipfile.ZIP_STORED
    if unzip := shutil.which("unzip"):
        done = subprocess.run([unzip, "-tq", str(written)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_members_are_those_of_torch(written: Path, tmp_path: Path) -> None:
    """Names, order and flags; torch adds a random number that says which save it was, and we don't."""
    reference = tmp_path / written.name
    torch.save(STATE, reference)
    with zipfile.ZipFile(written) as ours, zipfile.ZipFile(reference) as theirs:
        expected = [info for info in theirs.infolist() if ".data/" not in info.filename]
        assert [info.filename for info in ours.infolist()] == [info.filename for info in expected]
        for mine, other in zip(ours.infolist(), expected, strict=True):
            assert (mine.flag_bits, mine.date_time) == (other.flag_bits, other.date_time)
            if not mine.filename.endswith("data.pkl"):
                assert mine.CRC == other.CRC, mine.filename
        mine, other = (read_pickle(opened.read("pytorch_model/data.pkl")).value for opened in (ours, theirs))
    assert list(mine.items()) == list(other.items())  # type: ignore[attr-defined]


def test_we_read_what_was_written(written: Path) -> None:
    assert_reads(written, STATE)
    with open_one(written) as reader:
        assert not reader.notes


def test_shards_and_their_index_are_those_of_the_hub_library(tmp_path: Path) -> None:
    state = {f"layers.{number}.w": some_tensor("float32", 3, 5, seed=number) for number in range(9)}
    (tmp_path / "theirs").mkdir()
    huggingface_hub.save_torch_state_dict(state, tmp_path / "theirs", max_shard_size=200, safe_serialization=False)
    paths = write(tmp_path / "ours", shards_of(state, 200), state)
    assert [path.name for path in paths] == sorted(entry.name for entry in (tmp_path / "theirs").iterdir())
    theirs = json.loads((tmp_path / "theirs" / "pytorch_model.bin.index.json").read_text())
    ours = json.loads(paths[-1].read_text())
    assert ours["weight_map"] == theirs["weight_map"]
    assert ours["metadata"]["total_size"] == theirs["metadata"]["total_size"]
    for path in paths[:-1]:
        loaded, expected = (torch.load(file, weights_only=True) for file in (path, tmp_path / "theirs" / path.name))
        assert {name: bits(value) for name, value in loaded.items()} == {
            name: bits(value) for name, value in expected.items()
        }


@pytest.mark.parametrize(
    ("piece", "order"),
    [(1, list), (7, list), (7, lambda parts: parts[::-1]), (3, lambda parts: parts[::2] + parts[1::2])],
)
def test_the_bytes_are_the_same_however_they_come(
    tmp_path: Path, written: Path, piece: int, order: Callable[[list[int]], list[int]]
) -> None:
    again = write(tmp_path / "again", shards_of(STATE), STATE, piece, order)[0]
    assert again.read_bytes() == written.read_bytes()


def test_a_crc_that_could_not_be_added_up_is_computed_from_the_file(
    tmp_path: Path, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converters.storage.crc._MAX_PIECES", 3)
    monkeypatch.setattr(torch_layout, "_CHUNK", 50)
    again = write(tmp_path / "again", shards_of(STATE), STATE, 2, lambda parts: parts[::2] + parts[1::2])[0]
    assert again.read_bytes() == written.read_bytes()


def test_threads_may_write_one_tensor(tmp_path: Path) -> None:
    state = {"a": some_tensor("uint8", 40_000)}
    writer = TorchWriter(tmp_path, shards_of(state))
    writer.start_shard(0)
    data = memoryview(bits(state["a"]))

    def work(number: int) -> None:
        for at in range(number * 100, 40_000, 400):
            writer.write_from("a", at, data[at : at + 100])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.finish_shard(0)
    assert_reads(writer.finish()[0], state)


@pytest.mark.slow
def test_more_members_than_sixteen_bits_count(tmp_path: Path) -> None:
    state = {str(number): torch.tensor([number], dtype=torch.int32) for number in range(66_000)}
    path = write(tmp_path / "many", shards_of(state), state)[0]
    with zipfile.ZipFile(path) as opened:
        assert len(opened.infolist()) == 66_005
    loaded = torch.load(path, weights_only=True)
    assert len(loaded) == 66_000
    assert all(int(value) == int(name) for name, value in loaded.items())


def test_what_torch_has_no_dtype_for_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    tensors = (TensorInfo("a", (4,), DType.F4), TensorInfo("b", (4,), DType.F6_E2M3), TensorInfo("c", (4,), DType.F32))
    with pytest.raises(OutputError) as caught:
        TorchWriter(tmp_path, [Shard("m.bin", tensors)])
    assert str(caught.value).count("torch has no dtype for") == 2
    assert not list(tmp_path.iterdir())


def test_every_other_dtype_of_ours_can_be_written() -> None:
    storable = [dtype for dtype in DType if dtype.bits >= 8]
    value = read_pickle(write_pickle([TensorInfo(dtype.label, (2,), dtype) for dtype in storable])).value
    assert isinstance(value, dict)
    assert len(value) == len(storable) == len(DTYPES)


def test_numbers_of_all_sizes_are_written_as_pickle_reads_them() -> None:
    sizes = [1, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**39, 2**40 - 1]
    value = read_pickle(write_pickle([TensorInfo(str(size), (size,), DType.U8) for size in sizes])).value
    assert isinstance(value, dict)
    assert [tensor.shape for tensor in value.values()] == [(size,) for size in sizes]


def test_the_layout_above_four_gigabytes(tmp_path: Path) -> None:
    """Sparse: only what stands between the storages is written, and only headers are read back."""
    tensors = (
        TensorInfo("small", (3,), DType.U8),
        TensorInfo("large", (5 << 30,), DType.U8),
        TensorInfo("after", (2, 3), DType.F32),
    )
    layout = torch_layout.TorchLayout(Shard("m.bin", tensors))
    path = tmp_path / "m.bin"
    with path.open("w+b") as file:
        layout._sums = {"small": 1, "large": 2, "after": 3}
        for position, data in [*layout.before(), *layout.after(file.fileno(), "m.bin")]:
            file.seek(position)
            file.write(data)
    assert path.stat().st_size == layout.file_nbytes
    with zipfile.ZipFile(path) as opened:
        sizes = {info.filename: (info.file_size, info.CRC) for info in opened.infolist()}
        assert sizes["m/data/1"] == (5 << 30, 2)
        assert sizes["m/data/2"] == (24, 3)
    with open_one(path) as reader:
        assert reader.tensors["large"].nbytes == 5 << 30
        assert not layout.differs(reader.headers["m.bin"])
        assert reader.headers["m.bin"].placements["after"].extent.start == layout.position("after") > 5 << 30
    script = (
        "import sys, torch, torch.utils.serialization\n"
        "torch.utils.serialization.config.load.calculate_storage_offsets = True\n"
        "print({k: (list(v.shape), v.storage_offset()) for k, v in torch.load(sys.argv[1], mmap=True).items()})"
    )
    environment = {**os.environ, "TORCH_SERIALIZATION_DEBUG": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "{'small': ([3], 0), 'large': ([5368709120], 0), 'after': ([2, 3], 0)}"


# --- mistakes and failures -------------------------------------------------------------------------------------------

FEW = {"a": some_tensor("uint8", 60), "b": torch.ones(2, 3), "c": torch.zeros(0)}


def test_a_tensor_that_was_not_written_is_an_error_and_not_zeros(tmp_path: Path) -> None:
    writer = TorchWriter(tmp_path, shards_of(FEW))
    writer.start_shard(0)
    writer.write_from("a", 0, memoryview(bits(FEW["a"])[:-1]))
    with pytest.raises(OutputError, match=r"(?s)a: 1 of its 60 bytes were never written.*b: 24 of its 24"):
        writer.finish_shard(0)
    with pytest.raises(OutputError, match="shards were not finished"):
        writer.finish()


def test_a_tensor_that_was_written_twice_is_an_error(tmp_path: Path) -> None:
    writer = TorchWriter(tmp_path, shards_of({"a": FEW["a"]}))
    writer.start_shard(0)
    for _ in range(2):
        writer.write_from("a", 0, memoryview(bits(FEW["a"])))
    with pytest.raises(OutputError, match="a: 60 of its 60 bytes were written twice"):
        writer.finish_shard(0)


def test_a_file_that_is_damaged_on_the_disk_is_found_before_success(tmp_path: Path) -> None:
    for old, new in [
        (b"\nFloatStorage", b"\nHalfStorage\0"),
        (b"PK\1\2", b"PK\1\3"),
        (b"\x4b\x02\x4b\x03", b"\x4b\x03\x4b\x02"),
    ]:
        output = tmp_path / str(len(list(tmp_path.iterdir())))
        output.mkdir()
        shards = shards_of(FEW)
        writer = TorchWriter(output, shards)
        writer.start_shard(0)
        for name, value in FEW.items():
            writer.write_from(name, 0, memoryview(bits(value)))
        writer.finish_shard(0)
        path = output / shards[0].filename
        raw = path.read_bytes()
        assert old in raw
        path.write_bytes(raw.replace(old, new, 1))
        with pytest.raises(OutputError, match=re.escape(str(path))):
            writer.finish()


def test_nothing_that_exists_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_text("precious")
    with pytest.raises(OutputError, match="File exists"):
        write(tmp_path, shards_of(FEW), FEW)
    assert (tmp_path / "pytorch_model.bin").read_text() == "precious"


@pytest.mark.parametrize("call", ["open", "pwrite", "ftruncate", "fsync", "close", "preadv"])
def test_each_call_that_fails_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Fail the first call, then the second, and so on, until nothing fails any more."""
    real = getattr(os, call)
    failed = 0
    for nth in range(1000):
        calls = 0

        def fail(*args: object, nth: int = nth, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls != nth + 1:
                return real(*args, **kwargs)
            if call == "close":
                real(*args)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        before = len(list(Path("/proc/self/fd").iterdir()))
        message = None
        with monkeypatch.context() as patch:
            patch.setattr("converters.storage.files.os." + call, fail)
            try:
                write(tmp_path / str(nth), shards_of(FEW, 30), FEW)
            except OutputError as error:
                message = str(error)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        if message is not None:
            assert "Input/output error" in message
            assert str(tmp_path / str(nth)) in message
            failed += 1
        elif calls <= nth:
            break
        else:
            assert call == "close", "an error was swallowed"
    assert failed >= len(shards_of(FEW, 30))


# --- which format ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filename", "file_format", "expected"),
    [
        ("model.safetensors", "bin", "pytorch_model.bin"),
        ("model-00002-of-00012.safetensors", "bin", "pytorch_model-00002-of-00012.bin"),
        ("model.safetensors", "safetensors", "model.safetensors"),
        ("pytorch_model-00002-of-00012.bin", "safetensors", "model-00002-of-00012.safetensors"),
        ("unet/diffusion_pytorch_model.safetensors", "bin", "unet/diffusion_pytorch_model.bin"),
        ("text_encoder/model-00001-of-00002.safetensors", "bin", "text_encoder/pytorch_model-00001-of-00002.bin"),
        ("consolidated.00.pth", "safetensors", "consolidated.00.safetensors"),
        ("model-extra.safetensors", "bin", "model-extra.bin"),
    ],
)
def test_the_names_of_files_in_another_format(filename: str, file_format: str, expected: str) -> None:
    shard = Shard(filename, (TensorInfo("a", (1,), DType.U8),), part="p")
    (renamed,) = in_format([shard], file_format)
    assert renamed.filename == expected
    assert (renamed.tensors, renamed.part) == (shard.tensors, "p")


def test_the_suffix_chooses_the_writer(tmp_path: Path) -> None:
    info = TensorInfo("a", (1,), DType.U8)
    for suffix in (".bin", ".pth", ".pt"):
        assert type(open_writer(tmp_path, [Shard(f"m{suffix}", (info,))])) is TorchWriter
    assert type(open_writer(tmp_path, [Shard("m.safetensors", (info,))])) is SafetensorsWriter
    for base_name, suffix in (FORMATS[name] for name in ("safetensors", "bin")):
        shards = [Shard(shard_filename(base_name, n, 2, suffix), (TensorInfo(str(n), (1,), DType.U8),)) for n in (1, 2)]
        writer = open_writer(tmp_path, shards)
        for number in range(2):
            writer.start_shard(number)
            writer.write_from(str(number + 1), 0, memoryview(b"x"))
            writer.finish_shard(number)
        assert writer.finish()[-1].name == f"{base_name}{suffix}.index.json"
