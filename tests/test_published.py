"""A published directory against its manifest: every kind of damage is found, and what is whole is not accused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash

import converters
from converters.errors import CheckpointError
from converters.manifest import MANIFEST
from converters.published import Checked, Published
from tests.commands.support import SPEC, write_checkpoint

INDEX = "model.safetensors.index.json"
TENSOR = "decoder.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    source = write_checkpoint(root / "phi")
    (source / "tokenizer.json").write_text("{}")
    converters.convert(converters.load_spec(SPEC), source, root / "out", max_shard_size=1000)
    return root / "out"


@pytest.fixture
def out(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "out"))


def manifest_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / MANIFEST).read_text())
    return found


def change_manifest(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = manifest_of(directory)
    change(manifest)
    (directory / MANIFEST).write_text(json.dumps(manifest))


def accept(directory: Path, name: str) -> None:
    """Make the manifest say that a file is right as it is now."""
    data = (directory / name).read_bytes()
    entry = {"file": name, "nbytes": len(data), "digest": f"xxh3:{xxhash.xxh3_128_hexdigest(data)}"}

    def change(manifest: dict[str, Any]) -> None:
        manifest["outputs"] = [each for each in manifest["outputs"] if each["file"] != name] + [entry]

    change_manifest(directory, change)


def check(directory: Path) -> Checked:
    return Published.open(directory).check()


def only_problem(directory: Path) -> str:
    checked = check(directory)
    assert len(checked.problems) == 1, checked.problems
    return str(checked.problems[0])


def place_of(directory: Path, tensor: str) -> tuple[Path, int, int]:
    entry = manifest_of(directory)["tensors"][tensor]
    return directory / entry["file"], *entry["bytes"]


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


def test_what_was_published_passes(out: Path) -> None:
    passed: list[int] = []
    published = Published.open(out)
    checked = published.check(threads=3, progress=passed.append)
    assert (checked.problems, checked.notes) == ((), ())
    files = {path.name for path in out.iterdir()} - {MANIFEST}
    assert checked.files == len(files)
    assert checked.tensors == 30
    assert checked.nbytes == published.nbytes == sum(passed) == sum((out / name).stat().st_size for name in files)


@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_flipped_byte_of_a_tensor_is_found_and_named(out: Path, which: int) -> None:
    path, start, end = place_of(out, TENSOR)
    flip(path, (start, (start + end) // 2, end - 1)[which])
    problem = only_problem(out)
    assert path.name in problem
    assert f"its bytes differ in {TENSOR}" in problem


def test_several_damaged_tensors_are_counted(out: Path) -> None:
    manifest = manifest_of(out)
    path, _, _ = place_of(out, "transformer_encoder.layers.0.norm1.bias")
    inside = [entry["bytes"] for entry in manifest["tensors"].values() if entry["file"] == path.name]
    assert len(inside) > 3
    for start, _ in inside:
        flip(path, start)
    assert f"and {len(inside) - 3} more" in only_problem(out)


@pytest.mark.parametrize("position", [0, 9, 50])
def test_a_flipped_byte_of_a_header(out: Path, position: int) -> None:
    path, _, _ = place_of(out, TENSOR)
    flip(path, position)
    assert "differ outside of its tensors" in only_problem(out)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", INDEX, "model-00003-of-00008.safetensors"])
@pytest.mark.parametrize("kind", ["missing", "short", "long", "empty", "byte", "directory", "pipe", "link"])
def test_every_file_counts(out: Path, tmp_path: Path, name: str, kind: str) -> None:
    path = out / name
    data = path.read_bytes()
    path.unlink()
    if kind in {"short", "long", "empty", "byte"}:
        changed = {"short": data[:-1], "long": data + b" ", "empty": b"", "byte": data[:-1] + b"?"}[kind]
        path.write_bytes(changed)
    elif kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":  # the very bytes, and yet from elsewhere
        (tmp_path / "elsewhere").write_bytes(data)
        path.symlink_to(tmp_path / "elsewhere")
    problem = only_problem(out)
    assert name in problem


def test_a_link_within_the_directory_may_stand_for_a_file(out: Path) -> None:
    (out / "tokenizer.json").rename(out / "real.json")
    (out / "tokenizer.json").symlink_to("real.json")
    checked = check(out)
    assert checked.problems == ()
    assert [str(note) for note in checked.notes] == [f"{out / 'real.json'}: the manifest doesn't know this file"]


def test_all_problems_at_once(out: Path) -> None:
    (out / "config.json").unlink()
    (out / "tokenizer.json").write_text("[]")
    (out / "more.bin").write_text("x")
    assert len(check(out).problems) == 3


@pytest.mark.parametrize(
    "name",
    [
        "extra.safetensors",
        "pytorch_model.bin",
        "sub/dir/x.npz",
        "old.pt",
        "pytorch_model.bin.index.json",
        "un\x1b[31m.pth",
    ],
)
def test_weights_and_indexes_that_the_manifest_does_not_know(out: Path, name: str) -> None:
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("x")
    problem = only_problem(out)
    assert "the manifest doesn't know it" in problem
    assert "\x1b" not in problem


def test_other_files_are_worth_a_note(out: Path) -> None:
    (out / "README.md").write_text("x")
    (out / "sub").mkdir()
    (out / "sub" / "notes.txt").write_text("x")
    (out / ".cache").mkdir()
    (out / ".cache" / "x").write_text("")
    (out / "loop").symlink_to(out)
    (out / "dangling").symlink_to("nowhere")
    checked = check(out)
    assert checked.problems == ()
    names = sorted(str(note).partition(": ")[0] for note in checked.notes)
    assert names == sorted(str(out / name) for name in ["README.md", "sub/notes.txt", "loop", "dangling"])


def test_an_index_that_names_what_no_file_holds(out: Path) -> None:
    index = json.loads((out / INDEX).read_text())
    index["weight_map"]["made.up"] = "model-00001-of-00008.safetensors"
    (out / INDEX).write_text(json.dumps(index))
    assert "bytes" in only_problem(out)
    accept(out, INDEX)
    assert "made.up" in only_problem(out)


def test_an_index_that_lacks_what_a_file_holds(out: Path) -> None:
    index = json.loads((out / INDEX).read_text())
    del index["weight_map"][TENSOR]
    (out / INDEX).write_text(json.dumps(index))
    accept(out, INDEX)
    checked = check(out)
    assert checked.problems
    assert any(TENSOR in str(problem) for problem in checked.problems)


def test_an_index_that_lacks_a_whole_file(out: Path) -> None:
    path, _, _ = place_of(out, TENSOR)
    index = json.loads((out / INDEX).read_text())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != path.name}
    (out / INDEX).write_text(json.dumps(index))
    accept(out, INDEX)
    assert f"the shard {path.name} is not mentioned in {INDEX}" in only_problem(out)


def test_an_index_that_names_another_file(out: Path) -> None:
    index = json.loads((out / INDEX).read_text())
    index["weight_map"][TENSOR] = "model-00001-of-00008.safetensors"
    (out / INDEX).write_text(json.dumps(index))
    accept(out, INDEX)
    assert any(TENSOR in str(problem) for problem in check(out).problems)


def test_an_index_that_is_no_index(out: Path) -> None:
    (out / INDEX).write_text("[]")
    accept(out, INDEX)
    assert INDEX in only_problem(out)


def test_a_manifest_that_lacks_a_tensor_of_the_index(out: Path) -> None:
    change_manifest(out, lambda manifest: manifest["tensors"].pop(TENSOR))
    problem = only_problem(out)
    assert f"{TENSOR} is in " in problem
    assert "by the index, nowhere by the manifest" in problem


def test_a_manifest_with_a_tensor_that_the_index_lacks(out: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        entry = dict(manifest["tensors"][TENSOR])
        entry |= {"bytes": [entry["bytes"][1]] * 2, "digest": f"xxh3:{xxhash.xxh3_128_hexdigest(b'')}"}
        manifest["tensors"]["made.up"] = entry

    change_manifest(out, change)
    assert "made.up is nowhere by the index" in only_problem(out)


def test_a_manifest_whose_tensor_has_another_digest_than_its_file_says(out: Path) -> None:
    change_manifest(out, lambda manifest: manifest["tensors"][TENSOR].update(digest=f"xxh3:{'0' * 32}"))
    problem = only_problem(out)
    assert TENSOR in problem
    assert "the manifest is damaged" in problem


def refused(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Published.open(directory)
    assert caught.value.exit_code == 7
    return str(caught.value)


def test_without_a_manifest(out: Path, tmp_path: Path) -> None:
    (out / MANIFEST).unlink()
    assert f"there is no {MANIFEST} here" in refused(out)
    for place in (tmp_path / "nothing", out / "config.json", tmp_path / ("x" * 300)):
        refused(place)


@pytest.mark.parametrize("kind", ["directory", "pipe", "link", "loop"])
def test_a_manifest_that_is_no_file(out: Path, tmp_path: Path, kind: str) -> None:
    (out / MANIFEST).rename(tmp_path / "manifest")
    if kind == "directory":
        (out / MANIFEST).mkdir()
    elif kind == "pipe":
        os.mkfifo(out / MANIFEST)
    else:
        (out / MANIFEST).symlink_to(tmp_path / "manifest" if kind == "link" else MANIFEST)
    refused(out)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "{}", '{"weightmap_manifest": 2}', '{"weightmap_manifest": "1"}'),
        *('{"weightmap_manifest": 1}', '{"weightmap_manifest": 1, "weightmap_manifest": 1}'),
        *('{"a": ' + "[" * 100_000, "\ud800", '{"a": "\\ud800"}'),
        '{"weightmap_manifest": 1, "outputs": [], "tensors": {}}',
        '{"weightmap_manifest": 1, "outputs": {}, "tensors": []}',
    ],
)
def test_manifests_that_are_none(out: Path, text: str) -> None:
    (out / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(out)


def test_every_cut_of_a_manifest_is_refused(out: Path) -> None:
    content = (out / MANIFEST).read_bytes()
    for length in range(0, len(content) - 2, 97):
        (out / MANIFEST).write_bytes(content[:length])
        refused(out)


@pytest.mark.parametrize(
    "name",
    [
        "../out/config.json",
        "/etc/passwd",
        "..",
        ".",
        "",
        "a/../config.json",
        "./config.json",
        "a\0b",
        "config.json/",
        "//x",
        MANIFEST,
    ],
)
def test_names_that_lead_elsewhere(out: Path, name: str) -> None:
    change_manifest(out, lambda manifest: manifest["outputs"][0].update(file=name))
    assert "the manifest is damaged" in refused(out)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("file", value) for value in (None, 5, [], {}, True)),
        *(("nbytes", value) for value in (None, "5", 5.0, True, [])),
        *(("digest", value) for value in (None, 5, [], "", "md5:00", "none")),
    ],
)
def test_outputs_of_wrong_types(out: Path, key: str, value: Any) -> None:
    change_manifest(out, lambda manifest: manifest["outputs"][0].update({key: value}))
    refused(out)


@pytest.mark.parametrize("nbytes", [-1, 0, 1 << 200])
def test_sizes_that_are_wrong(out: Path, nbytes: int) -> None:
    change_manifest(out, lambda manifest: manifest["outputs"][0].update(nbytes=nbytes))
    assert f"expected {nbytes:,} bytes" in only_problem(out)


def test_a_digest_is_shown_without_its_control_characters(out: Path) -> None:
    change_manifest(out, lambda manifest: manifest["outputs"][0].update(digest="xxh3:\x1b[31m\n"))
    assert "\x1b" not in only_problem(out)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("bytes", value)
            for value in (None, 5, [], [1], [1, 2, 3], ["1", "2"], [-1, 2], [3, 2], [0, 1 << 80], [0.0, 1])
        ),
        *(("file", value) for value in (None, 5, [], "gone.safetensors", "../x")),
        *(("digest", value) for value in (None, 5, [])),
        ("bytes", [0, 400]),
    ],
)
def test_tensors_of_wrong_types_or_places(out: Path, key: str, value: Any) -> None:
    change_manifest(out, lambda manifest: manifest["tensors"][TENSOR].update({key: value}))
    assert "the manifest is damaged" in refused(out)


@pytest.mark.parametrize("value", [None, 5, "x", [], ["x"], [[]], {"a": 5}])
@pytest.mark.parametrize("key", ["outputs", "tensors"])
def test_sections_of_wrong_types(out: Path, key: str, value: Any) -> None:
    if key == "tensors" and value == []:
        value = [1]
    change_manifest(out, lambda manifest: manifest.update({key: value}))
    refused(out)


def test_a_file_twice(out: Path) -> None:
    change_manifest(out, lambda manifest: manifest["outputs"].append(manifest["outputs"][0]))
    assert "twice" in refused(out)


def test_a_manifest_without_digests(original: Path, tmp_path: Path) -> None:
    source = original.parent / "phi"
    converters.convert(converters.load_spec(SPEC), source, tmp_path / "none", digest=None)
    assert "holds no digests" in refused(tmp_path / "none")


def test_in_a_snapshot_of_the_hub_cache(out: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--a--b"
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, path in enumerate(sorted(out.iterdir())):
        path.rename(cache / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert check(snapshot).problems == ()
    flip(cache / "blobs" / "0", 0)
    assert len(check(snapshot).problems) == 1
