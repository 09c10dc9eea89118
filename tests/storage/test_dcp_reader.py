"""The reader of distributed checkpoints: on what torch wrote, alone and on two ranks, and on hostile files."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.checkpoint.default_planner import (
    create_default_global_save_plan,
    create_default_local_save_plan,
)
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex

import converters
from converters.errors import CheckpointError
from converters.storage import dcp_reader
from converters.storage.base import CheckpointReader
from converters.storage.checkpoint import open_checkpoint
from converters.storage.dcp_metadata import parse_metadata
from converters.storage.dcp_reader import DcpReader
from converters.tensor_info import torch_name

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

STATE: dict[str, Any] = {
    "a.weight": torch.arange(15.0).reshape(3, 5),
    "a.bias": torch.arange(5.0).bfloat16(),
    "steps": torch.tensor(3),
    "mask": torch.tensor([True, False]),
    "float8": torch.arange(6.0).to(torch.float8_e4m3fn),
    "empty": torch.zeros(0, 4),
    "view": torch.arange(24.0).reshape(6, 4)[1:3, ::2],
    "transposed": torch.arange(6).reshape(2, 3).t(),
    "größe.🤗": torch.ones(2, dtype=torch.complex64),
}


def bytes_of(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


def read(reader: CheckpointReader, name: str) -> bytes:
    data = bytearray(reader.tensors[name].nbytes)
    reader.read_into(name, 0, memoryview(data))
    return bytes(data)


def read_all(reader: CheckpointReader) -> None:
    for name in reader.tensors:
        read(reader, name)
    reader.check_unchanged()


def assert_holds(reader: CheckpointReader, expected: Mapping[str, Tensor]) -> None:
    assert sorted(reader.tensors) == sorted(expected)
    for name, tensor in expected.items():
        info = reader.tensors[name]
        assert (info.shape, torch_name(info.dtype)) == (tuple(tensor.shape), str(tensor.dtype)[6:])
        assert read(reader, name) == bytes_of(tensor), name
    reader.check_unchanged()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    dcp.save(dict(STATE), checkpoint_id=tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote, each its part of a model that FSDP2 has sharded."""
    directory = tmp_path_factory.mktemp("sharded")
    script = Path(__file__).parent / "dcp_ranks.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, script, directory], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return directory


def test_reads_what_torch_wrote(saved: Path) -> None:
    for path in (saved, saved / ".metadata"):
        with open_checkpoint(path) as reader:
            assert isinstance(reader, DcpReader)
            assert_holds(reader, STATE)
            assert set(reader.file_of.values()) == {"__0_0.distcp"}
            assert reader.notes == ()


def test_the_optimizer_and_the_rest_are_left_out_with_a_note(tmp_path: Path) -> None:
    optimizer = {"state": {0: {"exp_avg": torch.ones(3, 5), "step": torch.tensor(2.0)}}, "param_groups": [{"lr": 0.1}]}
    dcp.save({"model": dict(STATE), "optimizer": optimizer, "epoch": 3}, checkpoint_id=tmp_path)
    with open_checkpoint(tmp_path) as reader:
        assert_holds(reader, STATE)
        notes = " ".join(note.what for note in reader.notes)
    assert "under 'model'" in notes
    assert "optimizer (2 tensors)" in notes
    assert "epoch" in notes


def test_names_of_nested_dicts_are_joined(tmp_path: Path) -> None:
    dcp.save({"encoder": {"w": torch.ones(2)}, "decoder.w": torch.zeros(2)}, checkpoint_id=tmp_path)
    with open_checkpoint(tmp_path) as reader:
        assert_holds(reader, {"encoder.w": torch.ones(2), "decoder.w": torch.zeros(2)})


@pytest.mark.slow
def test_what_two_ranks_wrote(sharded: Path) -> None:
    whole = torch.load(sharded / "whole.pt", weights_only=True)
    with open_checkpoint(sharded / "checkpoint") as reader:
        assert set(reader.file_of.values()) == {"__0_0.distcp", "__1_0.distcp"}
        assert_holds(reader, whole)
        split = {name: len(parts) for name, parts in reader._parts.items()}  # type: ignore[attr-defined]
    assert (split["0.weight"], split["middle"], split["3.weight"], split["alike"]) == (2, 2, 1, 1)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["0.weight", "2.weight", "middle", "last", "alike", "transposed"]), st.data())
@pytest.mark.parametrize("piece", [3, 1 << 20])
def test_any_range_of_what_two_ranks_wrote(piece: int, sharded: Path, name: str, data: st.DataObject) -> None:
    expected = bytes_of(torch.load(sharded / "whole.pt", weights_only=True)[name])
    offset = data.draw(st.integers(0, len(expected)))
    buffer = bytearray(data.draw(st.integers(0, len(expected) - offset)))
    with pytest.MonkeyPatch.context() as patch, open_checkpoint(sharded / "checkpoint") as reader:
        patch.setattr(dcp_reader, "_PIECE", piece)
        reader.read_into(name, offset, memoryview(buffer))
        assert bytes(buffer) == expected[offset : offset + len(buffer)]
        with pytest.raises(ValueError, match="outside of"):
            reader.read_into(name, 1, memoryview(bytearray(len(expected))))


