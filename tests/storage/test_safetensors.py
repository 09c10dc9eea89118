"""The reader and the writer of safetensors files, on real files, with the real libraries, and on failing disks."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
import transformers

from converters.errors import CheckpointError, OutputError
from converters.sharding import Shard, split_into_shards
from converters.storage import files
from converters.storage.base import CheckpointReader, CheckpointWriter
from converters.storage.safetensors import SafetensorsReader, SafetensorsWriter
from converters.tensor_info import DType, TensorInfo

STATE = {
    "float": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "half": torch.arange(6, dtype=torch.bfloat16),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "empty": torch.zeros(0, 5),
    "größe.🤗": torch.tensor([True, False]),
    "long." + "x" * 3000: torch.ones(1, dtype=torch.float16),
    "eight": torch.arange(8, dtype=torch.uint8).view(torch.float8_e4m3fn),
}


def open_one(path: Path) -> SafetensorsReader:
    return SafetensorsReader(path, {path.name: path})


def read(reader: CheckpointReader, name: str) -> bytes:
    data = bytearray(reader.tensors[name].nbytes)
    reader.read_into(name, 0, memoryview(data))
    return bytes(data)


def bytes_of(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


def write(writer: CheckpointWriter, shards: Sequence[Shard], content: Callable[[str], bytes]) -> Sequence[Path]:
    try:
        for number, shard in enumerate(shards):
            writer.start_shard(number)
            for info in shard.tensors:
                writer.write_from(info.name, 0, memoryview(content(info.name)))
            writer.finish_shard(number)
        return writer.finish()
    finally:
        writer.abort()


def pattern(info: TensorInfo) -> bytes:
    return bytes((index * 31 + len(info.name)) % 251 for index in range(info.nbytes))


INFOS = [
    TensorInfo("a", (5, 3), DType.F32),
    TensorInfo("b", (7,), DType.U8),
    TensorInfo("c", (4,), DType.F4),
    TensorInfo("d", (), DType.C64),
    TensorInfo("e", (0, 2), DType.BF16),
    TensorInfo("f", (2, 2), DType.F6_E2M3),
]
CONTENT = {info.name: pattern(info) for info in INFOS}
SHARDS = split_into_shards(INFOS, 64)


# --- reading -----------------------------------------------------------------------------------------------------


def test_reads_what_the_library_wrote(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(STATE, path, {"format": "pt"})
    with open_one(path) as reader:
        assert reader.path == path
        assert set(reader.tensors) == set(STATE)
        assert set(reader.file_of.values()) == {"model.safetensors"}
        for name, tensor in STATE.items():
            assert reader.tensors[name].shape == tuple(tensor.shape)
            assert read(reader, name) == bytes_of(tensor)
        reader.check_unchanged()


def test_reads_any_range_of_a_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"w": torch.arange(100, dtype=torch.uint8)}, path)
    with open_one(path) as reader:
        for offset, nbytes in [(0, 1), (40, 20), (99, 1), (100, 0), (0, 100)]:
            data = bytearray(nbytes)
            reader.read_into("w", offset, memoryview(data))
            assert bytes(data) == bytes(range(offset, offset + nbytes))
        for offset, nbytes in [(-1, 1), (0, 101), (100, 1)]:
            with pytest.raises(ValueError, match="outside of w, which has 100"):
                reader.read_into("w", offset, memoryview(bytearray(nbytes)))


def test_reads_into_buffers_of_any_item_type(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"w": torch.arange(6, dtype=torch.int32)}, path)
    array = torch.zeros(2, 3, dtype=torch.int32).numpy()
    with open_one(path) as reader:
        reader.read_into("w", 0, memoryview(array))
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_data_that_is_not_aligned_is_read(tmp_path: Path) -> None:
    header = {
        "u": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "f": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    raw = json.dumps(header).encode() + b" "
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(range(11)))
    with open_one(path) as reader:
        assert read(reader, "f") == bytes(range(3, 11))


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(STATE, path)
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: real(fd, [buffers[0][:3]], at))
    with open_one(path) as reader:
        assert read(reader, "float") == bytes_of(STATE["float"])


def test_truncation_while_reading_is_an_error_and_not_zeros(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(STATE, path)
    with open_one(path) as reader:
        os.truncate(path, path.stat().st_size - 4)
        last = list(reader.tensors)[-1]
        with pytest.raises(CheckpointError, match="truncated while it was read"):
            read(reader, last)
        with pytest.raises(CheckpointError, match="was changed while it was read"):
            reader.check_unchanged()


def test_changed_replaced_and_removed_files_are_noticed(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in "abcd"]
    for path in paths:
        safetensors.torch.save_file({path.stem: torch.zeros(3)}, path)
    with SafetensorsReader(tmp_path, {path.name: path for path in paths}) as reader:
        os.utime(paths[0], ns=(1, 1))
        safetensors.torch.save_file({"b": torch.ones(3)}, tmp_path / "new")
        (tmp_path / "new").rename(paths[1])
        paths[2].unlink()
        assert read(reader, "b") == bytes(12)  # the descriptor still has the old one
        with pytest.raises(CheckpointError) as refusal:
            reader.check_unchanged()
    told = [str(problem).split("\n")[0] for problem in refusal.value.problems]
    assert [line.rpartition("/")[2] for line in told] == [
        "a.safetensors: the file was changed while it was read",
        "b.safetensors: the file was replaced while it was read",
        "c.safetensors: the file was removed while it was read",
    ]


def test_a_disk_that_fails_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(STATE, path)
    with open_one(path) as reader:

        def fail(*_: object) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: can't be read: Input/output error"):
            read(reader, "float")


def test_a_pipe_a_directory_a_link_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "directory.safetensors").mkdir()
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    names = ["pipe", "directory", "link", "missing"]
    with pytest.raises(CheckpointError) as refusal:
        SafetensorsReader(tmp_path, {name: tmp_path / f"{name}.safetensors" for name in names})
    text = str(refusal.value)
    assert "pipe: expected a regular file, this is a named pipe" in text
    assert "directory: expected a regular file, this is a directory" in text
    assert "link: can't be read: Too many levels of symbolic links" in text
    assert "missing: can't be read: No such file or directory" in text
    assert len(refusal.value.problems) == 4


def test_a_refused_checkpoint_leaves_no_descriptor_open(tmp_path: Path) -> None:
    safetensors.torch.save_file(STATE, tmp_path / "good")
    (tmp_path / "bad").write_bytes(b"")
    before = open_descriptors()
    with pytest.raises(CheckpointError, match="an empty file"):
        SafetensorsReader(tmp_path, {"good": tmp_path / "good", "bad": tmp_path / "bad"})
    assert open_descriptors() == before


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("x", "y"):
        safetensors.torch.save_file({"w": torch.zeros(1), name: torch.zeros(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match="y: w: this tensor is in x, too"):
        SafetensorsReader(tmp_path, {"x": tmp_path / "x", "y": tmp_path / "y"})


def test_a_closed_reader_never_reads_from_a_descriptor_of_someone_else(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(STATE, path)
    reader = open_one(path)
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match="is closed"):
        read(reader, "float")
    with pytest.raises(ValueError, match="is closed"):
        reader.check_unchanged()


def test_the_163_shards_of_a_large_model_fit_into_the_usual_limit_of_descriptors(tmp_path: Path) -> None:
    paths = {}
    for number in range(163):
        path = tmp_path / f"model-{number:05d}-of-00163.safetensors"
        safetensors.torch.save_file({f"w{number}": torch.full((2,), float(number))}, path)
        paths[path.name] = path
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # 256 is the usual limit on a Mac; what other tests of this process hold open comes on top.
    held = sum(1 for _ in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (230 + held, hard))
    try:
        with SafetensorsReader(tmp_path, paths) as reader:
            assert len(reader.tensors) == 163
            assert read(reader, "w162") == bytes_of(torch.full((2,), 162.0))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"w": torch.arange(1 << 16, dtype=torch.int32)}, path)
    wrong: list[int] = []
    with open_one(path) as reader:

        def work(start: int) -> None:
            data = bytearray(4)
            for index in range(start, 1 << 16, 64):
                reader.read_into("w", index * 4, memoryview(data))
                if int.from_bytes(data, "little") != index:
                    wrong.append(index)

        threads = [threading.Thread(target=work, args=(start,)) for start in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


# --- writing -----------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_by_the_library_and_by_us(tmp_path: Path) -> None:
    paths = write(SafetensorsWriter(tmp_path, SHARDS), SHARDS, CONTENT.__getitem__)
    assert [path.name for path in paths] == [shard.filename for shard in SHARDS] + ["model.safetensors.index.json"]
    assert sorted(path.name for path in paths) == sorted(entry.name for entry in tmp_path.iterdir())
    with SafetensorsReader(tmp_path, {path.name: path for path in paths[:-1]}) as reader:
        assert {name: read(reader, name) for name in reader.tensors} == CONTENT
    for shard, path in zip(SHARDS, paths, strict=False):
        library = dict(safetensors.deserialize(path.read_bytes()))
        assert {name: bytes(value["data"]) for name, value in library.items()} == {
            info.name: CONTENT[info.name] for info in shard.tensors
        }
        with safetensors.safe_open(path, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}


def test_every_dtype_of_torch_comes_back_from_the_library(tmp_path: Path) -> None:
    dtypes = {value for value in vars(torch).values() if isinstance(value, torch.dtype)} - {torch.complex32}
    state = {}
    for dtype in sorted(dtypes, key=str):
        try:
            tensor = torch.arange(16, dtype=torch.uint8).view(dtype).clone()
            safetensors.torch.save({"t": tensor})
        except (RuntimeError, KeyError, TypeError, safetensors.SafetensorError):
            continue
        state[str(dtype)] = tensor
    assert len(state) >= 20
    source = tmp_path / "source.safetensors"
    safetensors.torch.save_file(state, source)
    with open_one(source) as reader:
        shards = (Shard("copy.safetensors", tuple(reader.tensors.values())),)
        write(SafetensorsWriter(tmp_path, shards), shards, lambda name: read(reader, name))
    copied = safetensors.torch.load_file(tmp_path / "copy.safetensors")
    assert set(copied) == set(state)
    for name, tensor in state.items():
        assert copied[name].dtype == tensor.dtype
        assert bytes_of(copied[name]) == bytes_of(tensor)


def test_transformers_loads_what_is_written_and_would_have_written_the_same_index(tmp_path: Path) -> None:
    config = transformers.PhiConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    model = transformers.PhiForCausalLM(config)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="30KB")
    files_of = {path.name: path for path in (tmp_path / "theirs").glob("*.safetensors")}
    with SafetensorsReader(tmp_path / "theirs", files_of) as reader:
        shards = split_into_shards([reader.tensors[name] for name in model.state_dict()], 30_000)
        (tmp_path / "ours").mkdir()
        write(SafetensorsWriter(tmp_path / "ours", shards), shards, lambda name: read(reader, name))
    index = "model.safetensors.index.json"
    assert (tmp_path / "ours" / index).read_bytes() == (tmp_path / "theirs" / index).read_bytes()
    config.save_pretrained(tmp_path / "ours")
    loaded = transformers.PhiForCausalLM.from_pretrained(tmp_path / "ours").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


def test_one_shard_has_no_index(tmp_path: Path) -> None:
    shards = split_into_shards(INFOS, 10**9)
    paths = write(SafetensorsWriter(tmp_path, shards), shards, CONTENT.__getitem__)
    assert [path.name for path in paths] == ["model.safetensors"]
    assert list(tmp_path.iterdir()) == list(paths)


def test_other_base_names_and_metadata(tmp_path: Path) -> None:
    shards = split_into_shards(INFOS, 64, "adapter_model")
    name = "adapter_model.safetensors.index.json"
    paths = write(SafetensorsWriter(tmp_path, shards, index_name=name, metadata={}), shards, CONTENT.__getitem__)
    assert paths[-1].name == name
    with SafetensorsReader(tmp_path, {path.name: path for path in paths[:-1]}) as reader:
        assert {header.metadata == {} for header in reader.headers.values()} == {True}


def test_the_umask_decides_on_permissions(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        paths = write(SafetensorsWriter(tmp_path, SHARDS), SHARDS, CONTENT.__getitem__)
    finally:
        os.umask(old)
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o640}


def test_shards_may_be_written_at_once_and_finished_in_any_order(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path, SHARDS)
    assert len(SHARDS) > 1
    for number in reversed(range(len(SHARDS))):
        writer.start_shard(number)

    def work(number: int) -> None:
        for info in SHARDS[number].tensors:
            for at in range(info.nbytes):
                writer.write_from(info.name, at, memoryview(CONTENT[info.name])[at : at + 1])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(SHARDS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(len(SHARDS)):
        writer.finish_shard(number)
    for path in writer.finish()[:-1]:
        safetensors.deserialize(path.read_bytes())


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:5], at))
    paths = write(SafetensorsWriter(tmp_path, SHARDS), SHARDS, CONTENT.__getitem__)
    with SafetensorsReader(tmp_path, {path.name: path for path in paths[:-1]}) as reader:
        assert {name: read(reader, name) for name in reader.tensors} == CONTENT


def test_a_write_that_makes_no_progress_is_an_error_and_no_endless_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(OutputError, match="writing stopped"):
        write(SafetensorsWriter(tmp_path, SHARDS), SHARDS, CONTENT.__getitem__)


def test_nothing_that_exists_is_overwritten_and_no_link_is_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    output = tmp_path / "output"
    output.mkdir()
    (output / SHARDS[0].filename).symlink_to(victim)
    with pytest.raises(OutputError, match="File exists"):
        write(SafetensorsWriter(output, SHARDS), SHARDS, CONTENT.__getitem__)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("missing", ["all of it", "its last byte"])
def test_a_tensor_that_was_not_written_is_an_error_and_not_zeros(tmp_path: Path, missing: str) -> None:
    writer = SafetensorsWriter(tmp_path, SHARDS)
    writer.start_shard(0)
    if missing == "its last byte":
        writer.write_from("a", 0, memoryview(CONTENT["a"][:-1]))
    with pytest.raises(OutputError, match=r"a: (60|1) of its 60 bytes were never written"):
        writer.finish_shard(0)
    with pytest.raises(OutputError, match="shards were not finished"):
        writer.finish()


def test_a_tensor_that_was_written_twice_is_an_error(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path, SHARDS)
    writer.start_shard(0)
    for info in SHARDS[0].tensors:
        writer.write_from(info.name, 0, memoryview(CONTENT[info.name]))
    writer.write_from("a", 0, memoryview(CONTENT["a"]))
    with pytest.raises(OutputError, match="a: 60 of its 60 bytes were written twice"):
        writer.finish_shard(0)


def test_misuse_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path, SHARDS)
    with pytest.raises(ValueError, match="not open for writing"):
        writer.write_from("a", 0, memoryview(b"x"))
    with pytest.raises(ValueError, match="not open for writing"):
        writer.finish_shard(0)
    writer.start_shard(0)
    with pytest.raises(ValueError, match="outside of a, which has 60"):
        writer.write_from("a", 59, memoryview(b"xx"))
    writer.abort()
    writer.abort()


def test_shards_that_contradict_each_other_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    info = TensorInfo("a", (1,), DType.U8)
    for shards, message in [
        ((), "no tensors"),
        (
            (Shard("x.safetensors", (info,)), Shard("y.safetensors", (info,))),
            "is in x.safetensors and in y.safetensors",
        ),
        ((Shard("x.safetensors", (info,)), Shard("x.safetensors", ())), "two shards have this name"),
        ((Shard("x.safetensors", (TensorInfo("__metadata__", (), DType.U8),)),), "no tensor can have this name"),
    ]:
        with pytest.raises(OutputError, match=re.escape(message)):
            SafetensorsWriter(tmp_path, shards)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_damaged_on_the_disk_is_found_before_success(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path, SHARDS)
    for number, shard in enumerate(SHARDS):
        writer.start_shard(number)
        for info in shard.tensors:
            writer.write_from(info.name, 0, memoryview(CONTENT[info.name]))
        writer.finish_shard(number)
    path = tmp_path / SHARDS[-1].filename
    path.write_bytes(path.read_bytes().replace(b'"F6_E2M3"', b'"F6_E3M2"'))
    with pytest.raises(OutputError, match="not the one that was written"):
        writer.finish()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


CALLS = ("open", "pwrite", "ftruncate", "fsync", "close", "preadv")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_each_call_that_fails_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """Fail the first call, then the second, and so on, until nothing fails any more."""
    real = getattr(os, call)
    messages: list[str] = []
    for nth in range(1000):
        output = tmp_path / str(nth)
        output.mkdir()
        calls = 0

        def fail(*args: object, nth: int = nth, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls != nth + 1:
                return real(*args, **kwargs)
            if call == "close":
                real(*args)
            raise OSError(code, os.strerror(code))

        before = open_descriptors()
        message = None
        with monkeypatch.context() as patch:
            patch.setattr(files.os, call, fail)
            try:
                write(SafetensorsWriter(output, SHARDS), SHARDS, CONTENT.__getitem__)
            except OutputError as error:
                message = str(error)
        assert open_descriptors() == before
        if message is not None:
            assert os.strerror(code) in message
            assert str(output) in message
            messages.append(message)
        elif calls <= nth:
            break
        else:
            assert call == "close", "an error was swallowed"  # closing what was only read can lose nothing
    # Each shard and, but for ftruncate, the index.
    assert len(messages) >= len(SHARDS) + (call not in {"ftruncate", "preadv"})


def test_a_limit_on_the_size_of_files_is_explained(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        with pytest.raises(OutputError, match=r"File too large\n    .*choose smaller shards"):
            write(SafetensorsWriter(tmp_path, SHARDS), SHARDS, CONTENT.__getitem__)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_fsync_is_never_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    writer = SafetensorsWriter(tmp_path, SHARDS[:1])
    writer.start_shard(0)
    for info in SHARDS[0].tensors:
        writer.write_from(info.name, 0, memoryview(CONTENT[info.name]))
    with pytest.raises(OutputError, match=r"model-00001-of-\d+\.safetensors: can't be written: Input/output error"):
        writer.finish_shard(0)
    with pytest.raises(ValueError, match="not open"):
        writer.finish_shard(0)
    with pytest.raises(OutputError, match="not finished"):
        writer.finish()
    assert len(calls) == 1
