"""Conversions of what is on the Hub: downloaded into huggingface_hub's own cache, once they are planned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import converters
import converters.storage.locations
from converters.errors import CheckpointError, ConfigError, OutputError
from tests.commands.support import SPEC, phi_shapes, write_checkpoint
from tests.hub_server import COMMIT, REPO, Hub, files_below, serving, use


@pytest.fixture
def local(tmp_path: Path) -> Path:
    directory = write_checkpoint(tmp_path / "local", phi_shapes(hidden=256, inner=384, vocab=501), shards=2)
    (directory / "tokenizer.json").write_text('{"version": "1.0"}')
    (directory / "generation_config.json").write_text("{}")
    (directory / "README.md").write_text("# A model")
    (directory / "pytorch_model.bin").write_bytes(b"the same in another format" * 1000)
    (directory / "pytorch_model.bin.index.json").write_text("{}")
    (directory / "onnx").mkdir()
    (directory / "onnx" / "model.onnx").write_bytes(b"and in a third")
    config = (directory / "config.json").read_text()
    (directory / "config.json").write_text(
        config.replace('"hidden_size": 8', '"hidden_size": 256').replace(": 12", ": 384").replace(": 11", ": 501")
    )
    return directory


@pytest.fixture
def hub(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(files_below(local)) as hub:
        use(monkeypatch, hub, tmp_path / "cache")
        yield hub


def snapshot(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "models--someone--phi-small" / "snapshots" / COMMIT


def test_only_what_is_needed_is_downloaded(hub: Hub, local: Path, tmp_path: Path) -> None:
    spec = converters.load_spec(SPEC)
    converters.convert(spec, local, tmp_path / "from-local")
    converters.convert(spec, REPO, tmp_path / "from-hub")
    assert files_below(tmp_path / "from-hub") == files_below(tmp_path / "from-local")
    # As `hf` lays it out: links into the cache's blobs.
    assert sorted(path.name for path in snapshot(tmp_path).iterdir()) == [
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    assert all(path.is_symlink() for path in snapshot(tmp_path).iterdir())
    assert hub.fetched(".bin") == hub.fetched(".onnx") == hub.fetched("README.md") == 0


def test_what_was_not_downloaded_is_said_to_be_left(hub: Hub) -> None:
    del hub
    from converters.convert import prepare_to_run

    with prepare_to_run(converters.load_spec(SPEC), REPO, converters.Options()) as prepared:
        assert "README.md" in prepared.side_files.left
        assert "onnx/" in prepared.side_files.left


def test_it_is_downloaded_once(hub: Hub, tmp_path: Path) -> None:
    spec = converters.load_spec(SPEC)
    converters.convert(spec, REPO, tmp_path / "first")
    fetched = hub.fetched(".safetensors")
    converters.convert(spec, REPO, tmp_path / "second")
    assert hub.fetched(".safetensors") - fetched == 2 * (256 << 10), "headers alone"


def test_what_does_not_fit_is_not_downloaded(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        converters.convert(converters.load_spec("gpt2_to_nanogpt"), REPO, tmp_path / "out")
    assert hub.fetched(".safetensors") == 2 * (256 << 10)
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_was_filled_before_serves_offline(
    hub: Hub, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants, snapshot_download

    snapshot_download(REPO, allow_patterns=["*.safetensors", "*.json"])
    asked = len(hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with converters.open_checkpoint(REPO) as remote, converters.open_checkpoint(local) as here:
        assert dict(remote.tensors) == dict(here.tensors)
        assert remote.path == snapshot(tmp_path)
    converters.convert(converters.load_spec(SPEC), REPO, tmp_path / "offline")
    converters.convert(converters.load_spec(SPEC), local, tmp_path / "from-local")
    assert files_below(tmp_path / "offline") == files_below(tmp_path / "from-local")
    assert len(hub.asked) == asked


def test_a_cache_that_a_conversion_filled_serves_without_the_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    spec = converters.load_spec(SPEC)
    converters.convert(spec, REPO, tmp_path / "first")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    converters.convert(spec, REPO, tmp_path / "second")
    assert files_below(tmp_path / "second") == files_below(tmp_path / "first")
    del hub


def test_offline_without_a_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="nor in the Hub's cache"):
        converters.open_checkpoint(REPO)
    assert not hub.asked


def test_the_output_may_not_lie_in_the_download(hub: Hub, tmp_path: Path) -> None:
    del hub
    spec = converters.load_spec(SPEC)
    converters.convert(spec, REPO, tmp_path / "first")
    with pytest.raises(OutputError, match="lies inside the input"):
        converters.convert(spec, REPO, snapshot(tmp_path) / "out")


def test_a_branch_that_moves_before_the_download(hub: Hub, tmp_path: Path) -> None:
    from converters.convert import prepare_to_run

    planned = converters.storage.locations.locate(REPO)
    hub.commit = "f" * 40
    with prepare_to_run(converters.load_spec(SPEC), planned, converters.Options()) as prepared:
        assert prepared.reader.path == snapshot(tmp_path), "what was planned is what is converted"


def test_verification_downloads_both(hub: Hub, tmp_path: Path) -> None:
    spec = converters.load_spec(SPEC)
    converters.convert(spec, REPO, tmp_path / "tenny")
    assert converters.verify(spec, REPO, tmp_path / "tenny", level="roundtrip").exit_code == 0
    del hub


def test_a_conversion_loads_lazily_by_ranges(hub: Hub, local: Path) -> None:
    pytest.importorskip("torch")
    spec = converters.load_spec(SPEC)
    with converters.open_converted(spec, REPO) as remote, converters.open_converted(spec, local) as here:
        name = next(iter(here))
        assert (remote[name] == here[name]).all()
    assert hub.fetched(".safetensors") < 3_000_000


PARTS = """
weightmap: 1
source:
  layout: mine/parts
  files:
    first: first/model.safetensors
    second: second/model.safetensors
