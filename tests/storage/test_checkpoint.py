"""Directories as people have them: from transformers, from the Hub's cache, half downloaded, stale, and hostile."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from converters.errors import CheckpointError
from converters.storage.checkpoint import open_checkpoint
from converters.storage.shard_names import shard_count, shard_family

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def index_of(weight_map: object, metadata: object = None) -> str:
    return json.dumps({"metadata": metadata or {}, "weight_map": weight_map})


def change_index(directory: Path, **weight_map: object) -> None:
    document = json.loads((directory / INDEX).read_text())
    document["weight_map"].update(weight_map)
    (directory / INDEX).write_text(json.dumps(document))


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(path)
    return str(refused.value)


@pytest.fixture
def single(tmp_path: Path) -> Path:
    directory = tmp_path / "single"
    directory.mkdir()
    save_file({"a": torch.zeros(2), "b": torch.ones(3)}, directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text("{}")
    return directory


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two shards of 8 and 12 bytes."""
    directory = tmp_path / "sharded"
    directory.mkdir()
    save_file({"a": torch.zeros(2)}, directory / FIRST, {"format": "pt"})
    save_file({"b": torch.ones(3)}, directory / SECOND, {"format": "pt"})
    (directory / INDEX).write_text(index_of({"a": FIRST, "b": SECOND}, {"total_size": 20}))
    return directory


# --- what is accepted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_shard_size", ["10GB", "30KB"])
def test_what_transformers_saved_is_opened(tmp_path: Path, max_shard_size: str) -> None:
    config = transformers.PhiConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    model = transformers.PhiForCausalLM(config)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    with open_checkpoint(tmp_path) as reader:
        assert set(reader.tensors) == set(model.state_dict())
        assert not reader.notes
        for name, tensor in model.state_dict().items():
            data = bytearray(tensor.nbytes)
            reader.read_into(name, 0, memoryview(data))
            assert torch.equal(torch.frombuffer(data, dtype=tensor.dtype).reshape(tensor.shape), tensor)


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
        "consolidated.safetensors",
        "adapter_model.safetensors",
        "model-00001-of-00001.safetensors",
    ],
)
def test_a_single_file_of_any_name(tmp_path: Path, name: str) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        with open_checkpoint(path) as reader:
            assert reader.path == path
            assert dict(reader.file_of) == {"a": name}


@pytest.mark.parametrize(
    ("index", "shards"),
    [
        (INDEX, (FIRST, SECOND)),
        ("model.safetensors.index.fp16.json", ("model.fp16-00001-of-00002.safetensors",)),
        ("diffusion_pytorch_model.safetensors.index.json", ("diffusion_pytorch_model-00001-of-00001.safetensors",)),
        (INDEX, ("model-00001-of-000002.safetensors", "model-00002-of-000002.safetensors")),
        (INDEX, ("model.safetensors-00001-of-00001.safetensors", "extra.safetensors")),
        (INDEX, ("model.safetensors",)),
    ],
)
def test_a_sharded_checkpoint_of_any_name(tmp_path: Path, index: str, shards: tuple[str, ...]) -> None:
    for number, shard in enumerate(shards):
        save_file({f"w{number}": torch.zeros(2)}, tmp_path / shard)
    weight_map = {f"w{number}": shard for number, shard in enumerate(shards)}
    (tmp_path / index).write_text(index_of(weight_map))
    for path in (tmp_path, tmp_path / index):
        with open_checkpoint(path) as reader:
            assert dict(reader.file_of) == weight_map
            reader.check_unchanged()


def test_one_shard_can_be_opened_by_itself(sharded: Path) -> None:
    with open_checkpoint(sharded / SECOND) as reader:
        assert list(reader.tensors) == ["b"]


def test_links_that_the_user_names_are_followed(sharded: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(sharded)
    (tmp_path / "file.safetensors").symlink_to(sharded / FIRST)
    with open_checkpoint(tmp_path / "link") as reader:
        assert set(reader.tensors) == {"a", "b"}
    with open_checkpoint(tmp_path / "file.safetensors") as reader:
        assert dict(reader.file_of) == {"a": "file.safetensors"}


@pytest.fixture
def hub_cache(sharded: Path, tmp_path: Path) -> Path:
    """The snapshot of a repository in the Hub's cache: nothing but links to its blobs."""
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(sharded.iterdir())):
        shutil.copy(path, repository / "blobs" / f"digest{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/digest{number}")
    return snapshot


