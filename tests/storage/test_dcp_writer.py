"""Distributed checkpoints that we write, read by torch itself, whole and on two ranks."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import MetadataIndex

import converters
from converters.errors import OutputError
from converters.sharding import Shard, split_into_shards
from converters.storage.checkpoint import open_checkpoint
from converters.storage.dcp_metadata import parse_metadata
from converters.storage.dcp_metadata_writer import StoredTensor, write_metadata
from converters.storage.dcp_writer import DcpWriter
from converters.storage.writers import open_writer
from converters.tensor_info import DType, TensorInfo, parse_dtype

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

GENERATOR = torch.Generator().manual_seed(0)
STATE: dict[str, Tensor] = {
    "a.weight": torch.randn(30, 5, generator=GENERATOR),
    "a.bias": torch.randn(5, generator=GENERATOR).bfloat16(),
    "scalar": torch.tensor(3),
    "empty": torch.zeros(0, 3),
    "float8": torch.randn(2, 3, generator=GENERATOR).to(torch.float8_e4m3fn),
    "mask": torch.rand(3, generator=GENERATOR) > 0.5,
    "unsigned": torch.arange(3).to(torch.uint16),
    "complex": torch.randn(3, dtype=torch.complex64, generator=GENERATOR),
    "größe.🤗": torch.ones(2, dtype=torch.float64),
}
INFOS = [TensorInfo(name, tuple(value.shape), parse_dtype(str(value.dtype))) for name, value in STATE.items()]


def bytes_of(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


def write(directory: Path, max_shard_nbytes: int, piece: int = 1 << 20) -> None:
    directory.mkdir(exist_ok=True)
    shards = split_into_shards(INFOS, max_shard_nbytes, suffix=".distcp")
    writer = open_writer(directory, shards)
    assert isinstance(writer, DcpWriter)
    for number, shard in enumerate(shards):
        writer.start_shard(number)
        for info in shard.tensors:
            data = bytes_of(STATE[info.name])
            # Backwards, since nothing promises an order.
            for start in reversed(range(0, len(data), piece)):
                writer.write_from(info.name, start, memoryview(data[start : start + piece]))
        writer.finish_shard(number)
    assert [path.name for path in writer.finish()] == [*(shard.filename for shard in shards), ".metadata"]


def empty_like(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(value) for name, value in state.items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert bytes_of(found[name]) == bytes_of(value), name


@pytest.mark.parametrize("max_shard_nbytes", [10**9, 40])
@pytest.mark.parametrize("piece", [1 << 20, 7])
def test_torch_reads_it(tmp_path: Path, max_shard_nbytes: int, piece: int) -> None:
    write(tmp_path / "out", max_shard_nbytes, piece)
    found = empty_like(STATE)
    dcp.load(found, checkpoint_id=tmp_path / "out")
    assert_equal(found, STATE)
    dcp_to_torch_save(tmp_path / "out", tmp_path / "whole.pt")
    assert_equal(torch.load(tmp_path / "whole.pt", weights_only=True), STATE)


def test_our_own_reader_reads_it(tmp_path: Path) -> None:
    write(tmp_path / "out", 40)
    with open_checkpoint(tmp_path / "out") as reader:
        assert reader.notes == ()
        assert {name: str(info) for name, info in reader.tensors.items()} == {info.name: str(info) for info in INFOS}
        for info in INFOS:
            data = bytearray(info.nbytes)
            reader.read_into(info.name, 0, memoryview(data))
            assert bytes(data) == bytes_of(STATE[info.name])
        reader.check_unchanged()


@pytest.mark.slow
def test_two_ranks_read_it_into_their_shards(tmp_path: Path) -> None:
    write(tmp_path / "out", 40)
    script = """
import sys
import torch
import torch.distributed.checkpoint as dcp
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
distributed.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
state = {"a.weight": distribute_tensor(torch.zeros(30, 5), mesh, [Shard(1)]), "scalar": torch.tensor(0)}
dcp.load(state, checkpoint_id=sys.argv[1])
whole = {"a.weight": state["a.weight"].full_tensor(), "scalar": state["scalar"]}
if distributed.get_rank() == 0:
    torch.save(whole, sys.argv[2])
