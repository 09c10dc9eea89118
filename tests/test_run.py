"""Runs that are stopped and gone on with: what is kept, what starts afresh, and that the bytes are the same."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import converters
from converters.errors import OutputError, WeightmapError
from converters.journal import JOURNAL, Journal
from converters.manifest import MANIFEST
from converters.storage.file_digests import FileDigests
from tests.commands.support import SPEC, run_weightmap, weightmap, write_checkpoint

SIZE = ("--max-shard-size", "1KB")
SHARDS = 8
KILLED = 9


@pytest.fixture(autouse=True)
def same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


@pytest.fixture
def phi(tmp_path: Path) -> Path:
    source = write_checkpoint(tmp_path / "phi", shards=2)
    (source / "tokenizer.json").write_text("{}")
    return source


def convert(source: Path, output: Path, *words: str | Path) -> Any:
    return weightmap("convert", "--spec", SPEC, source, output, *SIZE, *words)


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def killed_after(lines: int, run: Callable[[], object]) -> None:
    """Run in a child that ends at once, as by SIGKILL, when so many shards are in the journal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            add = Journal.add
            count = 0

            def add_and_die(journal: Journal, found: FileDigests) -> None:
                nonlocal count
                add(journal, found)
                count += 1
                if count == lines:
                    os._exit(KILLED)

            setattr(Journal, "add", add_and_die)  # noqa: B010 - a type checker takes it for a mistake otherwise
            run()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == KILLED


def staging_of(output: Path) -> Path:
    (found,) = output.parent.glob(f".{output.name}.staging-*")
    return found


def finished_in(staging: Path) -> dict[str, int]:
    """The finished shards, by the journal, each with its inode."""
    lines = [json.loads(line) for line in (staging / JOURNAL).read_text().splitlines()]
    return {line["file"]: (staging / line["file"]).stat().st_ino for line in lines[1:]}


def beside(output: Path) -> list[str]:
    return sorted(path.name for path in output.parent.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("lines", [1, 4, SHARDS])
def test_a_killed_run_is_gone_on_with(phi: Path, tmp_path: Path, lines: int) -> None:
    assert convert(phi, tmp_path / "undisturbed").exit_code == 0
    output = tmp_path / "out"
    killed_after(lines, lambda: convert(phi, output, "--resume"))
    finished = finished_in(staging_of(output))
    assert len(finished) == lines
    assert not output.exists()
    result = convert(phi, output, "--resume", "--json", "--threads", "1", "--max-memory", "300MB")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("Warning") == 0
    assert json.loads(result.stdout)["kept"] == list(finished)
    assert {name: (output / name).stat().st_ino for name in finished} == finished, "not written again"
    assert bytes_of(output) == bytes_of(tmp_path / "undisturbed")
    assert beside(output) == []
    assert stat.S_IMODE(output.stat().st_mode) == stat.S_IMODE((tmp_path / "undisturbed").stat().st_mode)
    assert weightmap("verify-files", output).exit_code == 0


@pytest.mark.parametrize("lines", [2])
@pytest.mark.parametrize(
    "words", [("--format", "bin"), ("--format", "dcp"), ("--digest", "sha256"), ("--no-sync",), ("--dtype", "bf16")]
)
def test_whatever_the_format_and_the_digest(phi: Path, tmp_path: Path, lines: int, words: tuple[str, ...]) -> None:
    assert convert(phi, tmp_path / "undisturbed", *words).exit_code == 0
    output = tmp_path / "out"
    killed_after(lines, lambda: convert(phi, output, "--resume", *words))
    result = convert(phi, output, "--resume", "--json", *words)
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["kept"]) == lines
    assert bytes_of(output) == bytes_of(tmp_path / "undisturbed")


def test_killed_twice_and_gone_on_with_twice(phi: Path, tmp_path: Path) -> None:
    assert convert(phi, tmp_path / "undisturbed").exit_code == 0
    output = tmp_path / "out"
    killed_after(2, lambda: convert(phi, output))
    killed_after(3, lambda: convert(phi, output, "--resume"))
    result = convert(phi, output, "--resume")
    assert "kept     5 files that an earlier run had finished" in result.stdout
    assert bytes_of(output) == bytes_of(tmp_path / "undisturbed")


def test_it_goes_on_into_an_output_that_is_replaced(phi: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert convert(phi, output, "--dtype", "bf16").exit_code == 0
    killed_after(2, lambda: convert(phi, output, "--resume", "--overwrite"))
    assert json.loads((output / MANIFEST).read_text())["command"].count("--dtype") == 1
    result = convert(phi, output, "--resume", "--overwrite", "--json")
    assert len(json.loads(result.stdout)["kept"]) == 2
    assert beside(output) == []


def touch(source: Path) -> None:
    os.utime(source / "model-00001-of-00002.safetensors", ns=(1, 1))


def change_config(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 0.5}))