@pytest.mark.slow
def test_a_sharded_checkpoint_converts_to_safetensors(sharded: Path, tmp_path: Path) -> None:
    whole = torch.load(sharded / "whole.pt", weights_only=True)
    text = "weightmap: 1\nsource: {layout: a}\ntarget: {layout: b}\nrules:\n"
    text += "".join(f"  - {{from: '{name}', to: 'new.{name}'}}\n" for name in whole)
    (tmp_path / "spec.yaml").write_text(text)
    spec = converters.load_spec(tmp_path / "spec.yaml")
    plan = converters.convert(spec, sharded / "checkpoint", tmp_path / "out", threads=2)
    assert any("optimizer" in note for note in plan.notes)
    with open_checkpoint(tmp_path / "out") as reader:
        assert_holds(reader, {f"new.{name}": value for name, value in whole.items()})


def test_no_torch_is_needed(saved: Path) -> None:
    script = """
import sys
from pathlib import Path
from converters.storage.checkpoint import open_checkpoint
with open_checkpoint(Path(sys.argv[1])) as reader:
    reader.read_into("a.weight", 0, memoryview(bytearray(60)))
print(sorted({"torch", "pickle"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", script, saved], capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout


# --- damage ------------------------------------------------------------------------------------------------------


def test_missing_and_truncated_files(saved: Path) -> None:
    file = saved / "__0_0.distcp"
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match="past the end of the file"):
        open_checkpoint(saved)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp: can't be read: No such file"):
        open_checkpoint(saved)
    (saved / ".metadata").unlink()
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="no safetensors files in this directory"):
        open_checkpoint(saved)


def test_a_flipped_bit_is_noticed(saved: Path) -> None:
    file = saved / "__0_0.distcp"
    raw = bytearray(file.read_bytes())
    at = raw.index(bytes_of(STATE["a.weight"]))
    raw[at + 20] ^= 1
    file.write_bytes(raw)
    with open_checkpoint(saved) as reader, pytest.raises(CheckpointError, match=r"a\.weight: its CRC is wrong"):
        read(reader, "a.weight")
    with open_checkpoint(saved) as reader:
        reader.read_into("a.weight", 4, memoryview(bytearray(4)))
        with pytest.raises(CheckpointError, match=r"a\.weight: its CRC is wrong"):
            reader.check_unchanged()


def test_files_that_change_are_noticed(saved: Path) -> None:
    with open_checkpoint(saved) as reader:
        os.utime(saved / "__0_0.distcp", (1, 1))
        with pytest.raises(CheckpointError, match="was changed while it was read"):
            reader.check_unchanged()


def test_links_lead_only_into_the_directory(saved: Path) -> None:
    (saved / "__0_0.distcp").rename(saved.parent / "secret")
    (saved / "__0_0.distcp").symlink_to(saved.parent / "secret")
    with pytest.raises(CheckpointError, match="symbolic link out of its directory"):
        open_checkpoint(saved)


def rewrite(path: Path, change: Callable[[Metadata], object]) -> None:
    """Change what `.metadata` says, with torch's own classes."""
    metadata = pickle.loads((path / ".metadata").read_bytes())  # noqa: S301 - we wrote it ourselves
    change(metadata)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))


def place_of(metadata: Metadata, name: str) -> _StorageInfo:
    place = next(value for index, value in metadata.storage_data.items() if index.fqn == name)
    assert isinstance(place, _StorageInfo)
    return place


def tensor_of(metadata: Metadata, name: str) -> Any:
    return metadata.state_dict_metadata[name]


def give_two_chunks(metadata: Metadata) -> None:
    tensor_of(metadata, "a.weight").chunks.append(ChunkStorageMetadata(torch.Size([0, 0]), torch.Size([1, 5])))


def give_a_size(*sizes: int) -> Callable[[Metadata], None]:
    return lambda metadata: setattr(tensor_of(metadata, "a.weight"), "size", torch.Size(sizes))


def give_a_place(**changes: object) -> Callable[[Metadata], None]:
    return lambda metadata: place_of(metadata, "a.weight").__dict__.update(changes)


def forget_the_place(metadata: Metadata) -> None:
    del metadata.storage_data[MetadataIndex("a.weight", torch.Size([0, 0]))]


def share_bytes(metadata: Metadata) -> None:
    place_of(metadata, "a.weight").__dict__.update(place_of(metadata, "a.bias").__dict__)


def claim_another_dtype(metadata: Metadata) -> None:
    tensor_of(metadata, "a.weight").properties.dtype = torch.int32