target:
  layout: mine/turned
  files:
    first: one/weights.safetensors
    second: two/weights.safetensors
rules:
  - {from: "first:a", to: "first:a", layout: "i o -> o i"}
  - {from: "second:{n}", to: "second:{n}"}
"""


def test_components_come_from_their_folders_and_go_to_theirs(hub: Hub, local: Path, tmp_path: Path) -> None:
    import fsspec

    source = tmp_path / "parts"
    for folder, shapes in (("first", {"a": [5, 7]}), ("second", {"x": [3], "y": [2, 9]})):
        write_checkpoint(source / folder, shapes, config={"of": folder}, shards=len(shapes))
    (source / "second" / "pytorch_model.bin").write_bytes(b"another format")
    hub.files = files_below(source)
    (tmp_path / "parts.yaml").write_text(PARTS)
    spec = converters.load_spec(tmp_path / "parts.yaml")
    converters.convert(spec, source, tmp_path / "from-local", max_shard_size=20)
    converters.convert(spec, REPO, tmp_path / "from-hub", max_shard_size=20)
    assert files_below(tmp_path / "from-hub") == files_below(tmp_path / "from-local")
    assert {path.relative_to(snapshot(tmp_path)).as_posix() for path in snapshot(tmp_path).rglob("*.*")} == {
        name for name in hub.files if not name.endswith(".bin")
    }
    memory = fsspec.filesystem("memory")
    converters.convert(spec, REPO, "memory://bucket/out", max_shard_size=20)
    stored = {name.removeprefix("/bucket/out/"): memory.cat_file(name) for name in memory.find("/bucket/out")}
    memory.rm("/bucket", recursive=True)
    assert stored == files_below(tmp_path / "from-local")
    assert sum(name.endswith(".index.json") for name in stored) == 1
    del local


def test_a_single_file_of_a_repository(hub: Hub, tmp_path: Path) -> None:
    hub.files = {name: data for name, data in hub.files.items() if "0000" not in name and "index" not in name}
    whole = write_checkpoint(tmp_path / "whole", phi_shapes(hidden=256, inner=384, vocab=501))
    hub.files["model.safetensors"] = (whole / "model.safetensors").read_bytes()
    spec = converters.load_spec(SPEC)
    converters.convert(spec, f"hf://{REPO}/model.safetensors", tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists()
    assert (snapshot(tmp_path) / "model.safetensors").exists()


def test_access_that_is_asked_for_at_the_file(hub: Hub) -> None:
    pinned = converters.storage.locations.locate(REPO)
    hub.status, hub.code = 403, "GatedRepo"
    with pytest.raises(CheckpointError, match="is gated"):
        converters.open_checkpoint(pinned)
