"""`clean`: it shows what killed runs left and changes nothing, until it is asked to."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from converters.filesystem import exclusive_lock
from tests.commands.support import CONFIG, SPEC, phi_shapes, stop_weightmap, weightmap, write_checkpoint

TOKEN = "0123456789abcdef"


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A directory of outputs, in which a run was killed, and another while it replaced one."""
    directory = tmp_path / "outputs"
    staging = directory / f".a.staging-{TOKEN}"
    staging.mkdir(parents=True)
    (staging / "model-00001-of-00002.safetensors").write_bytes(b"x" * 5000)
    (staging / ".weightmap-journal").write_text('{}\n{"file": "model-00001-of-00002.safetensors", "nbytes": 5000}\n{"f')
    old = directory / f".b.replaced-{TOKEN}"
    old.mkdir()
    (old / "model.safetensors").write_bytes(b"old")
    return directory


def names(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def words(text: str) -> str:
    return " ".join(text.split())


def test_it_lists_and_changes_nothing(outputs: Path) -> None:
    before = names(outputs)
    result = weightmap("clean", outputs)
    assert result.exit_code == 0
    text = words(result.stdout)
    assert f"{outputs}: 2 leftovers, " in text
    assert f"{outputs}/.a.staging-{TOKEN} is a, not complete: " in text
    assert "keeps 1 shard (5.00 KB) of it --yes removes it" in text
    assert f"{outputs}/.b.replaced-{TOKEN} is the b that a new one was to replace: " in text
    assert "--yes puts it back as b, which is missing: this is the only copy" in text
    assert text.endswith(f"Nothing was changed. To do so: weightmap clean {outputs} --yes")
    assert names(outputs) == before


def test_with_yes_it_does_what_the_list_said(outputs: Path) -> None:
    result = weightmap("clean", outputs, "--yes")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].startswith(f"Removed {outputs}/.a.staging-{TOKEN}, ")
    assert result.stdout.splitlines()[1:] == [f"Put back {outputs}/.b.replaced-{TOKEN} as {outputs}/b"]
    assert names(outputs) == ["b", "b/model.safetensors"]
    again = weightmap("clean", outputs, "--yes")
    assert again.exit_code == 0
    assert again.stdout == f"{outputs}: there was nothing to remove\n"
    assert weightmap("clean", outputs).stdout == f"{outputs}: no run left anything in it, or beside it under its name\n"


def test_json_says_the_same(outputs: Path) -> None:
    for options in ((), ("--yes",)):
        data = json.loads(weightmap("clean", outputs, "--json", *options).stdout)
        assert [(each["path"], each["action"], each["done"]) for each in data["leftovers"]] == [
            (f"{outputs}/.a.staging-{TOKEN}", "remove", bool(options)),
            (f"{outputs}/.b.replaced-{TOKEN}", "restore", bool(options)),
        ]
        assert data["leftovers"][0]["finished"] == {"shards": 1, "nbytes": 5000}
        assert data["leftovers"][0]["output"] == f"{outputs}/a"
        assert data["problems"] == []
    assert json.loads(weightmap("clean", outputs, "--json").stdout)["leftovers"] == []


def test_what_is_in_use_is_shown_with_who_uses_it(outputs: Path) -> None:
    with exclusive_lock(outputs / ".a.lock"):
        listed, done = weightmap("clean", outputs / "a"), weightmap("clean", outputs / "a", "--yes")
    assert "leaves it alone: process " in words(listed.stdout)
    assert listed.stdout.endswith("Nothing was changed, and nothing here can be.\n")
    assert "resume" not in listed.stdout
    assert done.exit_code == 0
    assert all(line.startswith("Left ") and line.endswith(" uses it") for line in done.stdout.splitlines())
    assert (outputs / f".a.staging-{TOKEN}").exists()


def test_what_cant_be_done_is_an_error_after_the_rest(outputs: Path) -> None:
    (outputs / ".a.lock").symlink_to("elsewhere")
    result = weightmap("clean", outputs, "--yes")
    assert result.exit_code == 8
    assert f"Error: {outputs}/.a.lock: can't be removed or put back: Too many levels" in result.stderr
    assert result.stdout == f"Put back {outputs}/.b.replaced-{TOKEN} as {outputs}/b\n"


def test_names_are_made_safe(tmp_path: Path) -> None:
    (tmp_path / f".a\x1b[2J.staging-{TOKEN}").mkdir()
    for options in ((), ("--json",), ("--yes",)):
        result = weightmap("clean", tmp_path, *options)
        assert result.exit_code == 0
        assert "\x1b" not in result.stdout
        assert "[2J" in result.stdout


def test_wrong_places(tmp_path: Path) -> None:
    missing = weightmap("clean", tmp_path / "no" / "where")
    assert missing.exit_code == 8
    assert "Correct the path." in missing.stderr
    remote = weightmap("clean", "s3://bucket/model")
    assert remote.exit_code == 8
    assert "object stores have no locks" in remote.stderr


def test_what_a_kill_left_is_gone_after_it(tmp_path: Path) -> None:
    """A whole conversion, killed while it writes."""
    config = {**CONFIG, "hidden_size": 768, "intermediate_size": 3072, "vocab_size": 8000}
    source = write_checkpoint(tmp_path / "phi", phi_shapes(hidden=768, inner=3072, vocab=8000), config=config)
    output = tmp_path / "outputs" / "tenny"
    output.parent.mkdir()
    # So that it takes long enough to be killed in it.
    line = ("convert", "--spec", SPEC, source, output, "--dtype", "float64", "--threads", "1")
    result = stop_weightmap(signal.SIGKILL, output.parent / ".tenny.staging-*", *line)
    assert result.returncode == -signal.SIGKILL
    left = weightmap("clean", output, "--json")
    assert {each["kind"] for each in json.loads(left.stdout)["leftovers"]} == {"staging", "lock"}
    assert weightmap("clean", output, "--yes").exit_code == 0
    assert names(output.parent) == []
    assert weightmap(*line).exit_code == 0
    assert weightmap("clean", output).stdout.startswith(f"{output}: no run left anything")
