"""What a text means: something here, a repository of the Hub, or a URL; and paths that are no local ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from converters.errors import CheckpointError, OutputError
from converters.storage.locations import locate, locate_output, parse_location
from converters.storage.remote_path import RemotePath


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("someone/phi-2", "hf://someone/phi-2"),
        ("hf://someone/phi-2@v1/sub", "hf://someone/phi-2@v1/sub"),
        ("S3://bucket/a/b", "s3://bucket/a/b"),
        ("memory://bucket/a//b/", "memory://bucket/a/b"),
    ],
)
def test_places_that_are_not_here(text: str, found: str) -> None:
    path = parse_location(text)
    assert isinstance(path, RemotePath)
    assert str(path) == found


@pytest.mark.parametrize(
    "text",
    [
        "phi-2",
        "phi-2/",
        "./a/b",
        "../a/b",
        "/a/b",
        "a/b/c",
        "a/model.safetensors",
        "a/config.json",
        "a/b c",
        "-a/b",
        "",
    ],
)
def test_places_that_can_only_be_here(text: str) -> None:
    path = parse_location(text)
    assert not isinstance(path, RemotePath)
    assert path == Path(text)


def test_what_is_here_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "phi-2").mkdir(parents=True)
    assert not isinstance(parse_location("someone/phi-2"), RemotePath)
    (tmp_path / "someone" / "gone").symlink_to("nowhere")
    assert not isinstance(parse_location("someone/gone"), RemotePath), "a dangling link is here, too"


def test_a_path_is_local_whatever_it_looks_like() -> None:
    path = Path("someone/phi-2")
    assert locate(path) is path


def test_a_file_url_is_a_local_path(tmp_path: Path) -> None:
    path = parse_location(f"file://{tmp_path}/a%20b")
    assert type(path) is type(tmp_path)
    assert path == tmp_path / "a b"


@pytest.mark.parametrize("text", ["https://huggingface.co/someone/phi-2", "http://x/y"])
def test_a_web_address_says_what_to_give(text: str) -> None:
    with pytest.raises(CheckpointError, match="give OWNER/NAME"):
        parse_location(text)
    with pytest.raises(OutputError, match="web address"):
        locate_output(text)


def test_a_repository_needs_its_owner() -> None:
    with pytest.raises(CheckpointError, match="is called OWNER/NAME"):
        parse_location("hf://gpt2")


def test_only_repositories_have_revisions(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="this is a local path"):
        locate(tmp_path, "main")
    with pytest.raises(CheckpointError, match="this is a URL"):
        locate("memory://a/b", "main")


def test_outputs() -> None:
    assert str(locate_output("s3://bucket/out")) == "s3://bucket/out"
    assert not isinstance(locate_output("someone/phi-2"), RemotePath), "an output is never a repository"
    with pytest.raises(OutputError, match="hf upload"):
        locate_output("hf://someone/phi-2")


def test_paths_keep_their_kind() -> None:
    root = RemotePath("s3://bucket/model")
    file = root / "unet" / "config.json"
    assert isinstance(file, RemotePath)
    assert (str(file), file.name, file.suffix) == ("s3://bucket/model/unet/config.json", "config.json", ".json")
    assert file.parent.parent == root
    assert isinstance(file.parent, RemotePath)
    assert root in file.parents
    assert file.relative_to(root).as_posix() == "unet/config.json"
    assert str((root / "../../other/x").resolve()) == "s3://other/x"
    assert len({root, RemotePath("s3://bucket/model")}) == 1


def test_what_needs_a_local_file_says_so() -> None:
    path = RemotePath("s3://bucket/model")
    with pytest.raises(CheckpointError, match="s3://bucket/model: this can be done with local files only"):
        os.stat(path)  # noqa: PTH116 - what any library may do with a path
    with pytest.raises(CheckpointError, match="local files only"):
        path.open("w")
