"""What killed runs left: found without a change, cleaned without a loss, and never taken from a living run."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from converters import filesystem, leftovers
from converters.errors import OutputError
from converters.filesystem import UnsupportedRenameError, exclusive_lock
from converters.journal import Job, open_journal
from converters.leftovers import Action, Finished, Found, clean, find
from converters.publish import publishing
from converters.staging_names import lock_name
from converters.storage.file_digests import Extent, FileDigests

TOKEN, OTHER = "0123456789abcdef", "fedcba9876543210"
STALE_LOCK = "process 4194305 on there"  # more than the largest number that a process of Linux has


def fill(directory: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True, parents=True)
        (directory / name).write_text(content)


def tree(directory: Path) -> dict[str, str | None]:
    return {
        str(path.relative_to(directory)): path.read_text() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


def actions(found: list[Found]) -> dict[str, Action]:
    return {each.path.name: each.action for each in found}


# --- finding -----------------------------------------------------------------------------------------------------


def test_each_kind_is_found_and_nothing_is_changed(tmp_path: Path) -> None:
    files = {
        f".a.staging-{TOKEN}/model.safetensors": "half",
        ".a.lock": STALE_LOCK,
        f".b.replaced-{TOKEN}/model.safetensors": "old",
        f".c.replaced-{TOKEN}/model.safetensors": "old",
        "c/model.safetensors": "new",
        ".d.lock": STALE_LOCK,
    }
    fill(tmp_path, files)
    before = tree(tmp_path)
    assert actions(find(tmp_path)) == {
        ".a.lock": Action.REMOVE,
        f".a.staging-{TOKEN}": Action.REMOVE,
        f".b.replaced-{TOKEN}": Action.RESTORE,
        f".c.replaced-{TOKEN}": Action.REMOVE,
        ".d.lock": Action.REMOVE,
    }
    assert tree(tmp_path) == before


def test_files_of_others_are_not_leftovers(tmp_path: Path) -> None:
    fill(
        tmp_path,
        {
            ".apt.lock": "",
            ".other.lock": "process 12",
            ".more.lock": f"{STALE_LOCK}\nand more",
            ".a.staging-notes/x": "",
            f".a.staging-{TOKEN}": "a file",
            "deeper/.a.lock": STALE_LOCK,
            f"deeper/.a.staging-{TOKEN}/x": "",
        },
    )
    (tmp_path / ".link.lock").symlink_to("deeper/.a.lock")
    assert find(tmp_path) == []


def test_an_empty_lock_is_ours_beside_something_of_ours(tmp_path: Path) -> None:
    """A kill between making the file and writing into it leaves it empty."""
    fill(tmp_path, {".a.lock": "", f".a.staging-{TOKEN}/x": ""})
    assert set(actions(find(tmp_path))) == {".a.lock", f".a.staging-{TOKEN}"}


@pytest.mark.parametrize("exists", [True, False])
def test_what_lies_beside_an_output_and_in_it_is_found(tmp_path: Path, *, exists: bool) -> None:
    fill(tmp_path, {f".a.staging-{TOKEN}/x": "", f".b.staging-{TOKEN}/x": ""})
    if exists:
        fill(tmp_path, {f"a/.unet.staging-{TOKEN}/x": ""})
    expected = {f".a.staging-{TOKEN}", *([f".unet.staging-{TOKEN}"] if exists else [])}
    assert set(actions(find(tmp_path / "a"))) == expected


def test_the_current_directory_has_a_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {f".a.staging-{TOKEN}/x": "", f"a/.b.staging-{TOKEN}/x": "", f".c.staging-{TOKEN}/x": ""})
    monkeypatch.chdir(tmp_path / "a")
    assert set(actions(find(Path()))) == {f".a.staging-{TOKEN}", f".b.staging-{TOKEN}"}


def test_a_directory_without_a_parent_to_read_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Homes often lie in a directory that nobody may list; a root, who runs tests, may list all."""
    fill(tmp_path, {f"a/.b.staging-{TOKEN}/x": ""})
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path)
    assert set(actions(find(tmp_path / "a"))) == {f".b.staging-{TOKEN}"}


