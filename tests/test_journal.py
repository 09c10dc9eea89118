"""The journal of a staging directory: what it keeps, and that nothing in it is believed without a look."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash
from msgspec.structs import replace

import converters
from converters.errors import OutputError
from converters.journal import JOURNAL, Job, finished_shards, job_of, open_journal, why_useless
from converters.storage.file_digests import Extent, FileDigests
from converters.tensor_info import DType
from tests.commands.support import SPEC, write_checkpoint

CONTENT = {
    "m-1.safetensors": b"header" + bytes(range(50)),
    "part/m-2.safetensors": b"h" * 31,
    "m-3.safetensors": b"z" * 9,
}
JOB = Job("plan", "xxh3", {"a": "3 bytes"}, {name: frozenset({f"{name} x", f"{name} empty"}) for name in CONTENT})


def digest(data: bytes) -> str:
    return f"xxh3:{xxhash.xxh3_128_hexdigest(data)}"


def found_in(name: str) -> FileDigests:
    data = CONTENT[name]
    tensors = (Extent(f"{name} empty", 6, 6, digest(b"")), Extent(f"{name} x", 6, len(data), digest(data[6:])))
    return FileDigests(name, len(data), digest(data), tensors)


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    """A staging directory with two finished shards of three, as a kill leaves it."""
    directory = tmp_path / ".out.staging-0123456789abcdef"
    directory.mkdir()
    journal = open_journal(directory, JOB)
    (directory / "part").mkdir()
    assert (dict(journal.kept), journal.afresh) == ({}, None)
    for name in list(CONTENT)[:2]:
        (directory / name).write_bytes(CONTENT[name])
        journal.add(found_in(name))
    return directory


def names_in(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}


def change_line(staging: Path, number: int, change: Callable[[dict[str, Any]], object]) -> None:
    lines = (staging / JOURNAL).read_text().splitlines()
    content = json.loads(lines[number])
    change(content)
    lines[number] = json.dumps(content)
    (staging / JOURNAL).write_text("\n".join(lines) + "\n")


def assert_afresh(staging: Path, why: str, job: Job = JOB) -> None:
    journal = open_journal(staging, job)
    assert dict(journal.kept) == {}
    assert journal.afresh is not None
    assert why in journal.afresh, journal.afresh
    assert names_in(staging) == {JOURNAL}
    again = open_journal(staging, job)
    assert (dict(again.kept), again.afresh) == ({}, None), "the new journal is a good one"


def test_finished_shards_are_kept_and_strays_removed(staging: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (staging / "m-3.safetensors").write_bytes(b"half")
    (staging / "model.safetensors.index.json").write_text("{}")
    (staging / "deep" / "er").mkdir(parents=True)
    (staging / "deep" / "er" / "file").write_text("")
    (staging / "link").symlink_to(outside)
    (staging / "part" / "link").symlink_to(outside / "precious")
    os.mkfifo(staging / "pipe")
    inodes = {name: (staging / name).stat().st_ino for name in list(CONTENT)[:2]}
    assert finished_shards(staging, JOB) == 2
    assert why_useless(staging, JOB) is None
    journal = open_journal(staging, JOB)
    assert dict(journal.kept) == {name: found_in(name) for name in list(CONTENT)[:2]}
    assert journal.afresh is None
    assert names_in(staging) == {JOURNAL, *list(CONTENT)[:2]}
    assert {name: (staging / name).stat().st_ino for name in inodes} == inodes
    assert not (staging / "deep").exists()
    assert (outside / "precious").read_text() == "x"
    (staging / "m-3.safetensors").write_bytes(CONTENT["m-3.safetensors"])
    journal.add(found_in("m-3.safetensors"))
    assert set(open_journal(staging, JOB).kept) == set(CONTENT)


def test_a_line_cut_off_anywhere_does_not_count_and_is_written_over(staging: Path) -> None:
    content = (staging / JOURNAL).read_bytes()
    names = list(CONTENT)
    for length in range(len(content) + 1):
        (staging / JOURNAL).write_bytes(content[:length])
        for name in names[:2]:
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_bytes(CONTENT[name])
        whole = content[:length].count(b"\n")
        journal = open_journal(staging, JOB)
        assert list(journal.kept) == names[: max(whole - 1, 0)]
        assert (journal.afresh is None) == (whole > 0)
        (staging / names[2]).write_bytes(CONTENT[names[2]])
        journal.add(found_in(names[2]))
        assert list(open_journal(staging, JOB).kept) == [*names[: max(whole - 1, 0)], names[2]]


@pytest.mark.parametrize(
    ("job", "why"),
    [
        (replace(JOB, weightmap="0.0.0"), "another version"),
        (replace(JOB, plan="other"), "another spec, or of other options"),
        (replace(JOB, digest="sha256"), "digests are of another kind"),
        (replace(JOB, inputs={"a": "4 bytes"}), "the source has changed"),
        (replace(JOB, inputs={"a": "3 bytes", "b": "1 byte"}), "the source has changed"),
        (replace(JOB, inputs={}), "the source has changed"),
        (replace(JOB, shards={}), "isn't in the plan"),
        (replace(JOB, shards={**JOB.shards, "m-1.safetensors": frozenset({"y"})}), "isn't in the plan"),
    ],
)
def test_another_job_starts_afresh_and_says_why(staging: Path, job: Job, why: str) -> None:
    if "plan" not in why or job.plan != JOB.plan:
        assert finished_shards(staging, job) == 0
        assert why in (why_useless(staging, job) or "")
    assert_afresh(staging, why, job)


def test_every_flipped_byte_of_a_kept_shard_is_found(staging: Path) -> None:
    journal = (staging / JOURNAL).read_bytes()
    name = "m-1.safetensors"
    for position, old in enumerate(CONTENT[name]):
        for each in list(CONTENT)[:2]:
            (staging / each).parent.mkdir(exist_ok=True)
            (staging / each).write_bytes(CONTENT[each])
        (staging / JOURNAL).write_bytes(journal)
        damaged = bytearray(CONTENT[name])
        damaged[position] = old ^ 0x10
        (staging / name).write_bytes(damaged)
        assert_afresh(staging, "doesn't have the bytes that were written")


def replaced_by(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "57 bytes, not 56"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "55 bytes, not 56"),
        (lambda path: path.write_bytes(b""), "0 bytes, not 56"),
        (replaced_by(lambda path: path.mkdir()), "a directory"),
        (replaced_by(os.mkfifo), "a named pipe"),
        (replaced_by(lambda path: path.symlink_to("part/m-2.safetensors")), "symbolic link"),
    ],
)
def test_a_shard_that_is_not_what_was_written(staging: Path, damage: Callable[[Path], object], why: str) -> None:
    damage(staging / "m-1.safetensors")
    assert_afresh(staging, why)


def put(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda line: line.update({key: value})


@pytest.mark.parametrize(
    "change",
    [
        *(
            put("file", value)
            for value in ["../precious", "/etc/passwd", "", ".", "a\0b", "x" * 5000, 5, None, [], {}, JOURNAL]
        ),
        *(put("nbytes", value) for value in ["56", None, -1, 56.5, 1 << 80, [], {}, "x"]),
        *(put("digest", value) for value in [None, 5, "", "xxh3:", "sha256:00", []]),
        *(put("tensors", value) for value in [None, [], 5, "x", {}, {"a": 1}, {"a": [1, 2]}, {"a": [1, 2, "d", 4]}]),
        *(
            put("tensors", {"m-1.safetensors empty": [6, 6, digest(b"")], "m-1.safetensors x": extent})
            for extent in (
                ["6", "56", ""],
                [6, 57, ""],
                [56, 6, ""],
                [6, 56, "xxh3:00"],
                [6, 1 << 70, ""],
                [None, 6, ""],
            )
        ),
        lambda line: line.clear(),
    ],
)
def test_hostile_lines_start_afresh(staging: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    (tmp_path / "precious").write_bytes(CONTENT["m-1.safetensors"])
    change_line(staging, 1, change)
    assert_afresh(staging, "")
    assert (tmp_path / "precious").read_bytes() == CONTENT["m-1.safetensors"]


@pytest.mark.parametrize(
    "line",
    [
        b"null",
        b"[]",
        b"5",
        b"{",
        b"",
        b"\xff\xfe",
        b"\0" * 40,
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b"9" * 5000,
    ],
)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_lines_that_are_no_objects(staging: Path, line: bytes, number: int) -> None:
    lines = (staging / JOURNAL).read_bytes().splitlines()
    lines[number] = line
    (staging / JOURNAL).write_bytes(b"\n".join(lines) + b"\n")
    assert finished_shards(staging, JOB) == 0
    assert "can't be read" in (why_useless(staging, JOB) or "")
    assert_afresh(staging, "can't be read")


@pytest.mark.parametrize("key", ["weightmap_journal", "weightmap", "plan", "digest", "inputs"])
@pytest.mark.parametrize("value", [None, 0, "", [], {}, {"a": 5}, True])
def test_every_field_of_the_first_line_counts(staging: Path, key: str, value: Any) -> None:
    change_line(staging, 0, put(key, value) if value is not True else lambda line: line.pop(key))
    assert finished_shards(staging, JOB) == 0
    assert_afresh(staging, "")


@pytest.mark.parametrize(
    "make", [lambda path: path.mkdir(), lambda path: path.symlink_to("gone"), os.mkfifo, lambda path: path.touch()]
)
def test_a_journal_that_is_no_file(staging: Path, make: Callable[[Path], object]) -> None:
    (staging / JOURNAL).unlink()
    make(staging / JOURNAL)
    assert finished_shards(staging, JOB) == 0
    assert_afresh(staging, "journal")


def test_without_a_journal_nothing_is_kept_and_nothing_to_say(staging: Path) -> None:
    (staging / JOURNAL).unlink()
    assert finished_shards(staging, JOB) == 0
    assert why_useless(staging, JOB) is None
    journal = open_journal(staging, JOB)
    assert (dict(journal.kept), journal.afresh) == ({}, None)
    assert names_in(staging) == {JOURNAL}


def test_a_journal_without_shards_is_worth_nothing(tmp_path: Path) -> None:
    open_journal(tmp_path, JOB)
    assert finished_shards(tmp_path, JOB) == 0
    assert why_useless(tmp_path, replace(JOB, plan="other")) is None


def test_a_journal_that_was_removed_is_not_made_again(staging: Path) -> None:
    journal = open_journal(staging, JOB)
    journal.remove()
    assert names_in(staging) == set(list(CONTENT)[:2])
    with pytest.raises(OutputError, match="can't be written"):
        journal.add(found_in("m-3.safetensors"))
    with pytest.raises(OutputError):
        journal.remove()
    assert JOURNAL not in names_in(staging)


def test_the_job_of_a_plan(tmp_path: Path) -> None:
    """Whatever could change a byte is another job; where the source lies, and how it is read, is not."""
    from converters.convert import Options, prepare

    spec = converters.load_spec(SPEC)
    source = write_checkpoint(tmp_path / "source", shards=2)

    def job(options: Options = Options(), digest: str = "xxh3", spec: Any = spec) -> Job:  # noqa: B008 - frozen
        with prepare(spec, source, options) as prepared:
            return job_of(prepared.plan, prepared.reader, digest)

    first = job()
    assert job() == first
    assert set(first.inputs) >= {f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    assert list(first.shards) == ["model.safetensors"]
    others = [
        job(Options(max_shard_nbytes=1000)),
        job(Options(dtype=DType.BF16)),
        job(Options(set_config={"block": "classic"})),
        job(Options(file_format="bin")),
        job(digest="sha256"),
    ]
    for other in others:
        assert other.difference(first.to_json()) is not None
    assert first.difference(json.loads(json.dumps(first.to_json()))) is None
    path = source / "model-00002-of-00002.safetensors"
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert job().difference(first.to_json()) == "the source has changed since"
    path.write_bytes(bytes(content[:-1]) + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert job().difference(first.to_json()) is None
    header = bytes(content).replace(b'"pt"', b'"PT"', 1)
    assert header != bytes(content)
    path.write_bytes(header)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert job().difference(first.to_json()) == "the source has changed since", "the header's bytes count"
