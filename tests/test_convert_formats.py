"""One checkpoint in several formats: the same bytes come out, whatever it is read from, and all formats come back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import huggingface_hub
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor

import converters
from converters.commands import main
from converters.errors import CheckpointError, OutputError
from converters.spec_file import parse_spec
from converters.storage.checkpoint import open_checkpoint
from converters.storage.torch_reader import TorchReader

SPEC = parse_spec(
    """
weightmap: 1
name: small
source: {layout: a}
target: {layout: b}
dims: {H: 3, D: 4}
rename: {"ids": ids, "norm.{p:weight|bias}": "ln.{p}"}
rules:
  - from: h.{i:0..3}.qkv.weight
    to: {q: "g.{i}.q.weight", k: "g.{i}.k.weight", v: "g.{i}.v.weight"}
    layout: {from: "(H (q: D | k: D | v: D)) E", q: (H D) E, k: (H D) E, v: (H D) E}
  - {from: "h.{i:0..3}.fc.weight", to: "g.{i}.fc.weight", layout: i o -> o i}
""",
    "small.yaml",
)


SAME = 'weightmap: 1\nsource: {layout: a}\ntarget: {layout: b}\nrename: {"{n:path}": "{n}"}\n'


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    state: dict[str, Tensor] = OrderedDict(ids=torch.arange(7))
    for layer in range(3):
        state[f"h.{layer}.qkv.weight"] = torch.randn(36, 10, generator=generator).bfloat16()
        state[f"h.{layer}.fc.weight"] = torch.randn(130, 70, generator=generator)
    state["norm.weight"] = 1.5 + torch.rand(10, generator=generator)
    state["norm.bias"] = 0.5 + torch.rand(10, generator=generator)
    return state


def as_safetensors(directory: Path) -> Path:
    save_file(tensors(), directory / "model.safetensors", {"format": "pt"})
    return directory


def as_bin(directory: Path) -> Path:
    torch.save(tensors(), directory / "pytorch_model.bin")
    return directory


def as_bin_shards(directory: Path) -> Path:
    huggingface_hub.save_torch_state_dict(tensors(), directory, max_shard_size="30KB", safe_serialization=False)
    assert (directory / "pytorch_model.bin.index.json").exists()
    return directory


def as_old_pth(directory: Path) -> Path:
    torch.save(tensors(), directory / "model.pth", _use_new_zipfile_serialization=False)
    return directory / "model.pth"


def as_training_checkpoint(directory: Path) -> Path:
    state = tensors()
    optimizer = {"state": {0: {"exp_avg": state["ids"] + 1}}}
    torch.save({"model": state, "optimizer": optimizer, "step": 7}, directory / "ckpt.pt")
    return directory / "ckpt.pt"


def as_views(directory: Path) -> Path:
    """Every tensor as a view of a larger or turned storage."""
    state = {}
    for name, value in tensors().items():
        padded = torch.cat([value[:1], value, value[:1]])
        state[name] = padded[1:-1] if value.ndim == 1 else value.t().contiguous().t()
    torch.save(state, directory / "views.bin")
    return directory


WAYS = [as_safetensors, as_bin, as_bin_shards, as_old_pth, as_training_checkpoint, as_views]


def make(way: object, directory: Path) -> Path:
    directory.mkdir(parents=True)
    source: Path = way(directory)  # type: ignore[operator]
    (directory / "config.json").write_text(json.dumps({"model_type": "a"}))
    return source


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("expected")
    converters.convert(SPEC, make(as_safetensors, root / "in"), root / "out")
    return root / "out"


def weights(directory: Path) -> dict[str, bytes]:
    others = {"config.json", "weightmap_manifest.json"}  # the second names the input, whose bytes differ
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir()) if file.name not in others}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_format_converts_to_identical_bytes(way: object, threads: int, tmp_path: Path, expected: Path) -> None:
    source = make(way, tmp_path / "in")
    converters.convert(SPEC, source, tmp_path / "out", threads=threads, max_memory="40MB")
    assert weights(tmp_path / "out") == weights(expected)


@pytest.mark.parametrize("size", ["5GB", "20KB"])
def test_bin_is_written_read_by_torch_and_comes_back(tmp_path: Path, expected: Path, size: str) -> None:
    source = make(as_safetensors, tmp_path / "in")
    converters.convert(SPEC, source, tmp_path / "bin", file_format="bin", max_shard_size=size)
    names = sorted(weights(tmp_path / "bin"))
    assert names == ["pytorch_model.bin"] if size == "5GB" else "pytorch_model.bin.index.json" in names
    loaded: dict[str, Tensor] = {}
    for name in names:
        if name.endswith(".bin"):
            loaded |= torch.load(tmp_path / "bin" / name, weights_only=True, mmap=True)
    wanted = load_file(expected / "model.safetensors")
    assert loaded.keys() == wanted.keys()
    assert all(torch.equal(loaded[name], wanted[name]) and loaded[name].dtype == wanted[name].dtype for name in wanted)
    for again in ("again", "and again"):
        converters.convert(SPEC, source, tmp_path / again, file_format="bin", max_shard_size=size)
        assert weights(tmp_path / again) == weights(tmp_path / "bin")
    converters.convert(SPEC, tmp_path / "bin", tmp_path / "back", reverse=True)
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == _canonical(source)


def _canonical(source: Path) -> bytes:
    """The source as a conversion would write it: names in the order of `natural_order`."""
    converters.convert(parse_spec(SAME, "same.yaml"), source, source.parent / "canonical")
    return (source.parent / "canonical" / "model.safetensors").read_bytes()


def test_what_a_format_cannot_hold_leaves_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "in"
    directory.mkdir()
    header = json.dumps({"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"xx")
    same = parse_spec("weightmap: 1\nsource: {layout: a}\ntarget: {layout: b}\nrename: {a: b}\n", "same.yaml")
    with pytest.raises(OutputError, match="torch has no dtype for F4"):
        converters.convert(same, directory, tmp_path / "out", file_format="bin")
    assert sorted(entry.name for entry in tmp_path.iterdir() if not entry.name.startswith(".")) == ["in"]
    with pytest.raises(ValueError, match="file_format must be one of"):
        converters.convert(same, directory, tmp_path / "out", file_format="gguf")


def test_damage_of_the_data_leaves_nothing(tmp_path: Path) -> None:
    source = make(as_bin, tmp_path / "in")
    file = source / "pytorch_model.bin"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"CRC of its data is wrong"):
        converters.convert(SPEC, source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- which files of a directory --------------------------------------------------------------------------------------


def test_safetensors_go_before_the_copies_in_other_formats_and_that_is_said(tmp_path: Path) -> None:
    source = make(as_safetensors, tmp_path / "in")
    torch.save({"other": torch.ones(1)}, source / "pytorch_model.bin")
    with open_checkpoint(source) as reader:
        assert set(reader.tensors) == set(tensors())
        assert "pytorch_model.bin is here, too; the safetensors files are read" in str(reader.notes[0])
    with open_checkpoint(source / "pytorch_model.bin") as reader:
        assert set(reader.tensors) == {"other"}


def test_what_a_trainer_keeps_beside_the_weights_is_no_checkpoint(tmp_path: Path) -> None:
    source = make(as_bin, tmp_path / "in")
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "scaler.pt"):
        torch.save({"x": torch.ones(1)}, source / name)
    with open_checkpoint(source) as reader:
        assert set(reader.tensors) == set(tensors())
        assert not reader.notes


def test_the_content_counts_and_not_the_name(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "pytorch_model.bin")
    torch.save(tensors(), tmp_path / "model.safetensors")
    for name, is_torch in (("pytorch_model.bin", False), ("model.safetensors", True)):
        with open_checkpoint(tmp_path / name) as reader:
            assert isinstance(reader, TorchReader) == is_torch
            assert set(reader.tensors) == set(tensors())


def test_several_files_without_an_index_are_ambiguous(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pth"):
        torch.save(tensors(), tmp_path / name)
    with pytest.raises(CheckpointError, match=r"Several files of torch\.save are here, and no index: a\.pt, b\.pth"):
        open_checkpoint(tmp_path)


def test_shards_without_an_index_or_without_each_other(tmp_path: Path) -> None:
    as_bin_shards(tmp_path)
    shards = sorted(tmp_path.glob("*.bin"))
    index = tmp_path / "pytorch_model.bin.index.json"
    text = index.read_text()
    index.unlink()
    with pytest.raises(CheckpointError, match=r"but no index .*\n.*\*\.bin\.index\.json"):
        open_checkpoint(tmp_path)
    index.write_text(text.replace(shards[0].name, shards[1].name))
    with pytest.raises(CheckpointError, match=f"the shard {shards[0].name} is not mentioned in {index.name}"):
        open_checkpoint(tmp_path)
    index.write_text(text)
    content = shards[0].read_bytes()
    shards[0].unlink()
    with pytest.raises(CheckpointError, match="the file is missing"):
        open_checkpoint(tmp_path)
    save_file({"x": torch.ones(1)}, shards[0])
    with pytest.raises(CheckpointError, match="one checkpoint has files of one format"):
        open_checkpoint(tmp_path)
    shards[0].write_bytes(content)
    document = json.loads(text)
    document["weight_map"]["ids"] = "../outside.bin"
    index.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="is not a plain file name"):
        open_checkpoint(tmp_path)
    document["weight_map"]["ids"] = "model.safetensors"
    index.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"is not a \.bin file"):
        open_checkpoint(tmp_path)


def test_an_index_and_shards_that_disagree(tmp_path: Path) -> None:
    as_bin_shards(tmp_path)
    index = tmp_path / "pytorch_model.bin.index.json"
    document = json.loads(index.read_text())
    first, *_, last = document["weight_map"]
    document["weight_map"]["ghost"] = document["weight_map"].pop(first)
    document["metadata"]["total_size"] += 1
    index.write_text(json.dumps(document))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert "holds this tensor, but it doesn't" in str(caught.value)
    assert "holds this tensor, but the index doesn't mention it" in str(caught.value)
    assert last not in str(caught.value)


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    path = tmp_path / "same.yaml"
    path.write_text(SAME)
    return path


def test_inspect_shows_a_bin_file(tmp_path: Path) -> None:
    source = make(as_training_checkpoint, tmp_path / "in")
    result = CliRunner().invoke(main, ["inspect", str(source)])
    assert result.exit_code == 0, result.output
    assert "h.{0..2}.fc.weight" in result.output or "h.{0..2}" in result.output
    assert "its state dict is under 'model'" in result.output
    assert "optimizer (1 tensor), step" in result.output.replace("\n", " ")
    result = CliRunner().invoke(main, ["inspect", "--json", str(source)])
    data = json.loads(result.stdout)
    assert data["tensors"] == len(tensors())
    assert data["files"][0]["name"] == "ckpt.pt"
    assert len(data["notes"]) == 2


def test_convert_to_bin_and_replace_it(tmp_path: Path, spec_file: Path) -> None:
    source, output = make(as_bin, tmp_path / "in"), tmp_path / "out"
    arguments = ["convert", "--spec", str(spec_file), "--format", "bin", str(source), str(output)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "pytorch_model.bin" in result.output
    assert set(torch.load(output / "pytorch_model.bin", weights_only=True)) == set(tensors())
    assert CliRunner().invoke(main, arguments).exit_code == 8
    result = CliRunner().invoke(main, [*arguments, "--overwrite"])
    assert result.exit_code == 0, result.output
    arguments = ["verify", "--spec", str(spec_file), str(source), str(output), "--level", "roundtrip"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output


def test_a_damaged_bin_target_is_examined_file_by_file(tmp_path: Path, spec_file: Path) -> None:
    source, output = make(as_bin, tmp_path / "in"), tmp_path / "out"
    options = ["--spec", str(spec_file), "--format", "bin", "--max-shard-size", "30KB"]
    assert CliRunner().invoke(main, ["convert", *options, str(source), str(output)]).exit_code == 0
    shard = sorted(output.glob("*.bin"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    result = CliRunner().invoke(main, ["verify", "--spec", str(spec_file), str(source), str(output), "--json"])
    assert result.exit_code == 4, result.output
    assert shard.name in result.output
    assert min(output.glob("*.bin")).name not in result.output.replace(shard.name, "")


def test_a_directory_of_other_bin_files_is_never_replaced(tmp_path: Path, spec_file: Path) -> None:
    source, output = make(as_bin, tmp_path / "in"), tmp_path / "firmware"
    output.mkdir()
    (output / "image.bin").write_bytes(b"\x7fELF")
    (output / "notes.txt").write_text("mine")
    result = CliRunner().invoke(main, ["convert", "--spec", str(spec_file), "--overwrite", str(source), str(output)])
    assert result.exit_code == 8
    assert "it holds no .safetensors files and none of torch.save" in result.output
    assert (output / "image.bin").exists()


def test_a_hostile_file_is_refused_soon_and_in_little_memory(tmp_path: Path, spec_file: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            import os

            return os.system, (f"touch {tmp_path / 'trapped'}",)

    torch.save({"a": torch.ones(2), "b": Evil()}, source / "pytorch_model.bin")
    script = (
        "import sys\nfrom converters.commands import main\n"
        f"try:\n    main(['convert', '--spec', {str(spec_file)!r}, {str(source)!r}, {str(tmp_path / 'out')!r}])\n"
        "except SystemExit as end:\n    print('exit', end.code)\n"
        "from converters.memory import measured_peak\nprint(measured_peak(), 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "asks for posix.system" in done.stderr
    status, usage = done.stdout.splitlines()
    assert status == "exit 7"
    nbytes, with_torch = usage.split()
    assert int(nbytes) < 200_000_000
    assert with_torch == "False"
    assert not (tmp_path / "trapped").exists()
    assert not (tmp_path / "out").exists()
    shutil.rmtree(source)
