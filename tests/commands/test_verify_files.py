"""`verify-files` from the outside: exit codes, what it says, and directories that are not here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from converters.manifest import MANIFEST
from converters.storage import object_store
from tests.commands.support import SPEC, run_weightmap, weightmap, write_checkpoint
from tests.hub_server import REPO, files_below, serving, use


@pytest.fixture
def out(tmp_path: Path) -> Path:
    source = write_checkpoint(tmp_path / "phi")
    done = weightmap("convert", "--spec", SPEC, source, tmp_path / "out", "--max-shard-size", "1KB", "--quiet")
    assert done.exit_code == 0, done.output
    return tmp_path / "out"


def flip_last(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_what_was_published(out: Path) -> None:
    result = weightmap("verify-files", out)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{out} is what was published: 10 files, 30 tensors, 17")
    assert result.stderr == ""


def test_json(out: Path) -> None:
    (out / "notes.txt").write_text("x")
    result = weightmap("verify-files", out, "--json", "--threads", "1")
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert data["directory"] == str(out)
    assert (data["files"], data["tensors"]) == (10, 30)
    assert data["nbytes"] == sum(
        path.stat().st_size for path in out.iterdir() if path.name not in {MANIFEST, "notes.txt"}
    )
    assert data["notes"] == [f"{out / 'notes.txt'}: the manifest doesn't know this file"]


def test_a_note_is_a_warning_and_no_failure(out: Path) -> None:
    (out / "notes.txt").write_text("x")
    result = weightmap("verify-files", out)
    assert result.exit_code == 0
    assert "notes.txt: the manifest doesn't know this file" in result.stderr


def test_damage_ends_with_4_and_names_the_tensor(out: Path) -> None:
    flip_last(out / "model-00003-of-00008.safetensors")
    (out / "config.json").unlink()
    result = weightmap("verify-files", out)
    assert result.exit_code == 4
    assert result.stdout == ""
    text = " ".join(result.stderr.split())
    assert "2 problems" in text
    assert "model-00003-of-00008.safetensors: expected xxh3:" in text
    assert "its bytes differ in transformer_encoder." in text
    assert "Traceback" not in text


def test_damage_as_json(out: Path) -> None:
    flip_last(out / "config.json")
    result = weightmap("verify-files", out, "--json")
    assert result.exit_code == 4
    error = json.loads(result.stdout)["error"]
    assert error["exit_code"] == 4
    assert [problem["where"] for problem in error["problems"]] == [str(out / "config.json")]


@pytest.mark.parametrize(
    "content", [None, "{", '{"weightmap_manifest": 1, "outputs": [{"file": "../x"}], "tensors": {}}']
)
def test_without_a_good_manifest_it_ends_with_7(out: Path, content: str | None) -> None:
    (out / MANIFEST).unlink()
    if content is not None:
        (out / MANIFEST).write_text(content)
    result = weightmap("verify-files", out)
    assert result.exit_code == 7
    assert MANIFEST in result.stderr


@pytest.mark.parametrize("words", [["--threads", "0"], ["--nothing"], []])
def test_usage(out: Path, words: list[str]) -> None:
    assert weightmap("verify-files", *([out] if words else []), *words).exit_code == 2


def test_it_needs_neither_torch_nor_numpy(out: Path, tmp_path: Path) -> None:
    for name in ("torch", "numpy"):
        (tmp_path / "none" / name).mkdir(parents=True)
        (tmp_path / "none" / name / "__init__.py").write_text("raise ImportError('not here')")
    from tests.commands.support import REPOSITORY

    result = run_weightmap("verify-files", out, PYTHONPATH=f"{tmp_path / 'none'}:{REPOSITORY}")
    assert result.returncode == 0, result.stderr


@pytest.fixture
def memory() -> Iterator[Any]:
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    object_store.forget()


def test_what_was_uploaded_to_a_store(memory: Any, out: Path) -> None:
    source, url = out.parent / "phi", "memory://bucket/out"
    done = weightmap("convert", "--spec", SPEC, source, url, "--max-shard-size", "1KB", "--quiet")
    assert done.exit_code == 0, done.output
    result = weightmap("verify-files", url)
    assert result.exit_code == 0, result.output
    assert "10 files, 30 tensors" in result.stdout
    assert json.loads(memory.cat_file(f"/bucket/out/{MANIFEST}")) | {"created": ""} == json.loads(
        (out / MANIFEST).read_text()
    ) | {"created": ""}
    name = "model-00003-of-00008.safetensors"
    data = bytearray(memory.cat_file(f"/bucket/out/{name}"))
    data[-1] ^= 1
    memory.pipe_file(f"/bucket/out/{name}", bytes(data))
    memory.pipe_file("/bucket/out/extra.safetensors", b"x")
    object_store.forget()
    result = weightmap("verify-files", url)
    assert result.exit_code == 4, result.output
    assert "2 problems" in result.stderr
    memory.rm_file(f"/bucket/out/{MANIFEST}")
    object_store.forget()
    assert weightmap("verify-files", url).exit_code == 7


def test_in_a_repository_of_the_hub(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with serving(files_below(out)) as hub:
        use(monkeypatch, hub, tmp_path / "cache")
        result = weightmap("verify-files", REPO)
        assert result.exit_code == 0, result.output
        hub.files["model-00003-of-00008.safetensors"] = b"x" + hub.files["model-00003-of-00008.safetensors"][1:]
        result = weightmap("verify-files", REPO, "--revision", "v2")
        assert result.exit_code == 4, result.output
