"""Checkpoints in object stores, of which fsspec's `memory://` stands for all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

import converters
from converters.errors import CheckpointError
from converters.manifest import MANIFEST
from converters.storage import object_store as module
from converters.storage.locations import locate
from converters.storage.object_store import object_store
from tests.commands.support import CONFIG, SPEC, read_tensors, write_checkpoint
from tests.hub_server import files_below

URL = "memory://bucket/phi"


@pytest.fixture
def memory() -> Iterator[Any]:
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    module.forget()


def put(filesystem: Any, directory: Path, url: str = URL) -> None:
    for name, data in files_below(directory).items():
        filesystem.pipe_file(f"{url}/{name}", data)


@pytest.mark.parametrize("shards", [1, 3])
def test_it_reads_what_is_there(memory: Any, tmp_path: Path, shards: int) -> None:
    local = write_checkpoint(tmp_path / "local", shards=shards)
    put(memory, local)
    assert read_tensors(locate(URL)) == read_tensors(local)
    file = "model.safetensors" if shards == 1 else "model.safetensors.index.json"
    assert read_tensors(locate(f"{URL}/{file}")) == read_tensors(local)


def test_files_of_torch(memory: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    (tmp_path / "local").mkdir()
    torch.save({"a": torch.arange(7.0) - 3, "b": torch.ones(3, 5).T * 2}, tmp_path / "local" / "pytorch_model.bin")
    put(memory, tmp_path / "local")
    assert read_tensors(locate(URL)) == read_tensors(tmp_path / "local")


def test_conversions_are_the_same_as_of_local_files(memory: Any, tmp_path: Path) -> None:
    local = write_checkpoint(tmp_path / "local", shards=2)
    (local / "tokenizer.json").write_text('{"version": "1.0"}')
    put(memory, local)
    spec = converters.load_spec(SPEC)
    converters.convert(spec, local, tmp_path / "from-local")
    converters.convert(spec, URL, tmp_path / "from-store")
    found, expected = files_below(tmp_path / "from-store"), files_below(tmp_path / "from-local")
    # The manifests differ: of what is in a store they tell what the store says of it.
    assert found.pop(MANIFEST) != expected.pop(MANIFEST)
    assert found == expected
    assert (tmp_path / "from-store" / "tokenizer.json").exists()


def test_a_conversion_loads_lazily(memory: Any, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    put(memory, write_checkpoint(tmp_path / "local"))
    spec = converters.load_spec(SPEC)
    with converters.open_converted(spec, URL) as remote, converters.open_converted(spec, tmp_path / "local") as local:
        assert all((remote[name] == local[name]).all() for name in local)


@pytest.mark.parametrize("level", ["accounting", "roundtrip"])
def test_verification_reads_both_sides(memory: Any, tmp_path: Path, level: str) -> None:
    local = write_checkpoint(tmp_path / "local")
    put(memory, local)
    spec = converters.load_spec(SPEC)
    converters.convert(spec, local, "memory://bucket/tenny")
    assert converters.verify(spec, URL, "memory://bucket/tenny", level=level).exit_code == 0
    name = "/bucket/tenny/model.safetensors"
    data = bytearray(memory.cat_file(name))
    data[-1] ^= 1
    memory.pipe_file(name, bytes(data))
    assert converters.verify(spec, URL, "memory://bucket/tenny", level="roundtrip").exit_code == 4


def test_what_changes_between_two_readings_is_read_anew(memory: Any, tmp_path: Path) -> None:
    for seed, shards in enumerate((1, 2)):
        local = write_checkpoint(tmp_path / f"local-{seed}", shards=shards)
        for name in memory.find("/bucket"):
            memory.rm_file(name)
        put(memory, local)
        assert read_tensors(locate(URL)) == read_tensors(local)


def test_a_file_that_is_replaced_while_it_is_read(memory: Any, tmp_path: Path) -> None:
    local = write_checkpoint(tmp_path / "local")
    put(memory, local)
    output = tmp_path / "out"

    def replace(_: int) -> None:
        memory.pipe_file(f"{URL}/model.safetensors", (local / "model.safetensors").read_bytes()[::-1])

    with pytest.raises(CheckpointError, match=f"{URL}/model.safetensors: the file was replaced while it was read"):
        converters.convert(converters.load_spec(SPEC), URL, output, progress=replace)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["local"], "nothing is published"


def test_a_file_that_becomes_shorter(memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(memory, write_checkpoint(tmp_path / "local"))
    store = object_store("memory")
    whole = store.filesystem.cat_file

    def cut(path: str, start: int, end: int) -> bytes:
        data: bytes = whole(path, start=start, end=end)
        return data[:-5]

    monkeypatch.setattr(store.filesystem, "cat_file", cut)
    with pytest.raises(CheckpointError, match="and got"):
        converters.open_checkpoint(URL)


def test_nothing_is_there(memory: Any) -> None:
    del memory
    with pytest.raises(CheckpointError, match="memory://bucket/phi: can't be read: No such file or directory"):
        converters.open_checkpoint(URL)


def test_the_store_refuses(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    del memory

    def refuse(_: str) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(object_store("memory").filesystem, "info", refuse)
    with pytest.raises(CheckpointError, match="PermissionError: Access Denied"):
        converters.open_checkpoint(URL)


def test_a_scheme_that_nobody_knows() -> None:
    with pytest.raises(CheckpointError, match="there is no such store"):
        converters.open_checkpoint("nosuch://a/b")


def test_the_config_beside_the_weights_is_read(memory: Any, tmp_path: Path) -> None:
    put(memory, write_checkpoint(tmp_path / "local"))
    memory.pipe_file(f"{URL}/config.json", json.dumps({**CONFIG, "num_attention_heads": 3}).encode())
    with (
        pytest.raises(converters.CoverageError),
        converters.prepare(converters.load_spec(SPEC), URL, converters.Options()),
    ):
        pass