def test_a_snapshot_in_the_cache_of_the_hub_is_opened(hub_cache: Path) -> None:
    for path in (hub_cache, hub_cache / INDEX):
        with open_checkpoint(path) as reader:
            assert dict(reader.file_of) == {"a": FIRST, "b": SECOND}
            reader.check_unchanged()


def test_a_folder_in_a_snapshot_may_link_to_the_blobs_too(hub_cache: Path) -> None:
    folder = hub_cache / "unet"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to("../../../blobs/digest0")
    with open_checkpoint(folder) as reader:
        assert set(reader.tensors) == {"a"}


def test_links_inside_of_the_directory_are_followed(sharded: Path) -> None:
    (sharded / "store").mkdir()
    (sharded / FIRST).rename(sharded / "store" / "one")
    (sharded / FIRST).symlink_to("store/one")
    with open_checkpoint(sharded) as reader:
        assert set(reader.tensors) == {"a", "b"}


@pytest.mark.parametrize("metadata", [None, {}, {"total_size": 20}, {"total_size": 20.0}, {"total_parameters": 5}])
def test_metadata_may_be_missing_or_right(sharded: Path, metadata: object) -> None:
    (sharded / INDEX).write_text(index_of({"a": FIRST, "b": SECOND}, metadata))
    with open_checkpoint(sharded) as reader:
        assert not reader.notes


def test_metadata_may_count_whole_files_as_mlx_did(sharded: Path) -> None:
    total = sum(path.stat().st_size for path in sharded.glob("*.safetensors"))
    (sharded / INDEX).write_text(index_of({"a": FIRST, "b": SECOND}, {"total_size": total}))
    with open_checkpoint(sharded) as reader:
        assert not reader.notes


def test_another_total_size_is_a_note_and_no_refusal(sharded: Path) -> None:
    (sharded / INDEX).write_text(index_of({"a": FIRST, "b": SECOND}, {"total_size": 40}))
    with open_checkpoint(sharded) as reader:
        assert [str(note) for note in reader.notes] == [
            f"{sharded / INDEX}: metadata.total_size is 40, but the tensors have 20 bytes"
        ]


# --- what is refused ---------------------------------------------------------------------------------------------


def test_a_key_in_the_index_but_not_in_the_shard(sharded: Path) -> None:
    change_index(sharded, c=SECOND)
    assert f"{INDEX}: weight_map: c: the index says that {SECOND} holds this tensor, but it doesn't" in refusal(sharded)


def test_a_key_in_another_shard_than_the_index_says(sharded: Path) -> None:
    change_index(sharded, a=SECOND, c=FIRST)
    assert f"the index says that {SECOND} holds this tensor, but it doesn't; {FIRST} has it" in refusal(sharded)


def test_a_key_in_a_shard_but_not_in_the_index(sharded: Path) -> None:
    save_file({"b": torch.ones(3), "c": torch.ones(1)}, sharded / SECOND)
    assert f"weight_map: c: {SECOND} holds this tensor, but the index doesn't mention it" in refusal(sharded)


def test_a_shard_that_is_missing(sharded: Path) -> None:
    (sharded / SECOND).unlink()
    assert f"{sharded / SECOND}: the file is missing; {INDEX} says that it holds 1 tensors, among them b" in refusal(
        sharded
    )


def test_a_shard_that_the_index_does_not_mention(sharded: Path) -> None:
    save_file({"c": torch.ones(1)}, sharded / "model-00003-of-00003.safetensors")
    for path in (sharded, sharded / INDEX):
        assert f"the shard model-00003-of-00003.safetensors is not mentioned in {INDEX}" in refusal(path)


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    save_file({"a": torch.zeros(2), "b": torch.ones(3)}, sharded / SECOND)
    assert f"{SECOND}: a: this tensor is in {FIRST}, too" in refusal(sharded)


def test_all_problems_come_at_once(sharded: Path) -> None:
    (sharded / FIRST).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (sharded / SECOND).unlink()
    save_file({"c": torch.ones(1)}, sharded / "model-00003-of-00003.safetensors")
    text = refusal(sharded)
    assert "a Git LFS pointer" in text
    assert "the file is missing" in text
    assert "model-00003-of-00003.safetensors is not mentioned" in text

    change_index(sharded, x=FIRST, y="../y.safetensors", z=1)
    text = refusal(sharded)
    assert "weight_map: y: the file '../y.safetensors' is not a plain file name" in text
    assert "weight_map: z: expected the name of a file, got 1" in text