def test_a_path_that_is_nowhere_or_no_directory_is_an_error(tmp_path: Path) -> None:
    assert find(tmp_path / "none") == []
    with pytest.raises(OutputError, match=r"the directory .*none doesn't exist"):
        find(tmp_path / "none" / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Not a directory"):
        find(tmp_path / "file")


def test_size_and_time_are_those_of_all_files(tmp_path: Path) -> None:
    staging = tmp_path / f".a.staging-{TOKEN}"
    fill(staging, {"model.safetensors": "x" * 10_000, "unet/model.safetensors": "x" * 5000})
    with (staging / "sparse").open("wb") as file:
        file.truncate(1 << 40)  # a shard is as long from the start as it will be
    for path, time in [("sparse", 50), ("unet/model.safetensors", 3000), ("unet", 10), ("model.safetensors", 20)]:
        os.utime(staging / path, (time, time))
    os.utime(staging, (100, 100))
    (found,) = find(tmp_path)
    assert found.modified == 3000
    assert 15_000 <= found.nbytes < 100_000


@pytest.mark.parametrize(
    ("journal", "expected"),
    [
        ([{"version": 1}, {"file": "a", "nbytes": 7}, {"file": "b", "nbytes": 5}], Finished(2, 12)),
        ([{"version": 1}], Finished(0, 0)),
        ([], Finished(0, 0)),
        ([{}, {"file": "a", "nbytes": 7}, {"file": "a", "nbytes": 9}], Finished(1, 9)),
        ([{}, {"file": 3}, [], "x", {"file": "a"}, {"file": "b", "nbytes": "3"}], Finished(2, 0)),
    ],
)
def test_a_journal_says_what_is_finished(tmp_path: Path, journal: list[object], expected: Finished) -> None:
    text = "".join(json.dumps(line) + "\n" for line in journal)
    fill(tmp_path, {f".a.staging-{TOKEN}/.weightmap-journal": text})
    assert find(tmp_path)[0].finished == expected


def test_the_journal_that_a_run_writes_is_understood(tmp_path: Path) -> None:
    staging = tmp_path / f".a.staging-{TOKEN}"
    staging.mkdir()
    journal = open_journal(staging, Job("a plan", "xxh3", {"model.safetensors": "4 bytes"}))
    assert find(tmp_path)[0].finished == Finished(0, 0)
    for number in range(3):
        extents = (Extent("a", 0, 4, "xxh3:00"), Extent("b", 4, 7 + number, "xxh3:01"))
        journal.add(FileDigests(f"model-{number}.safetensors", 7 + number, "xxh3:02", extents))
    assert find(tmp_path)[0].finished == Finished(3, 7 + 8 + 9)


def test_a_journal_that_was_cut_or_is_none_is_no_error(tmp_path: Path) -> None:
    whole = '{"version": 1}\n{"file": "a", "nbytes": 7}\n{"file": "b", "nbytes": 5}\n'
    path = tmp_path / f".a.staging-{TOKEN}" / ".weightmap-journal"
    path.parent.mkdir()
    assert find(tmp_path)[0].finished is None
    for length in range(len(whole)):
        path.write_text(whole[:length])
        finished = find(tmp_path)[0].finished
        assert finished is not None
        assert finished.shards <= whole[: length + 1].count("}") - 1 or finished.shards == 0
    path.write_bytes(b"{}\n\xff\xfe\n" + b"[" * 100_000)
    assert find(tmp_path)[0].finished == Finished(0, 0)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert find(tmp_path)[0].finished is None


# --- cleaning ----------------------------------------------------------------------------------------------------


def test_what_nobody_needs_is_removed_and_the_only_copy_put_back(tmp_path: Path) -> None:
    fill(
        tmp_path,
        {
            f".a.staging-{TOKEN}/model.safetensors": "half",
            f".a.staging-{OTHER}/deeper/model.safetensors": "half",
            ".a.lock": STALE_LOCK,
            f".b.replaced-{TOKEN}/model.safetensors": "the only b",
            f".b.staging-{TOKEN}/model.safetensors": "half",
            f".c.replaced-{TOKEN}/model.safetensors": "old c",
            "c/model.safetensors": "new c",
            ".d.lock": STALE_LOCK,
            "notes": "mine",
        },
    )
    cleaned = clean(find(tmp_path))
    assert tree(tmp_path) == {
        "b": None,
        "b/model.safetensors": "the only b",
        "c": None,
        "c/model.safetensors": "new c",
        "notes": "mine",
    }
    assert len(cleaned.done) == 7
    assert cleaned.kept == cleaned.problems == ()
    assert find(tmp_path) == []


def test_without_a_rename_that_never_replaces_the_only_copy_is_put_back_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise UnsupportedRenameError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    fill(tmp_path, {f".b.replaced-{TOKEN}/model.safetensors": "the only b"})
    monkeypatch.setattr(filesystem, "_renameat2", unsupported)
    clean(find(tmp_path))
    assert tree(tmp_path) == {"b": None, "b/model.safetensors": "the only b"}


def test_the_parent_is_flushed_after_something_was_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {f".b.replaced-{TOKEN}/model.safetensors": "the only b"})
    flushed = []
    monkeypatch.setattr(leftovers, "sync_directory", lambda path: flushed.append((path, (tmp_path / "b").exists())))
    clean(find(tmp_path))
    assert flushed == [(tmp_path, True)]


