"""Outputs in object stores: what is there at each moment, and what is left when something fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

import converters
from converters.errors import OutputError, OutputExistsError
from converters.storage import object_store as module
from converters.storage.object_store import object_store
from tests.commands.support import SPEC, read_tensors, write_checkpoint
from tests.hub_server import files_below

OUTPUT = "memory://bucket/models/tenny"
HOME = "/bucket/models/tenny"


@pytest.fixture
def memory() -> Iterator[Any]:
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    module.forget()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = write_checkpoint(tmp_path / "phi")
    (directory / "tokenizer.json").write_text('{"version": "1.0"}')
    return directory


def convert(source: Path, **options: Any) -> None:
    converters.convert(converters.load_spec(SPEC), source, OUTPUT, **options)


def stored(memory: Any) -> dict[str, bytes]:
    return {name: memory.cat_file(name) for name in memory.find("/")}


@pytest.mark.parametrize("options", [{}, {"max_shard_size": 2000}, {"max_shard_size": 3000, "file_format": "bin"}])
def test_the_same_files_as_in_a_directory(memory: Any, source: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    converters.convert(converters.load_spec(SPEC), source, tmp_path / "out", **options)
    convert(source, **options)
    local = files_below(tmp_path / "out")
    assert stored(memory) == {f"{HOME}/{name}": data for name, data in local.items()}
    assert len(local) == 4 if not options else len(local) > 6
    from converters.storage.locations import locate

    assert read_tensors(locate(OUTPUT)) == read_tensors(tmp_path / "out")


def watch(monkeypatch: pytest.MonkeyPatch, seen: Callable[[str], None]) -> None:
    """Call this with each key right before it is uploaded."""
    store = object_store("memory")
    upload = store.upload

    def watched(local: Path, key: str) -> int:
        seen(key)
        return upload(local, key)

    monkeypatch.setattr(store, "upload", watched)


def test_what_makes_it_complete_comes_last(memory: Any, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    watch(monkeypatch, lambda key: names.append(key.rpartition("/")[2]))
    convert(source, max_shard_size=2000)
    shards = [name for name in names if name.startswith("model-")]
    assert len(shards) > 2
    last = ["config.json", "weightmap_manifest.json", "model.safetensors.index.json"]
    assert names == [*shards, "tokenizer.json", *last]
    del memory


def test_one_shard_is_on_its_way_while_the_next_is_written(
    memory: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "disk"))
    most: list[int] = []
    watch(monkeypatch, lambda _: most.append(len([1 for path in (tmp_path / "disk").rglob("*.safetensors")])))
    convert(source, max_shard_size=2000)
    assert max(most) == 2
    assert not list((tmp_path / "disk").iterdir())
    del memory


def test_nothing_is_replaced_unasked(memory: Any, source: Path) -> None:
    memory.pipe_file(f"{HOME}/config.json", b"{}")
    before = stored(memory)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        convert(source)
    assert stored(memory) == before


def test_only_checkpoints_are_replaced(memory: Any, source: Path) -> None:
    memory.pipe_file(f"{HOME}/model.safetensors", b"old")
    memory.pipe_file(f"{HOME}/thesis.docx", b"years of work")
    before = stored(memory)
    with pytest.raises(OutputExistsError, match=r"holds what no checkpoint does: thesis\.docx"):
        convert(source, overwrite=True)
    assert stored(memory) == before


def test_an_old_output_is_replaced_whole(memory: Any, source: Path, tmp_path: Path) -> None:
    convert(source, max_shard_size=2000)
    memory.pipe_file("/bucket/models/tenny-2/config.json", b"a neighbour")
    convert(source, overwrite=True)
    converters.convert(converters.load_spec(SPEC), source, tmp_path / "out")
    expected = {f"{HOME}/{name}": data for name, data in files_below(tmp_path / "out").items()}
    assert stored(memory) == {**expected, "/bucket/models/tenny-2/config.json": b"a neighbour"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("failing", [0, 1, 3, -1])
def test_an_upload_that_fails_leaves_what_was_there(
    memory: Any, source: Path, monkeypatch: pytest.MonkeyPatch, failing: int, *, overwrite: bool
) -> None:
    if overwrite:
        memory.pipe_file(f"{HOME}/model.safetensors", b"old")
    before = stored(memory)
    filesystem = object_store("memory").filesystem
    put, calls = filesystem.put_file, []
    last = 7

    def failing_put(local: str, key: str) -> None:
        calls.append(key)
        if len(calls) == (failing % last) + 1:
            raise PermissionError("Access Denied")
        put(local, key)

    monkeypatch.setattr(filesystem, "put_file", failing_put)
    with pytest.raises(OutputError, match="Access Denied"):
        convert(source, max_shard_size=2000, overwrite=overwrite)
    assert stored(memory) == before


def test_an_upload_that_is_cut_off_is_noticed(memory: Any, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filesystem = object_store("memory").filesystem

    def half(local: str, key: str) -> None:
        data = Path(local).read_bytes()
        filesystem.pipe_file(key, data[: len(data) // 2])

    monkeypatch.setattr(filesystem, "put_file", half)
    with pytest.raises(OutputError, match="bytes were uploaded, and the store has"):
        convert(source)
    assert not stored(memory)


def test_a_bucket_that_is_not_there(memory: Any, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str, key: str) -> None:
        raise FileNotFoundError(key)

    monkeypatch.setattr(object_store("memory").filesystem, "put_file", refuse)
    with pytest.raises(OutputError, match="can't be written: FileNotFoundError"):
        convert(source)
    assert not stored(memory)


def test_a_move_that_fails_keeps_the_new_one(memory: Any, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe_file(f"{HOME}/model.safetensors", b"old")
    filesystem = object_store("memory").filesystem
    move = filesystem.mv

    def failing(key: str, target: str) -> None:
        if key.endswith("config.json"):
            raise PermissionError("Access Denied")
        move(key, target)

    monkeypatch.setattr(filesystem, "mv", failing)
    with pytest.raises(OutputError, match="the new one is complete in"):
        convert(source, overwrite=True)
    assert {name.rpartition("/")[2] for name in stored(memory)} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "weightmap_manifest.json",
    }


def test_a_source_that_changes_publishes_nothing(memory: Any, source: Path) -> None:
    for name, data in files_below(source).items():
        memory.pipe_file(f"/bucket/phi/{name}", data)
    before = set(stored(memory))

    def replace(_: int) -> None:
        memory.pipe_file("/bucket/phi/model.safetensors", b"else")

    with pytest.raises(converters.CheckpointError):
        converters.convert(converters.load_spec(SPEC), "memory://bucket/phi", OUTPUT, progress=replace)
    assert set(stored(memory)) == before


def test_input_and_output_are_apart(memory: Any, source: Path) -> None:
    for name, data in files_below(source).items():
        memory.pipe_file(f"/bucket/phi/{name}", data)
    spec = converters.load_spec(SPEC)
    for output in ("memory://bucket/phi", "memory://bucket/phi/tenny"):
        with pytest.raises(OutputError, match="aren't apart"):
            converters.convert(spec, "memory://bucket/phi", output, overwrite=True)
    with pytest.raises(OutputError, match="needs a name in its bucket"):
        converters.convert(spec, source, "memory://bucket")


def test_a_distributed_checkpoint_is_refused(memory: Any, source: Path) -> None:
    with pytest.raises(OutputError, match="a distributed checkpoint isn't written to an object store"):
        convert(source, file_format="dcp")
    assert not stored(memory)


def test_an_index_names_what_was_uploaded(memory: Any, source: Path) -> None:
    convert(source, max_shard_size=2000)
    index = json.loads(memory.cat_file(f"{HOME}/model.safetensors.index.json"))
    assert {f"{HOME}/{name}" for name in index["weight_map"].values()} == {
        name for name in stored(memory) if name.endswith(".safetensors")
    }
