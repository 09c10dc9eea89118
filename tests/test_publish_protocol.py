"""The publish protocol: the calls of a whole conversion are recorded, and held against docs/crash-safety.md.

Each step is a function that finds its calls in the record, checks them, and says where they begin and end; the steps
must follow each other as the page lists them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import converters
from tests.call_recorder import STAGING, Call, recorded
from tests.commands.support import SPEC, write_checkpoint

PAGE = Path(__file__).resolve().parent.parent / "docs" / "crash-safety.md"
STALE = f".out.staging-{'0' * 16}"
CREATES = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
JOURNAL, MANIFEST = ".weightmap-journal", "weightmap_manifest.json"
NOREPLACE, EXCHANGE = 1, 2  # of renameat2


@dataclass(frozen=True)
class Record:
    calls: Sequence[Call]
    overwrite: bool
    final: dict[str, str]
    """The digest of each file of the output, in the end."""

    def where(self, name: str, path: str | None = None, *, after: int = -1) -> list[int]:
        """The places of the calls with this name, and this path."""
        return [
            place
            for place, call in enumerate(self.calls)
            if place > after and call.name == name and path in (None, call.path)
        ]

    def only(self, name: str, path: str) -> int:
        (place,) = self.where(name, path)
        return place

    def shards(self) -> list[str]:
        return [name for name in self.final if name.endswith((".safetensors", ".bin", ".distcp"))]

    def index(self) -> str:
        (name,) = [name for name in self.final if name.endswith(".index.json") or name == ".metadata"]
        return name

    def others(self) -> list[str]:
        """config.json, and what is carried along."""
        described = {*self.shards(), self.index(), MANIFEST}
        return [name for name in self.final if name not in described]

    def made(self, name: str) -> int:
        """Where a file of the output is created; checks how."""
        place = self.only("create", f"{STAGING}/{name}")
        call = self.calls[place]
        assert call.flags & CREATES == CREATES, name
        assert call.mode == 0o666, name
        return place

    def flushed(self, name: str, after: int) -> int:
        """Where a file is flushed, as it is in the end; nothing may be written to it after that."""
        path = f"{STAGING}/{name}"
        place = min(self.where("fsync", path, after=after))
        assert self.calls[place].digest == self.final[name], name
        assert not self.where("write", path, after=place), name
        return place


# --- the steps ---------------------------------------------------------------------------------------------------


def check(record: Record) -> tuple[int, int]:
    """The source is opened, and nothing is changed before the lock."""
    source = [place for place in record.where("open") if record.calls[place].path.startswith("source/")]
    first_change = min(place for place, call in enumerate(record.calls) if call.name not in {"open", "read"})
    assert any(place < first_change for place in source)
    return min(source), max(place for place in source if place < first_change)


def lock(record: Record) -> tuple[int, int]:
    made = record.only("create", ".out.lock")
    assert record.calls[made].flags & os.O_NOFOLLOW
    held = record.only("flock", ".out.lock")
    assert record.calls[held].flags == fcntl.LOCK_EX | fcntl.LOCK_NB
    return made, held


def remove_leftovers(record: Record) -> tuple[int, int]:
    places = record.where("unlink", f"{STALE}/model.safetensors")
    return min(places), record.only("rmdir", STALE)


def make_staging(record: Record) -> tuple[int, int]:
    place = record.only("mkdir", STAGING)
    assert record.calls[place].mode == 0o777
    return place, place


def start_journal(record: Record) -> tuple[int, int]:
    """It is there for good before the first shard is."""
    made = record.made(JOURNAL)
    flushed = min(record.where("fsync", f"{STAGING}/{JOURNAL}", after=made))
    return made, min(record.where("fsync", STAGING, after=flushed))


def write_shards(record: Record) -> tuple[int, int]:
    """Each is read back in full between the last write and the flush, and noted in the journal after that."""
    assert len(record.shards()) > 1
    made, flushed = [], []
    for name in record.shards():
        path = f"{STAGING}/{name}"
        start = record.made(name)
        end = record.flushed(name, start)
        written = max(record.where("write", path))
        read = [place for place in record.where("read", path, after=written) if place < end]
        assert sum(record.calls[place].nbytes for place in read) >= (record.calls[end].nbytes), name
        made.append(start)
        flushed.append(end)
    noted = record.where("fsync", f"{STAGING}/{JOURNAL}", after=min(flushed))
    for count, end in enumerate(sorted(flushed), 1):
        # However many threads there are, there are never more lines than shards that are flushed.
        assert len([place for place in noted if place < end]) < count
    assert len(noted) == len(flushed)
    return min(made), max(noted)


def write_index(record: Record) -> tuple[int, int]:
    made = record.made(record.index())
    return made, record.flushed(record.index(), made)


def open_again(record: Record) -> tuple[int, int]:
    """Every shard is opened by its name, as a reader would."""
    index = record.flushed(record.index(), record.made(record.index()))
    opened = [min(record.where("open", f"{STAGING}/{name}", after=index)) for name in record.shards()]
    return min(opened), max(opened)


def write_others(record: Record) -> tuple[int, int]:
    assert {"config.json", "tokenizer.json", "additional_chat_templates/rag.jinja"} <= set(record.others())
    made = [record.made(name) for name in record.others()]
    written = [max(record.where("write", f"{STAGING}/{name}"), default=0) for name in record.others()]
    return min(made), max(*made, *written)


def write_manifest(record: Record) -> tuple[int, int]:
    made = record.made(MANIFEST)
    return made, record.flushed(MANIFEST, made)


def remove_journal(record: Record) -> tuple[int, int]:
    place = record.only("unlink", f"{STAGING}/{JOURNAL}")
    return place, place


def flush(record: Record) -> tuple[int, int]:
    """Everything in the staging directory, directories after what is in them, and itself at the end."""
    _, last = remove_journal(record)
    files = [record.flushed(name, last) for name in record.final]
    folders = {str(Path(STAGING, name).parent) for name in record.final} - {STAGING}
    assert folders
    flushed = [min(record.where("fsync", folder, after=last)) for folder in folders]
    end = min(record.where("fsync", STAGING, after=max(files + flushed)))
    assert not [place for name in ("create", "mkdir", "unlink") for place in in_staging(record, name, end)]
    return min(files + flushed), end


def in_staging(record: Record, name: str, after: int) -> list[int]:
    """Calls that change names in the staging directory, after a place and before it has another name."""
    (end,) = record.where("rename")
    places = record.where(name, after=after)
    return [place for place in places if place < end and record.calls[place].path.startswith(f"{STAGING}/")]


def rename(record: Record) -> tuple[int, int]:
    (place,) = record.where("rename")
    call = record.calls[place]
    assert (call.path, call.target) == (STAGING, "out")
    assert call.flags == (EXCHANGE if record.overwrite else NOREPLACE)
    return place, place


def flush_parent(record: Record) -> tuple[int, int]:
    (place,) = record.where("fsync", ".")
    return place, place


def remove_old(record: Record) -> tuple[int, int]:
    """Since the swap, the old output has the name of the staging directory."""
    (swapped,) = record.where("rename")
    removed = [
        each for each in record.where("unlink", after=swapped) if record.calls[each].path.startswith(f"{STAGING}/")
    ]
    assert removed
    return min(removed), record.only("rmdir", STAGING)


def let_go(record: Record) -> tuple[int, int]:
    """The file first: once the lock is free, it may be someone else's."""
    removed, closed = record.only("unlink", ".out.lock"), record.only("close", ".out.lock")
    assert removed < closed
    assert all(call.name == "close" and call.path.startswith("source/") for call in record.calls[closed + 1 :])
    return removed, closed