def test_a_single_file_beside_an_index_is_ambiguous(sharded: Path) -> None:
    save_file({"a": torch.zeros(2)}, sharded / "model.safetensors")
    text = refusal(sharded)
    assert f"ambiguous: both model.safetensors and {INDEX} are here" in text
    assert f"Give the one that you mean: {sharded / 'model.safetensors'} or {sharded / INDEX}." in text
    for name, tensors in [("model.safetensors", {"a"}), (INDEX, {"a", "b"})]:
        with open_checkpoint(sharded / name) as reader:
            assert set(reader.tensors) == tensors


def test_several_single_files_are_ambiguous(single: Path) -> None:
    save_file({"a": torch.zeros(2)}, single / "consolidated.safetensors")
    text = refusal(single)
    assert "Several safetensors files are here, and no index: consolidated.safetensors, model.safetensors" in text
    assert "Give the one that you mean" in text


def test_several_indexes_are_ambiguous(sharded: Path) -> None:
    shutil.copy(sharded / INDEX, sharded / "other.safetensors.index.json")
    assert "Several indexes are here" in refusal(sharded)


def test_shards_without_an_index(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    text = refusal(sharded)
    assert f"2 shards ({FIRST}, {SECOND}), but no index" in text
    assert "*.safetensors.index.json" in text
    (sharded / FIRST).unlink()
    assert f"{SECOND} is one shard of 2; the others and their index are missing" in refusal(sharded)


def test_a_directory_without_weights_says_where_there_are_some(tmp_path: Path, single: Path) -> None:
    text = refusal(tmp_path)
    assert "no safetensors files in this directory" in text
    assert f"There are some in {single}" in text
    shutil.rmtree(single)
    assert "Give the directory that holds model.safetensors" in refusal(tmp_path)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    assert f"{tmp_path / 'none'}: can't be read: No such file or directory" in refusal(tmp_path / "none")


def test_a_pipe_does_not_hang(tmp_path: Path, sharded: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "this is a named pipe" in refusal(tmp_path / "pipe.safetensors")
    (sharded / FIRST).unlink()
    os.mkfifo(sharded / FIRST)
    assert "this is a named pipe" in refusal(sharded)
    (sharded / INDEX).unlink()
    os.mkfifo(sharded / INDEX)
    assert "this is a named pipe" in refusal(sharded)


@pytest.mark.parametrize("victim", [FIRST, INDEX])
@pytest.mark.parametrize("relative", [False, True])
def test_a_link_out_of_the_directory_is_refused(sharded: Path, tmp_path: Path, victim: str, *, relative: bool) -> None:
    outside = tmp_path / "outside"
    (sharded / victim).rename(outside)
    (sharded / victim).symlink_to("../outside" if relative else outside)
    text = refusal(sharded)
    assert f"{sharded / victim}: it is a symbolic link out of its directory, to {outside}" in text


def test_a_snapshot_may_not_link_to_the_blobs_of_another_repository(hub_cache: Path, tmp_path: Path) -> None:
    other = tmp_path / "models--org--other" / "blobs"
    other.mkdir(parents=True)
    shutil.copy(hub_cache / FIRST, other / "digest")
    (hub_cache / FIRST).unlink()
    (hub_cache / FIRST).symlink_to(other / "digest")
    assert "a symbolic link out of its directory" in refusal(hub_cache)


def test_a_link_to_itself(sharded: Path) -> None:
    (sharded / FIRST).unlink()
    (sharded / FIRST).symlink_to(FIRST)
    assert str(sharded / FIRST) in refusal(sharded)


@pytest.mark.parametrize(
    ("filename", "message"),
    [
        ("../outside.safetensors", "is not a plain file name"),
        ("..", "is not a .safetensors file"),
        ("/etc/passwd", "is not a .safetensors file"),
        ("/etc/weights.safetensors", "is not a plain file name"),
        ("sub/model.safetensors", "is not a plain file name"),
        ("..\\model.safetensors", "is a Windows path"),
        ("C:model.safetensors", "is a Windows path"),
        ("\\\\server\\share\\m.safetensors", "is a Windows path"),
        ("https://example.org/m.safetensors", "is a URL"),
        ("file:///m.safetensors", "is a URL"),
        ("m\0.safetensors", "is not a plain file name"),
        (".hidden.safetensors", "is not a plain file name"),
        (".safetensors", "is not a .safetensors file"),
        ("", "is not a .safetensors file"),
        ("pytorch_model.bin", "is not a .safetensors file"),
        ("model.safetensors.bin", "is not a .safetensors file"),
        ("~/m.safetensors", "is not a plain file name"),
        (None, "expected the name of a file, got null"),
        (["a"], "expected the name of a file, got a list of 1"),
        ({}, "expected the name of a file, got an object"),
    ],
)
def test_an_index_names_files_beside_it_and_nothing_else(sharded: Path, filename: object, message: str) -> None:
    save_file({"c": torch.zeros(1)}, sharded.parent / "outside.safetensors")
    change_index(sharded, c=filename)
    text = refusal(sharded)
    assert f"{sharded / INDEX}: weight_map: c: " in text
    assert message in text
    assert "\0" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ("[]", "expected a JSON object, got a list of 0"),
        ("{}", "expected a 'weight_map' from tensor to file, got none"),
        ('{"weight_map": {}}', "expected a 'weight_map' from tensor to file, got an object"),
        ('{"weight_map": ["a"]}', "got a list of 1"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "the key 'a' occurs twice"),
        ('{"weight_map": 1, "weight_map": {}}', "the key 'weight_map' occurs twice"),
        ('{"weight_map": {"\\ud800": "x"}}', "lone surrogate"),
        ("[" * 100_000, "nested too deeply"),
        ('{"metadata": NaN}', "NaN is not JSON"),
        ("\xff", "not JSON"),
        (
            index_of({"a": FIRST, "b": SECOND}, {"total_size": "20"}),
            "expected bytes as 'metadata.total_size', got \"20\"",
        ),
        (index_of({"a": FIRST, "b": SECOND}, {"total_size": True}), "got true"),
        (index_of({"a": FIRST, "b": SECOND}, {"total_size": -1}), "got -1"),
        (index_of({"a": FIRST, "b": SECOND}, [1]), "expected an object as 'metadata', got a list of 1"),
    ],
)
def test_an_index_that_is_not_valid(sharded: Path, content: str, message: str) -> None:
    (sharded / INDEX).write_text(content)
    text = refusal(sharded)
    assert message in text
    assert str(sharded / INDEX) in text