@pytest.mark.parametrize(("change", "message"), [
    (give_a_size(4, 5), r"its chunks have 15 of its 20 elements"),
    (give_a_size(3, 4), r"its chunk \[3, 5\] at \[0, 0\] is no part of shape \[3, 4\]"),
    (give_a_size(2**62, 2**62), "larger than any memory"),
    (give_two_chunks, "overlap"),
    (give_a_place(relative_path="../secret.distcp"), "is not a plain file name"),
    (give_a_place(relative_path="/etc/passwd"), r"is not a \.distcp file"),
    (give_a_place(relative_path=3), "no text"),
    (give_a_place(offset=-1), "has no place"),
    (give_a_place(offset=1.5), "has no place"),
    (give_a_place(offset=2**62), "past the end of the file"),
    (give_a_place(length=10), "zip archive is not valid"),
    (give_a_place(transform_descriptors=["stream.zstd"]), r"were changed on their way to the disk.*stream\.zstd"),
    (forget_the_place, r"nothing says where its chunk at \[0, 0\] is stored"),
    (share_bytes, "overlap"),
    (claim_another_dtype, r"it should be \[3, 5\] I32, as \.metadata says, but it is \[3, 5\] F32"),
])  # fmt: skip
def test_contradictions(saved: Path, change: Callable[[Metadata], object], message: str) -> None:
    rewrite(saved, change)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(saved)


def test_all_problems_are_reported_at_once(saved: Path) -> None:
    rewrite(saved, lambda metadata: [give_a_size(4, 5)(metadata), setattr(tensor_of(metadata, "mask"), "chunks", [])])
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(saved)
    assert len(caught.value.problems) == 2


# --- hostile pickles ---------------------------------------------------------------------------------------------


class Payload:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def everywhere(path: Path) -> Iterable[Callable[[Metadata], object]]:
    payload = Payload(path)
    yield lambda metadata: setattr(metadata, "planner_data", payload)
    yield lambda metadata: setattr(metadata, "storage_meta", payload)
    yield lambda metadata: setattr(metadata, "version", payload)
    yield lambda metadata: metadata.state_dict_metadata.update(x=payload)
    yield lambda metadata: setattr(tensor_of(metadata, "a.weight"), "properties", payload)
    yield lambda metadata: place_of(metadata, "a.weight").__dict__.update(offset=payload)
    yield lambda metadata: metadata.storage_data.update({MetadataIndex("y"): payload})


def test_payloads_never_run(saved: Path, tmp_path: Path) -> None:
    original = (saved / ".metadata").read_bytes()
    for change in everywhere(tmp_path / "owned"):
        (saved / ".metadata").write_bytes(original)
        rewrite(saved, change)
        with pytest.raises(CheckpointError, match="which no checkpoint needs; nothing was run"):
            open_checkpoint(saved)
        assert not (tmp_path / "owned").exists()
    # That it is a payload: torch's own reader runs it.
    dcp.FileSystemReader(saved).read_metadata()
    assert (tmp_path / "owned").exists()


@pytest.mark.parametrize("code", [
    b"cos\nsystem\n(S'true'\ntR.",
    b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
    b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
    b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81}b.",
    b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81.",
    b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n.",
    b"\x80\x02}.", b"\x80\x02N.", b"", b".", b"\x80\x02", b"\x80\x09.", b"<html>", b"\x80\x02(" * 100_000,
])  # fmt: skip
def test_other_pickles(code: bytes) -> None:
    with pytest.raises(CheckpointError):
        parse_metadata(code, "place")


def metadata_of(state: dict[str, Any]) -> bytes:
    _, metadata = create_default_global_save_plan([create_default_local_save_plan(state, is_coordinator=True)])
    metadata.storage_data = {
        index: _StorageInfo("__0_0.distcp", number * 100, 100)
        for number, index in enumerate(
            MetadataIndex(name, torch.Size([0] * value.dim())) for name, value in state.items()
        )
    }
    return pickle.dumps(metadata)


GOOD = metadata_of({name: value for name, value in STATE.items() if name != "view"})


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4), st.integers(0, len(GOOD)))
def test_no_damage_gives_any_other_error(changes: list[tuple[int, int]], length: int) -> None:
    raw = bytearray(GOOD)
    for at, value in changes:
        raw[at] = value
    for text in (raw, raw[:length]):
        try:
            parse_metadata(bytes(text), "place")
        except CheckpointError:
            continue


def test_an_archive_in_the_place_of_a_tensor(saved: Path) -> None:
    """The chunk is a whole file of torch.save, but of a dict."""
    file = io.BytesIO()
    torch.save({"model": {"w": torch.ones(15)}}, file)
    (saved / "other.distcp").write_bytes(file.getvalue())
    rewrite(saved, give_a_place(relative_path="other.distcp", offset=0, length=len(file.getvalue())))
    with pytest.raises(CheckpointError, match="a single tensor should be saved there"):
        open_checkpoint(saved)