def test_of_two_copies_none_is_chosen(tmp_path: Path) -> None:
    fill(tmp_path, {f".b.replaced-{TOKEN}/x": "one", f".b.replaced-{OTHER}/x": "two", f".b.staging-{TOKEN}/x": ""})
    cleaned = clean(find(tmp_path))
    assert [each.path.name for each in cleaned.done] == [f".b.staging-{TOKEN}"]
    assert [each.why for each in cleaned.kept] == ["there are 2 of them, and no b: rename the one that you want"] * 2
    assert tree(tmp_path).keys() == {
        f".b.replaced-{TOKEN}", f".b.replaced-{TOKEN}/x", f".b.replaced-{OTHER}", f".b.replaced-{OTHER}/x"
    }  # fmt: skip


def test_what_a_living_run_holds_is_left_alone(tmp_path: Path) -> None:
    fill(tmp_path, {f".b.staging-{TOKEN}/x": ""})
    with publishing(tmp_path / "a") as staging:
        fill(staging, {"model.safetensors": "new"})
        found = find(tmp_path)
        assert {each.path.name: each.holder != "" for each in found} == {
            ".a.lock": True,
            staging.name: True,
            f".b.staging-{TOKEN}": False,
        }
        cleaned = clean(found)
        assert {each.path.name for each in cleaned.done} == {f".b.staging-{TOKEN}"}
        assert all(f"process {os.getpid()} on " in each.holder for each in cleaned.kept)
    assert tree(tmp_path) == {"a": None, "a/model.safetensors": "new"}


def test_a_run_that_began_after_the_looking_is_left_alone(tmp_path: Path) -> None:
    fill(tmp_path, {f".a.staging-{TOKEN}/x": ""})
    found = find(tmp_path)
    assert actions(found) == {f".a.staging-{TOKEN}": Action.REMOVE}
    with exclusive_lock(lock_name(tmp_path / "a")):
        cleaned = clean(found)
    assert cleaned.done == ()
    assert cleaned.kept[0].holder
    assert (tmp_path / f".a.staging-{TOKEN}" / "x").exists()


def test_what_was_found_is_looked_at_again_under_the_lock(tmp_path: Path) -> None:
    """Between looking and cleaning, a run has put the old output back and replaced it by a new one."""
    fill(tmp_path, {f".a.replaced-{TOKEN}/x": "old"})
    found = find(tmp_path)
    (tmp_path / f".a.replaced-{TOKEN}").rename(tmp_path / f".a.staging-{OTHER}")
    fill(tmp_path, {"a/x": "new"})
    assert [each.action for each in clean(found).done] == [Action.REMOVE]
    assert tree(tmp_path) == {"a": None, "a/x": "new"}


def test_a_file_system_without_locks_is_left_to_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fill(tmp_path, {f".a.staging-{TOKEN}/x": "", ".a.lock": STALE_LOCK, f".b.staging-{TOKEN}/x": ""})
    monkeypatch.setattr(filesystem.fcntl, "flock", flock)
    before = tree(tmp_path)
    found = find(tmp_path)
    assert all("has no locks" in each.why for each in found)
    assert all("has no locks" in each.why for each in clean(found).kept)
    assert tree(tmp_path) == before


def test_an_old_output_is_never_half_removed_under_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a kill here, and an output that is moved away, would make the next run put half of it back."""
    fill(tmp_path, {f".a.replaced-{TOKEN}/x": "old", "a/x": "new"})

    def killed(path: Path) -> None:
        assert path.name.startswith(".a.staging-")
        raise KeyboardInterrupt

    monkeypatch.setattr(leftovers, "remove_tree", killed)
    with pytest.raises(KeyboardInterrupt):
        clean(find(tmp_path))
    (tmp_path / "a").rename(tmp_path / "moved")
    monkeypatch.undo()
    clean(find(tmp_path))
    assert tree(tmp_path) == {"moved": None, "moved/x": "new"}


def test_what_cant_be_removed_is_told_and_the_rest_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {f".a.staging-{TOKEN}/x": "", f".b.staging-{TOKEN}/x": ""})
    real = leftovers.remove_tree

    def remove(path: Path) -> None:
        if path.name.startswith(".a"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path / "x"))
        real(path)

    monkeypatch.setattr(leftovers, "remove_tree", remove)
    cleaned = clean(find(tmp_path))
    assert [each.path.name for each in cleaned.done] == [f".b.staging-{TOKEN}"]
    assert [problem.what for problem in cleaned.problems] == ["can't be removed or put back: Permission denied"]


def test_a_lock_that_is_a_link_is_neither_followed_nor_removed(tmp_path: Path) -> None:
    fill(tmp_path, {f".a.staging-{TOKEN}/x": "", "precious": STALE_LOCK})
    (tmp_path / ".a.lock").symlink_to("precious")
    found = find(tmp_path)
    assert [each.why for each in found] == ["its lock can't be opened: Too many levels of symbolic links"]
    assert len(clean(found).problems) == 1
    assert (tmp_path / ".a.lock").is_symlink()
    assert (tmp_path / "precious").read_text() == STALE_LOCK
    assert (tmp_path / f".a.staging-{TOKEN}").exists()