def test_an_index_above_the_limit_is_not_even_read(sharded: Path) -> None:
    os.truncate(sharded / INDEX, 64_000_001)
    assert "expected at most 64,000,000 bytes, this file has 64,000,001" in refusal(sharded)


def test_names_are_escaped_in_every_message(sharded: Path) -> None:
    change_index(sharded, **{"key\x1b[2J": "file\x1b[2J\u202e.safetensors"})
    text = refusal(sharded)
    assert r"key\x1b[2J" in text
    assert r"file\x1b[2J\u202e.safetensors" in text
    assert "\x1b" not in text


def test_a_name_in_the_index_that_is_too_long_for_a_file(sharded: Path) -> None:
    change_index(sharded, c="x" * 5000 + ".safetensors")
    assert "the file is missing" in refusal(sharded)


def test_a_refused_checkpoint_leaves_no_descriptor_open(sharded: Path) -> None:
    change_index(sharded, c=FIRST)
    before = len(list(Path("/proc/self/fd").iterdir()))
    refusal(sharded)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("filename", "family", "count"),
    [
        (FIRST, "model", 2),
        ("model-00001-of-000163.safetensors", "model", 163),
        ("a-b-00001-of-00003.safetensors", "a-b", 3),
        ("model.safetensors-00001-of-00191.safetensors", "model.safetensors", 191),
        ("model.safetensors", None, 0),
        ("model-1-2.safetensors", None, 0),
        ("model-x-of-y.safetensors", None, 0),
        ("model-²-of-³.safetensors", None, 0),
        ("pytorch_model-00001-of-00002.bin", "pytorch_model", 2),
        ("model-00001-of-00002.txt", None, 0),
        ("-of-.safetensors", None, 0),
    ],
)
def test_the_names_of_shards(filename: str, family: str | None, count: int) -> None:
    assert (shard_family(filename), shard_count(filename)) == (family, count)