STEPS: dict[str, Callable[[Record], tuple[int, int]]] = {
    "Check everything": check,
    "Take the lock": lock,
    "Remove what a killed run left": remove_leftovers,
    "Make the staging directory": make_staging,
    "Start the journal": start_journal,
    "Write the shards": write_shards,
    "Write the index": write_index,
    "Open it again": open_again,
    "Write config.json and the carried files": write_others,
    "Write the manifest": write_manifest,
    "Remove the journal": remove_journal,
    "Flush everything": flush,
    "Rename": rename,
    "Flush the parent directory": flush_parent,
    "Remove the old output": remove_old,
    "Let go of the lock": let_go,
}


def steps_of(record: Record) -> list[str]:
    return [name for name in STEPS if name != "Remove the old output" or record.overwrite]


def follow(record: Record) -> None:
    """Check each step, and that each ends before the next one begins."""
    before, end = "", -1
    for name in steps_of(record):
        first, last = STEPS[name](record)
        assert end < first <= last, f"{before!r} ends at call {end}, {name!r} begins at {first}"
        before, end = name, last


# --- the tests ---------------------------------------------------------------------------------------------------


def a_source(parent: Path) -> Path:
    source = write_checkpoint(parent / "source", shards=2)
    (source / "tokenizer.json").write_text("{}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    return source


def convert(parent: Path, **options: Any) -> None:
    options = {"max_shard_size": 2000, "threads": 2, **options}
    converters.convert(converters.load_spec(SPEC), parent / "source", parent / "out", **options)


def digests(directory: Path) -> dict[str, str]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def a_conversion(parent: Path, patch: pytest.MonkeyPatch, *, overwrite: bool, **options: Any) -> Record:
    """Convert a small checkpoint, beside what a killed run left; and record it."""
    a_source(parent)
    (parent / STALE).mkdir()
    (parent / STALE / "model.safetensors").write_text("half")
    if overwrite:
        write_checkpoint(parent / "out", {"old.weight": [3]})
    with recorded(parent, patch) as calls:
        convert(parent, overwrite=overwrite, **options)
    return Record(calls, overwrite, digests(parent / "out"))


@pytest.fixture(scope="module", params=[False, True], ids=["new", "overwrite"])
def record(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Record:
    with pytest.MonkeyPatch.context() as patch:
        return a_conversion(tmp_path_factory.mktemp("record"), patch, overwrite=request.param)


def test_the_page_has_these_steps() -> None:
    assert re.findall(r"^### \d+\. (.*)$", PAGE.read_text(), re.MULTILINE) == list(STEPS)


def test_the_steps_follow_each_other_as_the_page_says(record: Record) -> None:
    follow(record)


@pytest.mark.parametrize("file_format", ["bin", "dcp"])
def test_other_formats_follow_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: str) -> None:
    follow(a_conversion(tmp_path, monkeypatch, overwrite=True, file_format=file_format))


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_permissions_are_what_the_umask_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int) -> None:
    before = os.umask(umask)
    try:
        a_conversion(tmp_path, monkeypatch, overwrite=False)
    finally:
        os.umask(before)
    for path in (tmp_path / "out", *(tmp_path / "out").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~umask, path


@pytest.mark.parametrize("overwrite", [False, True])
def test_without_flushing_the_other_steps_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, overwrite: bool
) -> None:
    record = a_conversion(tmp_path, monkeypatch, overwrite=overwrite, sync=False)
    assert record.where("fsync") == []
    made = [record.made(name) for name in record.final]
    assert max(record.made(name) for name in record.shards()) < record.made(record.index())
    assert record.made(MANIFEST) == max(made)
    assert lock(record)[1] < min(made)
    assert max(made) < rename(record)[0] < let_go(record)[0]