distributed.destroy_process_group()
"""
    (tmp_path / "load.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = [tmp_path / "load.py", tmp_path / "out", tmp_path / "whole.pt"]
    done = subprocess.run([*command, *paths], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = {name: STATE[name] for name in ("a.weight", "scalar")}
    assert_equal(torch.load(tmp_path / "whole.pt", weights_only=True), expected)


def test_the_metadata_is_what_torch_writes(tmp_path: Path) -> None:
    """Read by torch's own classes, field by field."""
    write(tmp_path / "out", 10**9)
    dcp.save(dict(STATE), checkpoint_id=tmp_path / "theirs")
    ours, theirs = (pickle.loads((tmp_path / name / ".metadata").read_bytes()) for name in ("out", "theirs"))  # noqa: S301
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.planner_data == theirs.planner_data
    assert ours.storage_data.keys() == theirs.storage_data.keys()
    assert ours.version == theirs.version
    place = ours.storage_data[MetadataIndex("a.weight", torch.Size([0, 0]))]
    assert (place.relative_path, place.offset) == ("model.distcp", 0)


def test_large_numbers_and_many_tensors() -> None:
    many = [
        StoredTensor(TensorInfo(f"w{number}", (2**40 + number, 3), DType.F16), "x.distcp", number << 42, 1 << 42)
        for number in range(2500)
    ]
    metadata = parse_metadata(write_metadata(many), "place")
    assert list(metadata.tensors.values()) == [each.info for each in many]
    assert [metadata.chunks[each.info.name][0].start for each in many] == [each.start for each in many]


def test_convert_writes_it(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    save_file({"w": STATE["a.weight"], "b": STATE["a.bias"]}, tmp_path / "source" / "model.safetensors")
    (tmp_path / "spec.yaml").write_text(
        "weightmap: 1\nsource: {layout: a}\ntarget: {layout: b}\nrules:\n"
        "  - {from: w, to: kernel, layout: o i -> i o}\n  - {from: b, to: bias}\n"
    )
    spec = converters.load_spec(tmp_path / "spec.yaml")
    converters.convert(spec, tmp_path / "source", tmp_path / "out", file_format="dcp", max_shard_size=100)
    expected = {"kernel": STATE["a.weight"].t().contiguous(), "bias": STATE["a.bias"]}
    found = empty_like(expected)
    dcp.load(found, checkpoint_id=tmp_path / "out")
    assert_equal(found, expected)
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if not path.name.endswith(".json")) == [
        ".metadata",
        "model-00001-of-00002.distcp",
        "model-00002-of-00002.distcp",
    ]
    converters.convert(spec, tmp_path / "out", tmp_path / "back", reverse=True)
    with open_checkpoint(tmp_path / "back") as reader:
        assert {name: info.shape for name, info in reader.tensors.items()} == {"w": (30, 5), "b": (5,)}


def test_what_was_not_written_is_noticed(tmp_path: Path) -> None:
    info = TensorInfo("w", (4,), DType.F32)
    writer = DcpWriter(tmp_path, [Shard("model.distcp", (info,))])
    writer.start_shard(0)
    with pytest.raises(OutputError, match="never written"):
        writer.finish_shard(0)
    with pytest.raises(OutputError, match="1 shards were not finished"):
        writer.finish()
    assert not (tmp_path / ".metadata").exists()


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="torch has no dtype for F4"):
        DcpWriter(tmp_path, [Shard("model.distcp", (TensorInfo("w", (4,), DType.F4),))])
    with pytest.raises(OutputError, match="nothing to write"):
        DcpWriter(tmp_path, [])
    tensors = [TensorInfo(f"{part}:w", (1,), DType.F32) for part in "01"]
    shards = [Shard(f"part{number}.distcp", (info,), str(number)) for number, info in enumerate(tensors)]
    with pytest.raises(OutputError, match="the parts 0 and 1 would be one distributed checkpoint"):
        open_writer(tmp_path, shards)
    assert list(tmp_path.iterdir()) == []
