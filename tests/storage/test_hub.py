"""Repositories of the Hub, on a server of our own: what is fetched, and what a server may get wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import converters
from converters.errors import CheckpointError
from converters.storage.hub import download, pin
from converters.storage.locations import locate
from converters.storage.remote_path import RemotePath
from tests.commands.support import phi_shapes, read_tensors, write_checkpoint
from tests.hub_server import COMMIT, REPO, Hub, files_below, serving, use

LARGE = {"hidden": 256, "inner": 384, "vocab": 501}


@pytest.fixture
def local(tmp_path: Path) -> Path:
    directory = write_checkpoint(tmp_path / "local", phi_shapes(**LARGE), shards=2)
    (directory / "tokenizer.json").write_text("{}")
    (directory / "pytorch_model.bin").write_bytes(b"another format " * 1000)
    return directory


@pytest.fixture
def hub(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(files_below(local)) as hub:
        use(monkeypatch, hub, tmp_path / "cache")
        yield hub


def test_headers_alone_are_fetched(hub: Hub, local: Path) -> None:
    with converters.open_checkpoint(REPO) as remote, converters.open_checkpoint(local) as here:
        assert dict(remote.tensors) == dict(here.tensors)
        assert dict(remote.file_of) == dict(here.file_of)
    whole = sum(len(data) for name, data in hub.files.items() if name.endswith(".safetensors"))
    assert whole > 4_000_000
    assert hub.fetched(".safetensors") == 2 * (256 << 10), "one block of each shard"
    assert sum(f"{COMMIT}/model-00001" in asked for asked in hub.asked) == 1
    assert hub.fetched(".bin") == 0


def test_tensors_come_by_ranges(hub: Hub, local: Path) -> None:
    assert read_tensors(locate(REPO)) == read_tensors(local)
    assert hub.fetched(".safetensors") <= 1.1 * sum(
        len(data) for name, data in hub.files.items() if name.endswith(".safetensors")
    )


def test_a_revision_and_a_path_in_the_repository(hub: Hub) -> None:
    hub.files["sub/model.safetensors"] = hub.files["model-00001-of-00002.safetensors"]
    pinned = locate(f"hf://{REPO}@v2/sub")
    assert str(pinned) == f"hf://{REPO}@{COMMIT}/sub"
    assert pinned == locate(f"hf://{REPO}/sub", "v2")
    assert f"GET /api/models/{REPO}/revision/v2" in hub.asked
    with converters.open_checkpoint(pinned) as reader:
        assert set(reader.file_of.values()) == {"model.safetensors"}


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (401, "RepoNotFound", "no such file or directory is here, and no repository someone/phi-small on the Hub"),
        (404, "RepoNotFound", "no such file or directory is here, and no repository someone/phi-small on the Hub"),
        (403, "GatedRepo", "is gated"),
        (404, "RevisionNotFound", "has no such revision"),
        (403, "", "status 403"),
        (500, "", "status 500"),
    ],
)
def test_what_the_hub_refuses(hub: Hub, status: int, code: str, said: str) -> None:
    hub.status, hub.code = status, code
    with pytest.raises(CheckpointError, match=said):
        converters.open_checkpoint(REPO)


def test_no_hub_at_all(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="the Hub can't be reached"):
        converters.open_checkpoint(REPO)
    assert not hub.asked


def test_a_server_that_knows_no_ranges(hub: Hub) -> None:
    hub.ignore_range = True
    with pytest.raises(CheckpointError, match="the server sent the whole file"):
        converters.open_checkpoint(REPO)


def test_a_range_that_is_too_short(hub: Hub) -> None:
    hub.short_by = 3
    with pytest.raises(CheckpointError, match=r"asked for bytes 0 to \d[\d,]* \(.* of them\), and got"):
        converters.open_checkpoint(REPO)


def test_a_file_that_is_replaced_while_it_is_read(hub: Hub) -> None:
    hub.replace_after = 3
    with pytest.raises(CheckpointError, match="its ETag has changed"):
        read_tensors(locate(REPO))


def test_a_file_that_is_replaced_after_it_was_read(hub: Hub) -> None:
    with converters.open_checkpoint(REPO) as reader:
        reader.check_unchanged()
        hub.replace_after = 0
        with pytest.raises(CheckpointError, match="its ETag has changed"):
            reader.check_unchanged()


def test_a_file_of_another_length_than_was_listed(hub: Hub) -> None:
    pinned = locate(REPO)
    hub.files["model-00001-of-00002.safetensors"] += b"more"
    with pytest.raises(CheckpointError, match="and the server sent bytes 0-"):
        converters.open_checkpoint(pinned)


def test_a_name_that_leads_out_of_the_repository(hub: Hub) -> None:
    hub.files["../evil.safetensors"] = b""
    with pytest.raises(CheckpointError, match="a file that no repository can hold"):
        locate(REPO)


def test_the_token_goes_to_the_hub_and_nowhere_else(hub: Hub) -> None:
    from tests.hub_server import TOKEN

    converters.open_checkpoint(REPO).close()
    assert hub.tokens == {f"Bearer {TOKEN}"}
    hub.status = 500
    with pytest.raises(CheckpointError) as caught:
        locate(REPO)
    assert TOKEN not in str(caught.value)


def test_a_download_that_arrives_short(hub: Hub, tmp_path: Path) -> None:
    pinned = pin(RemotePath(f"hf://{REPO}"), None)
    assert isinstance(pinned, RemotePath)
    local = download(pinned, ["config.json", "tokenizer.json"])
    assert sorted(path.name for path in local.iterdir()) == ["config.json", "tokenizer.json"]
    assert local.is_relative_to(tmp_path / "cache")
    (local / "config.json").resolve().write_bytes(b"{")
    with pytest.raises(CheckpointError, match=r"expected a download of \d+ bytes, it has 1 bytes"):
        download(pinned, ["config.json", "tokenizer.json"])
    assert hub.fetched("config.json") == len(hub.files["config.json"])