def test_a_run_that_goes_on_reads_what_it_keeps_and_writes_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_source(tmp_path)
    convert(tmp_path)
    expected = digests(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "whole")

    def stop(_: int) -> None:
        (journal,) = tmp_path.glob(f"{STAGING}-*/{JOURNAL}")
        if len(journal.read_text().splitlines()) > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path, resume=True, threads=1, progress=stop)
    (staging,) = tmp_path.glob(f"{STAGING}-*")
    before = {name for name in digests(staging) if name.endswith(".safetensors")}
    assert before
    with recorded(tmp_path, monkeypatch) as calls:
        convert(tmp_path, resume=True)
    record = Record(calls, overwrite=False, final=digests(tmp_path / "out"))
    assert {name: digest for name, digest in record.final.items() if name != MANIFEST} == {
        name: digest for name, digest in expected.items() if name != MANIFEST
    }
    kept = [name for name in record.shards() if not record.where("create", f"{STAGING}/{name}")]
    assert 0 < len(kept) < len(record.shards())
    assert record.where("mkdir", STAGING) == []
    first = min(record.where("create", f"{STAGING}/{name}")[0] for name in record.shards() if name not in kept)
    for name in kept:
        read = [place for place in record.where("read", f"{STAGING}/{name}") if place < first]
        nbytes = (tmp_path / "out" / name).stat().st_size
        assert sum(record.calls[place].nbytes for place in read) >= nbytes
        assert record.where("write", f"{STAGING}/{name}") == []
    assert flush(record)[1] < rename(record)[0] < flush_parent(record)[0] < let_go(record)[0]


