"""The commands on checkpoints that are not here: repositories of the Hub, and URLs of object stores."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from converters.storage import object_store
from tests.commands.support import (
    CONFIG,
    SPEC,
    phi_shapes,
    read_tensors,
    run_weightmap,
    weightmap,
    write_checkpoint,
)
from tests.hub_server import REPO, TOKEN, Hub, files_below, serving, use

SIZES = {"hidden": 256, "inner": 384, "vocab": 501}


@pytest.fixture
def local(tmp_path: Path) -> Path:
    config = {**CONFIG, "hidden_size": 256, "intermediate_size": 384, "vocab_size": 501}
    directory = write_checkpoint(tmp_path / "local", phi_shapes(**SIZES), config=config, shards=2)
    (directory / "tokenizer.json").write_text("{}")
    return directory


@pytest.fixture
def hub(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    with serving(files_below(local)) as hub:
        use(monkeypatch, hub, tmp_path / "cache")
        yield hub


@pytest.fixture
def memory() -> Iterator[Any]:
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    object_store.forget()


@pytest.mark.parametrize(
    "words",
    [
        ["plan", REPO, "--spec", SPEC],
        ["plan", REPO, "--to", "tenny"],
        ["inspect", REPO],
        ["detect", REPO],
    ],
)
def test_commands_that_look_fetch_headers_alone(hub: Hub, local: Path, words: list[str]) -> None:
    here = weightmap(*(str(local) if word == REPO else word for word in words), "--json")
    there = weightmap(*words, "--json")
    assert (there.exit_code, here.exit_code) == (0, 0), there.output
    found, expected = json.loads(there.stdout), json.loads(here.stdout)
    for data in (found, expected):
        data.pop("memory", None)
        data.pop("path", None)
        data.pop("source", None)
        for spec in data.get("specs", ()):
            spec.pop("command")
    assert found == expected
    assert hub.fetched(".safetensors") == 2 * (256 << 10)
    assert hub.fetched("tokenizer.json") == 0


def test_convert_and_verify(hub: Hub, local: Path, tmp_path: Path) -> None:
    done = weightmap("convert", "--spec", SPEC, REPO, tmp_path / "out", "--revision", "v2")
    assert done.exit_code == 0, done.output
    assert weightmap("convert", "--spec", SPEC, local, tmp_path / "expected").exit_code == 0
    assert files_below(tmp_path / "out") == files_below(tmp_path / "expected")
    checked = weightmap("verify", "--spec", SPEC, REPO, tmp_path / "out", "--level", "roundtrip", "--revision", "v2")
    assert checked.exit_code == 0, checked.output
    assert f"GET /api/models/{REPO}/revision/v2" in hub.asked


def test_what_is_here_goes_first(hub: Hub, local: Path, tmp_path: Path) -> None:
    (tmp_path / REPO).parent.mkdir()
    local.rename(tmp_path / REPO)
    assert weightmap("inspect", REPO).exit_code == 0
    assert not hub.asked
    refused = weightmap("inspect", REPO, "--revision", "v2")
    assert refused.exit_code == 7
    assert "only a repository of the Hub has revisions" in refused.stderr


@pytest.mark.parametrize("command", ["inspect", "plan", "detect", "convert", "verify"])
def test_a_name_that_is_neither(hub: Hub, tmp_path: Path, command: str) -> None:
    words = {"plan": ["--spec", SPEC], "convert": ["out", "--spec", SPEC], "verify": ["out", "--spec", SPEC]}
    done = weightmap(command, "nobody/nothing", *words.get(command, []))
    assert done.exit_code == 7
    said = " ".join(done.stderr.split())
    assert "nobody/nothing: no such file or directory is here, and no repository nobody/nothing on the Hub" in said
    assert not (tmp_path / "out").exists()
    assert hub.asked == ["GET /api/models/nobody/nothing"]


@pytest.mark.parametrize(
    ("status", "code"), [(403, "GatedRepo"), (401, "RepoNotFound"), (500, ""), (404, "RevisionNotFound")]
)
def test_refusals_are_errors_of_the_checkpoint(hub: Hub, status: int, code: str) -> None:
    hub.status, hub.code = status, code
    done = weightmap("inspect", REPO, "--debug")
    assert done.exit_code == 7
    assert f"Bearer {TOKEN}" in hub.tokens
    assert TOKEN not in done.output


def test_without_the_library(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    done = weightmap("inspect", REPO)
    assert done.exit_code == 7
    assert "pip install 'weightmap[hub]'" in done.stderr
    assert not hub.asked


def test_settings_from_the_environment(hub: Hub, tmp_path: Path) -> None:
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    done = run_weightmap("convert", "--spec", SPEC, REPO, tmp_path / "out", "--quiet", **settings)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    asked = len(hub.asked)
    offline = run_weightmap("convert", "--spec", SPEC, REPO, tmp_path / "again", **settings, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert files_below(tmp_path / "again") == files_below(tmp_path / "out")
    nowhere = {**settings, "HF_HOME": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "1"}
    refused = run_weightmap("inspect", REPO, "--debug", **nowhere)
    assert refused.returncode == 7
    assert "nor in the Hub's cache" in " ".join(refused.stderr.split())
    assert len(hub.asked) == asked
    assert TOKEN not in done.stderr + offline.stderr + refused.stderr


def test_from_a_store_into_a_store(memory: Any, local: Path, tmp_path: Path) -> None:
    from converters.storage.locations import locate

    for name, data in files_below(local).items():
        memory.pipe_file(f"/bucket/phi/{name}", data)
    source, output = "memory://bucket/phi", "memory://bucket/tenny"
    done = weightmap("convert", "--spec", SPEC, source, output, "--max-shard-size", "1MB")
    assert done.exit_code == 0, done.output
    assert f"Converted {source} to {output}" in done.stdout
    assert weightmap("convert", "--spec", SPEC, local, tmp_path / "out").exit_code == 0
    assert read_tensors(locate(output)) == read_tensors(tmp_path / "out")
    again = weightmap("convert", "--spec", SPEC, source, output)
    assert again.exit_code == 8
    assert weightmap("convert", "--spec", SPEC, source, output, "--overwrite").exit_code == 0
    checked = weightmap("verify", "--spec", SPEC, source, output)
    assert checked.exit_code == 0, checked.output
    assert "models are run from local files" in " ".join(checked.stdout.split())
    for command in (["plan", "--spec", SPEC], ["inspect"], ["detect"]):
        assert weightmap(*command, source).exit_code == 0