@pytest.mark.parametrize(
    ("change", "words", "why"),
    [
        (touch, (), "the source has changed since"),
        (change_config, (), "another spec, or of other options"),
        (None, ("--dtype", "bf16"), "another spec, or of other options"),
        (None, ("--set", "block=classic"), "another spec, or of other options"),
        (None, ("--digest", "sha256"), "its digests are of another kind"),
    ],
)
def test_another_job_starts_afresh_and_says_why(
    phi: Path, tmp_path: Path, change: Callable[[Path], object] | None, words: tuple[str, ...], why: str
) -> None:
    output = tmp_path / "out"
    killed_after(3, lambda: convert(phi, output, "--resume"))
    old = set(finished_in(staging_of(output)).values())
    assert old
    if change is not None:
        change(phi)
    result = convert(phi, output, "--resume", "--json", *words)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["kept"] == []
    assert why in " ".join(result.stderr.split())
    assert beside(output) == []
    assert convert(phi, tmp_path / "undisturbed", *words).exit_code == 0
    assert bytes_of(output) == bytes_of(tmp_path / "undisturbed")


def test_another_version_starts_afresh(phi: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    killed_after(3, lambda: convert(phi, output, "--resume"))
    journal = staging_of(output) / JOURNAL
    journal.write_text(journal.read_text().replace(f'"weightmap":"{converters.__version__}"', '"weightmap":"0.0.0"', 1))
    result = convert(phi, output, "--resume")
    assert "another version of weightmap wrote it" in " ".join(result.stderr.split())
    assert "kept" not in result.stdout


def test_a_damaged_shard_is_not_kept(phi: Path, tmp_path: Path) -> None:
    assert convert(phi, tmp_path / "undisturbed").exit_code == 0
    output = tmp_path / "out"
    killed_after(3, lambda: convert(phi, output, "--resume"))
    staging = staging_of(output)
    path = staging / list(finished_in(staging))[1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    result = convert(phi, output, "--resume")
    assert "doesn't have the bytes that were written" in " ".join(result.stderr.split())
    assert bytes_of(output) == bytes_of(tmp_path / "undisturbed")


def test_of_several_the_one_worth_most_is_taken_and_the_others_removed(phi: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    left = {}
    for lines in (2, 5, 3):
        killed_after(lines, lambda: convert(phi, output))
        left[lines] = staging_of(output).rename(tmp_path / f"aside-{lines}")
    for lines, path in left.items():
        path.rename(tmp_path / f".out.staging-{lines:016x}")
    result = convert(phi, output, "--resume", "--json")
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["kept"]) == 5
    assert result.stderr.count("Warning") == 0
    assert beside(output) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_another_user_made_is_not_believed(phi: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    killed_after(3, lambda: convert(phi, output, "--resume"))
    os.chown(staging_of(output), 12345, 12345)
    result = convert(phi, output, "--resume", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["kept"] == []
    assert beside(output) == []


def test_without_resume_what_is_left_is_removed(phi: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    killed_after(3, lambda: convert(phi, output, "--resume"))
    result = convert(phi, output, "--json")
    assert json.loads(result.stdout)["kept"] == []
    assert beside(output) == []


def test_with_nothing_to_go_on_with(phi: Path, tmp_path: Path) -> None:
    result = convert(phi, tmp_path / "out", "--resume")
    assert result.exit_code == 0
    assert "kept" not in result.stdout
    assert result.stderr == ""
    assert JOURNAL not in bytes_of(tmp_path / "out")


def test_usage(phi: Path, tmp_path: Path) -> None:
    result = convert(phi, tmp_path / "out", "--resume", "--digest", "none")
    assert result.exit_code == 2
    assert "--resume needs digests" in result.stderr
    result = weightmap("convert", "--spec", SPEC, phi, "memory://bucket/out", "--resume")
    assert result.exit_code == 8
    assert "object store" in result.stderr
    assert beside(tmp_path / "out") == []


def fail_after(monkeypatch: pytest.MonkeyPatch, lines: int, error: BaseException) -> None:
    add = Journal.add
    count = 0

    def add_or_fail(journal: Journal, found: FileDigests) -> None:
        nonlocal count
        if count == lines:
            raise error
        add(journal, found)
        count += 1

    monkeypatch.setattr(Journal, "add", add_or_fail)


@pytest.mark.parametrize("resume", [True, False])
def test_an_error_keeps_what_is_finished_only_if_asked_to(
    phi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, resume: bool
) -> None:
    output = tmp_path / "out"
    spec = converters.load_spec(SPEC)
    with monkeypatch.context() as patch:
        fail_after(patch, 3, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(OutputError, match="No space") as caught:
            converters.convert(spec, phi, output, max_shard_size=1000, resume=resume)
    assert caught.value.exit_code == 8
    notes = getattr(caught.value, "__notes__", [])
    if not resume:
        assert notes == []
        assert beside(output) == []
        return
    staging = staging_of(output)
    assert notes == [f"what is finished is kept in {staging}; go on with --resume"]
    finished = finished_in(staging)
    assert len(finished) == 3
    converters.convert(spec, phi, output, max_shard_size=1000, resume=True)
    assert {name: (output / name).stat().st_ino for name in finished} == finished


def test_an_error_before_the_first_shard_leaves_nothing(
    phi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_after(monkeypatch, 0, OutputError("no"))
    with pytest.raises(OutputError, match="no"):
        converters.convert(converters.load_spec(SPEC), phi, tmp_path / "out", max_shard_size=1000, resume=True)
    assert beside(tmp_path / "out") == []


@pytest.mark.parametrize("resume", [True, False])
def test_sigterm(phi: Path, tmp_path: Path, *, resume: bool) -> None:
    """A run stops itself by the signal after three shards, so that it comes at the same place each time."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import os, signal, sys, time
from converters.journal import Journal
add, count = Journal.add, [0]
def stop(journal, found):
    add(journal, found)
    count[0] += 1
    if count[0] == 3:
        os.kill(os.getpid(), {signal.SIGTERM.value})
        time.sleep(0.2)
Journal.add = stop
from converters.commands import main
main(sys.argv[1:], prog_name="weightmap")
""")
    import subprocess
    import sys

    from tests.commands.support import environment

    output = tmp_path / "out"
    words = ["convert", "--spec", SPEC, str(phi), str(output), *SIZE, *(["--resume"] if resume else [])]
    done = subprocess.run(
        [sys.executable, script, *words], capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert not output.exists()
    if not resume:
        assert beside(output) == []
        return
    staging = staging_of(output)
    assert beside(output) == [staging.name]
    assert f"what is finished is kept in {staging}; go on with --resume" in " ".join(done.stderr.split())
    finished = finished_in(staging)
    assert len(finished) >= 3
    again = run_weightmap(*words, "--json")
    assert len(json.loads(again.stdout)["kept"]) == len(finished)


def test_a_wrong_source_date_epoch_is_an_error_before_anything_is_written(
    phi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("9" * 30, "yesterday", "-1", "1.5", " 1"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", value)
        with pytest.raises(WeightmapError, match="SOURCE_DATE_EPOCH"):
            converters.convert(converters.load_spec(SPEC), phi, tmp_path / "out")
        assert list(tmp_path.iterdir()) == [phi]


def test_the_recorded_command_does_the_same_again(phi: Path, tmp_path: Path) -> None:
    import shlex

    words = [
        "--dtype",
        "bf16",
        "--format",
        "bin",
        "--max-shard-size",
        "4KB",
        "--set",
        "block=classic",
        "--digest",
        "sha256",
    ]
    words += ["--set", "note=a 'b' \"c\""]
    assert weightmap("convert", "--spec", SPEC, phi, tmp_path / "out", *words).exit_code == 0
    command = shlex.split(json.loads((tmp_path / "out" / MANIFEST).read_text())["command"])
    assert command[0] == "weightmap"
    places = {"SOURCE": str(phi), "OUTPUT": str(tmp_path / "again")}
    again = weightmap(*(places.get(word, word) for word in command[1:]))
    assert again.exit_code == 0, again.output
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path / "out")
    shutil.rmtree(tmp_path / "again")


@pytest.mark.parametrize("which", ["header", "tensor"])
def test_what_does_not_arrive_on_the_disk_is_found_by_reading_back(
    phi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """One bit of one write is lost on its way; nothing is published, and the message says where."""
    from converters.storage import files, open_shard

    write = files.write_exactly
    damaged: list[int] = []

    def write_badly(descriptor: int, data: memoryview, position: int, path: Path) -> None:
        content = bytearray(data)
        if not damaged and path.name.startswith("model-00003") and (position > 0) == (which == "tensor"):
            damaged.append(position)
            content[len(content) // 2] ^= 0x20
        write(descriptor, memoryview(content), position, path)

    monkeypatch.setattr(open_shard, "write_exactly", write_badly)
    with pytest.raises(OutputError) as caught:
        converters.convert(converters.load_spec(SPEC), phi, tmp_path / "out", max_shard_size=1000)
    assert len(damaged) == 1
    assert f"holds something else at byte {damaged[0]:,} than was written there" in str(caught.value)
    assert "model-00003-of-00008.safetensors" in str(caught.value)
    assert list(tmp_path.iterdir()) == [phi]