def moved(record: Record, place: int, to: int) -> Record:
    """With one call at another place."""
    calls = list(record.calls)
    calls.insert(to, calls.pop(place))
    return replace(record, calls=calls)


def without(record: Record, name: str, path: str | None = None) -> Record:
    gone = set(record.where(name, path))
    return replace(record, calls=[call for place, call in enumerate(record.calls) if place not in gone])


def changed(record: Record, place: int, **more: Any) -> Record:
    calls = list(record.calls)
    calls[place] = replace(calls[place], **more)
    return replace(record, calls=calls)


BREACHES: dict[str, Callable[[Record], Record]] = {
    "no lock": lambda r: without(r, "flock"),
    "a lock that waits": lambda r: changed(r, r.where("flock")[0], flags=fcntl.LOCK_EX),
    "staging before the lock": lambda r: moved(r, r.only("mkdir", STAGING), 0),
    "a staging directory for the owner alone": lambda r: changed(r, r.only("mkdir", STAGING), mode=0o700),
    "cleaning before the lock": lambda r: moved(r, r.only("rmdir", STALE), r.where("create")[0]),
    "a file that replaces another": lambda r: changed(r, r.made(r.others()[0]), flags=os.O_CREAT | os.O_NOFOLLOW),
    "a file that follows a link": lambda r: changed(r, r.made(r.shards()[0]), flags=os.O_CREAT | os.O_EXCL),
    "a file for the owner alone": lambda r: changed(r, r.made(r.shards()[0]), mode=0o600),
    "a journal that is never flushed": lambda r: without(r, "fsync", f"{STAGING}/{JOURNAL}"),
    "a line of the journal before its shard's flush": lambda r: moved(
        r,
        r.where("fsync", f"{STAGING}/{JOURNAL}")[1],
        min(r.flushed(name, r.made(name)) for name in r.shards()),
    ),
    "a journal that stays": lambda r: without(r, "unlink", f"{STAGING}/{JOURNAL}"),
    "an index before a shard's flush": lambda r: moved(
        r, r.made(r.index()), r.flushed(r.shards()[0], r.made(r.shards()[0]))
    ),
    "a shard that is never flushed": lambda r: without(r, "fsync", f"{STAGING}/{r.shards()[0]}"),
    "a shard that isn't read back": lambda r: without(r, "read", f"{STAGING}/{r.shards()[-1]}"),
    "a shard that is written once more": lambda r: moved(
        r, r.where("write", f"{STAGING}/{r.shards()[0]}")[-1], r.where("fsync", STAGING)[-1]
    ),
    "a shard that isn't opened again": lambda r: without(r, "open", f"{STAGING}/{r.shards()[0]}"),
    "a config that is never flushed": lambda r: without(r, "fsync", f"{STAGING}/config.json"),
    "a carried file that is never flushed": lambda r: without(r, "fsync", f"{STAGING}/tokenizer.json"),
    "a folder that is never flushed": lambda r: without(r, "fsync", f"{STAGING}/additional_chat_templates"),
    "a staging directory that is never flushed": lambda r: without(r, "fsync", STAGING),
    "a manifest before config.json": lambda r: moved(
        r, r.made(MANIFEST), r.made("config.json")
    ),
    "a rename before the flush": lambda r: moved(r, r.where("rename")[0], r.where("fsync", STAGING)[-1]),
    "a rename that replaces": lambda r: changed(r, r.where("rename")[0], flags=0),
    "a parent that is never flushed": lambda r: without(r, "fsync", "."),
    "a parent that is flushed before the rename": lambda r: moved(r, r.only("fsync", "."), r.where("rename")[0]),
    "a lock that is freed before its file is removed": lambda r: moved(
        r, r.only("close", ".out.lock"), r.only("unlink", ".out.lock")
    ),
    "a lock that is freed before the parent is flushed": lambda r: moved(
        r, r.only("unlink", ".out.lock"), r.only("fsync", ".")
    ),
}  # fmt: skip


@pytest.mark.parametrize("breach", BREACHES)
def test_every_breach_is_seen(record: Record, breach: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        follow(BREACHES[breach](record))


def test_an_old_output_that_is_removed_too_early_is_seen(record: Record) -> None:
    if not record.overwrite:
        record = replace(record, overwrite=True)  # and then nothing is removed at all
    else:
        record = moved(record, remove_old(record)[0], record.only("fsync", "."))
    with pytest.raises((AssertionError, ValueError)):
        follow(record)
