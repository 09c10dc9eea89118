"""The publish protocol: whole or not at all, against failing calls, kills, rivals and careless users."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from converters import filesystem, publish
from converters.errors import OutputError, OutputExistsError
from converters.filesystem import LockedError, UnsupportedRenameError, exclusive_lock
from converters.publish import check_free_space, publishing

ROOT = Path(__file__).resolve().parent.parent
NEW = {"model.safetensors": "new weights", "config.json": "{}", "sub/chat.jinja": "new"}
OLD = {"model.safetensors": "old weights", "README.md": "old"}


def fill(directory: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True, parents=True)
        (directory / name).write_text(content)


def contents(directory: Path) -> dict[str, str] | None:
    if not directory.exists():
        return None
    return {
        str(path.relative_to(directory)): path.read_text() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def convert(output: Path, *, overwrite: bool = False) -> None:
    with publishing(output, overwrite=overwrite) as staging:
        fill(staging, NEW)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def old_output(output: Path) -> Path:
    fill(output, OLD)
    return output


# --- when all goes well ------------------------------------------------------------------------------------------


def test_the_output_appears_whole_and_nothing_else_is_left(output: Path) -> None:
    with publishing(output) as staging:
        assert staging.parent == output.parent
        assert staging.name.startswith(".out.staging-")
        fill(staging, NEW)
        assert not output.exists()
        assert ".out.lock" in names(output.parent)
    assert contents(output) == dict(sorted(NEW.items()))
    assert names(output.parent) == ["out"]


def test_an_old_checkpoint_is_replaced_once_the_new_one_is_complete(old_output: Path) -> None:
    with publishing(old_output, overwrite=True) as staging:
        fill(staging, NEW)
        assert contents(old_output) == dict(sorted(OLD.items()))
    assert contents(old_output) == dict(sorted(NEW.items()))
    assert names(old_output.parent) == ["out"]


def test_overwriting_what_is_not_there_is_no_error(output: Path) -> None:
    convert(output, overwrite=True)
    assert contents(output) is not None


def test_an_empty_directory_is_replaced_if_asked(output: Path) -> None:
    output.mkdir()
    with pytest.raises(OutputExistsError):
        convert(output)
    convert(output, overwrite=True)
    assert contents(output) is not None


def test_permissions_follow_the_umask(output: Path) -> None:
    before = os.umask(0o027)
    try:
        convert(output)
    finally:
        os.umask(before)
    assert stat.S_IMODE(output.stat().st_mode) == 0o750


def test_a_relative_path_is_fixed_before_the_work_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with publishing(Path("out")) as staging:
        fill(staging, NEW)
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
    assert (tmp_path / "out" / "config.json").exists()


def test_everything_is_flushed_before_the_rename_and_the_parent_after_it(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_fsync, real_rename = os.fsync, filesystem._renameat2

    def fsync(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name.partition("-")[0])
        real_fsync(descriptor)

    def rename(source: Path, target: Path, flags: int) -> None:
        events.append("rename")
        real_rename(source, target, flags)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(filesystem, "_renameat2", rename)
    convert(output)
    at = events.index("rename")
    assert sorted(events[:at]) == [".out.staging", "chat.jinja", "config.json", "model.safetensors", "sub"]
    assert events[at - 1] == ".out.staging"
    assert events[at + 1 :] == [output.parent.name]


# --- what is refused before anything is done ---------------------------------------------------------------------


def refuse(output: Path, *, overwrite: bool = False, inputs: tuple[Path, ...] = ()) -> str:
    before = names(output.parent) if output.parent.is_dir() else None
    manager = publishing(output, overwrite=overwrite, inputs=inputs)
    with pytest.raises(OutputError) as refusal:
        manager.__enter__()
    if before is not None:
        assert names(output.parent) == before
    return str(refusal.value)


def test_an_output_that_exists(old_output: Path) -> None:
    with pytest.raises(OutputExistsError, match=r"out: already exists\n    .*--overwrite"):
        convert(old_output)
    assert contents(old_output) == dict(sorted(OLD.items()))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_or_a_link_is_never_replaced(output: Path, tmp_path: Path, *, overwrite: bool) -> None:
    output.write_text("precious")
    refuse(output, overwrite=overwrite)
    assert output.read_text() == "precious"
    output.unlink()
    for target in (tmp_path / "target", tmp_path / "dangling"):
        output.symlink_to(target)
        (tmp_path / "target").mkdir(exist_ok=True)
        assert f"is a symbolic link, to {target}" in refuse(output, overwrite=overwrite)
        output.unlink()


def test_a_parent_that_is_missing_or_no_directory(tmp_path: Path) -> None:
    assert "doesn't exist" in refuse(tmp_path / "none" / "out")
    (tmp_path / "file").write_text("")
    assert "is not a directory" in refuse(tmp_path / "file" / "out").lower()


@pytest.mark.parametrize("path", ["/", ".", "..", "a/.."])
def test_a_path_without_a_name(path: str) -> None:
    with pytest.raises(OutputError, match="needs a name of its own"), publishing(Path(path), overwrite=True):
        pytest.fail("the block was entered")


@pytest.mark.parametrize(
    ("given", "relation"),
    [("out", "is the input itself"), (".", "lies inside the input"), ("out/model.safetensors", "contains the input")],
)
def test_an_output_that_is_not_apart_from_the_input(old_output: Path, given: str, relation: str) -> None:
    path = old_output.parent / given
    assert f"the output {relation}, {path}" in refuse(old_output, overwrite=True, inputs=(path,))


def test_an_input_that_is_a_link_counts_as_both_of_its_places(old_output: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(old_output)
    assert "is the input itself" in refuse(old_output, overwrite=True, inputs=(tmp_path / "link",))
    (tmp_path / "store").write_text("")
    (old_output / "link.safetensors").symlink_to(tmp_path / "store")
    assert "contains the input" in refuse(old_output, overwrite=True, inputs=(old_output / "link.safetensors",))


def test_an_output_beside_the_input_file_or_with_a_similar_name_is_fine(tmp_path: Path) -> None:
    fill(tmp_path, {"in/model.safetensors": "", "model.safetensors": ""})
    for name, given in [("in2", "in"), ("out", "model.safetensors")]:
        with publishing(tmp_path / name, inputs=(tmp_path / given,)) as staging:
            fill(staging, NEW)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"thesis.docx": "", "model.safetensors": ""}, "it holds what no checkpoint does: thesis.docx"),
        ({"src/a.py": "", "model.safetensors": ""}, "it holds what no checkpoint does: src"),
        ({".git/HEAD": "", "model.safetensors": ""}, "it holds what no checkpoint does: .git"),
        ({"notes.txt": ""}, "it holds no .safetensors files"),
        ({f"{n}.x": "" for n in range(9)}, "0.x, 1.x, 2.x, 3.x, 4.x and 4 more"),
        ({"a\x1b[2J": ""}, r"a\x1b[2J"),
    ],
)
def test_a_directory_that_holds_something_else(output: Path, files: dict[str, str], reason: str) -> None:
    fill(output, files)
    assert reason in refuse(output, overwrite=True)
    assert contents(output) == dict(sorted(files.items()))


def test_the_usual_company_of_weights_may_be_replaced(output: Path) -> None:
    fill(
        output,
        dict.fromkeys(
            [
                "model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json", "tokenizer.model",
                "chat_template.jinja", "LICENSE", "LICENSE-MODEL", "Notice", "README.md", ".gitattributes",
                "modeling_phi.py", "vocab.txt", "tiktoken.tiktoken", "additional_chat_templates/rag.jinja",
            ],
            "",
        ),
    )  # fmt: skip
    convert(output, overwrite=True)
    assert contents(output) == dict(sorted(NEW.items()))


@pytest.mark.parametrize("below", ["", "deeper"])
def test_the_home_directory_and_the_current_one_are_never_replaced(
    output: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    (output / below).mkdir(parents=True)
    fill(output, {"model.safetensors": ""})
    with monkeypatch.context() as patch:
        patch.setenv("HOME", str(output / below))
        assert "your home directory is in it" in refuse(output, overwrite=True)
    with monkeypatch.context() as patch:
        patch.chdir(output / below)
        assert "the current directory is in it" in refuse(output, overwrite=True)


def test_a_parent_that_may_not_be_written(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_open(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(output.parent / ".out.lock"))

    monkeypatch.setattr(filesystem.os, "open", refuse_open)
    assert "Permission denied" in refuse(output)


def test_free_space_is_checked_beforehand(tmp_path: Path) -> None:
    check_free_space(tmp_path, 1)
    with pytest.raises(OutputError, match=r"needs 1000\.00 EB, but only .* are free"):
        check_free_space(tmp_path, 10**21)
    with pytest.raises(OutputError, match="No such file"):
        check_free_space(tmp_path / "none", 1)


# --- when something fails ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), ValueError("no"), FileNotFoundError("config")])
@pytest.mark.parametrize("overwrite", [False, True])
def test_whatever_the_block_raises_passes_and_leaves_nothing(
    output: Path, error: BaseException, *, overwrite: bool
) -> None:
    if overwrite:
        fill(output, OLD)
    before = contents(output)
    with pytest.raises(type(error)) as raised, publishing(output, overwrite=overwrite) as staging:  # noqa: PT012
        fill(staging, NEW)
        raise error
    assert raised.value is error
    assert contents(output) == before
    assert names(output.parent) == (["out"] if overwrite else [])


FAULTS: list[tuple[object, str]] = [
    (os, "fsync"),
    (filesystem, "_renameat2"),
    (os, "rename"),
    (Path, "rename"),
    (Path, "mkdir"),
    (os, "open"),
    (os, "scandir"),
]


@pytest.mark.parametrize("renameat2", [True, False])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(("holder", "call"), FAULTS, ids=[call for _, call in FAULTS])
@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
def test_each_call_that_fails_leaves_the_old_state_or_the_new_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    holder: object,
    call: str,
    kind: type[BaseException],
    *,
    overwrite: bool,
    renameat2: bool,
) -> None:
    """Fail the first call, then the second, and so on, until nothing fails any more."""
    if not renameat2:
        monkeypatch.setattr(filesystem, "_renameat2", unsupported)
    real = getattr(holder, call)
    for nth in range(100):
        parent = tmp_path / str(nth)
        parent.mkdir()
        output = parent / "out"
        if overwrite:
            fill(output, OLD)
        before = contents(output)
        calls = 0

        def fail(*args: object, nth: int = nth, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == nth + 1:
                raise kind(errno.EIO, os.strerror(errno.EIO))
            return real(*args, **kwargs)

        failure: BaseException | None = None
        try:
            with publishing(output, overwrite=overwrite) as staging:
                fill(staging, NEW)
                monkeypatch.setattr(holder, call, fail)
        except (OutputError, KeyboardInterrupt) as error:
            failure = error
        finally:
            monkeypatch.setattr(holder, call, real)

        after = contents(output)
        new = dict(sorted(NEW.items()))
        assert after in (before, new)
        assert after == new or failure is not None
        if isinstance(failure, OutputError) and "the old one can't be removed" not in str(failure):
            assert after == before
            assert names(parent) == (["out"] if overwrite else [])
        if calls <= nth:
            assert failure is None
            return
    pytest.fail("the calls never ended")


def unsupported(*_: object) -> None:
    raise UnsupportedRenameError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def test_without_renameat2_the_promises_still_hold(old_output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "_renameat2", unsupported)
    convert(old_output, overwrite=True)
    convert(old_output.parent / "fresh")
    assert contents(old_output) == contents(old_output.parent / "fresh") == dict(sorted(NEW.items()))
    assert names(old_output.parent) == ["fresh", "out"]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, errno.ENOTSUP])
def test_a_system_without_renameat2_is_recognised(output: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    class Renameat2:
        def __call__(self, *_: object) -> int:
            ctypes.set_errno(code)
            return -1

    class Library:
        renameat2 = Renameat2()

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Library)
    convert(output)
    assert contents(output) == dict(sorted(NEW.items()))


def test_a_c_library_without_renameat2_is_recognised(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    convert(output)
    assert contents(output) == dict(sorted(NEW.items()))


@pytest.mark.parametrize("renameat2", [True, False])
def test_an_output_that_appears_meanwhile_is_not_replaced(
    output: Path, monkeypatch: pytest.MonkeyPatch, *, renameat2: bool
) -> None:
    if not renameat2:
        monkeypatch.setattr(filesystem, "_renameat2", unsupported)
    with pytest.raises(OutputExistsError), publishing(output):
        fill(output, OLD)
    assert contents(output) == dict(sorted(OLD.items()))
    assert names(output.parent) == ["out"]


def test_work_that_was_put_into_the_old_output_meanwhile_is_not_removed(old_output: Path) -> None:
    with pytest.raises(OutputExistsError, match=r"thesis\.docx"), publishing(old_output, overwrite=True):
        (old_output / "thesis.docx").write_text("precious")
    assert (old_output / "thesis.docx").read_text() == "precious"


def test_an_old_output_that_went_away_meanwhile_is_no_error(old_output: Path) -> None:
    with publishing(old_output, overwrite=True) as staging:
        fill(staging, NEW)
        for path in old_output.iterdir():
            path.unlink()
        old_output.rmdir()
    assert contents(old_output) == dict(sorted(NEW.items()))


def test_after_a_failed_flush_of_the_parent_that_cannot_be_undone_the_old_output_is_kept(
    old_output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = filesystem._renameat2
    calls = []

    def rename_once(*args: object) -> None:
        calls.append(args)
        if len(calls) > 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(*args)  # type: ignore[arg-type]

    def fail(_: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(filesystem, "_renameat2", rename_once)
    monkeypatch.setattr(publish, "sync_directory", fail)
    with pytest.raises(OutputError, match="the output that it replaced is kept at") as refusal:
        convert(old_output, overwrite=True)
    staging = next(old_output.parent.glob(".out.staging-*"))
    assert contents(old_output) == dict(sorted(NEW.items()))
    assert contents(staging) == dict(sorted(OLD.items()))
    assert str(staging) in str(refusal.value)


# --- rivals and kills --------------------------------------------------------------------------------------------


def run(code: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.PIPE,
        text=True,
    )


HOLD = """
    import sys
    from pathlib import Path
    from converters.publish import publishing
    with publishing(Path(sys.argv[1]), overwrite=True) as staging:
        (staging / "model.safetensors").write_text("held")
        print("ready", flush=True)
        sys.stdin.readline()
"""


def hold(output: Path) -> subprocess.Popen[str]:
    process = run(HOLD, output)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_second_run_is_refused_while_the_first_one_works(output: Path) -> None:
    first = hold(output)
    with pytest.raises(OutputError, match=rf"another run is writing this output: process {first.pid} on"):
        convert(output, overwrite=True)
    first.communicate("go\n")
    assert first.returncode == 0
    assert contents(output) == {"model.safetensors": "held"}
    convert(output, overwrite=True)
    assert names(output.parent) == ["out"]


def test_what_a_killed_run_left_is_removed_by_the_next_one(output: Path) -> None:
    first = hold(output)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert len(names(output.parent)) == 2
    assert not output.exists()
    convert(output)
    assert names(output.parent) == ["out"]


def test_a_run_that_is_interrupted_leaves_nothing(output: Path) -> None:
    first = hold(output)
    first.send_signal(signal.SIGINT)
    first.communicate()
    assert names(output.parent) == []


def test_only_what_is_ours_is_removed(output: Path) -> None:
    token = "0123456789abcdef"
    parent = output.parent
    fill(
        parent,
        {
            f".out.staging-{token}/a": "",
            f".out.replaced-{token}/a": "",
            f".out.staging-x.staging-{token}/a": "",
            ".out.staging-notes/a": "",
            f".other.staging-{token}/a": "",
            f".out.staging-{token[::-1]}": "a file",
            "target/a": "",
        },
    )
    (parent / f".out.staging-{'0' * 16}").symlink_to(parent / "target")
    fill(output, OLD)
    convert(output, overwrite=True)
    assert names(parent) == sorted(
        [
            f".out.staging-x.staging-{token}",
            ".out.staging-notes",
            f".other.staging-{token}",
            f".out.staging-{token[::-1]}",
            f".out.staging-{'0' * 16}",
            "target",
            "out",
        ]
    )
    assert (parent / "target" / "a").exists()


def test_an_old_output_that_a_killed_run_had_moved_aside_is_taken_back(output: Path) -> None:
    fill(output.parent, {f".out.replaced-{'a' * 16}/{name}": content for name, content in OLD.items()})
    with pytest.raises(OutputExistsError):
        convert(output)
    assert contents(output) == dict(sorted(OLD.items()))
    assert names(output.parent) == ["out"]


RACE = """
    import sys, time
    from pathlib import Path
    from converters.errors import OutputError
    from converters.publish import publishing
    while time.time() < float(sys.argv[2]):
        pass
    won = 0
    while won < 20:
        try:
            with publishing(Path(sys.argv[1]), overwrite=True) as staging:
                others = [p for p in staging.parent.iterdir() if ".staging-" in p.name and p != staging]
                assert not others, others
                (staging / "model.safetensors").write_text(sys.argv[3])
                (staging / "config.json").write_text(sys.argv[3])
            won += 1
        except OutputError as error:
            assert "another run" in str(error), error
"""


def test_processes_that_compete_for_one_output_never_mix(output: Path) -> None:
    start = time.time() + 1
    rivals = [run(RACE, output, start, letter) for letter in "ab"]
    for rival in rivals:
        told, _ = rival.communicate(timeout=60)
        assert rival.returncode == 0, told
    written = contents(output)
    assert written is not None
    assert len(set(written.values())) == 1
    assert names(output.parent) == ["out"]


def test_the_lock_is_held_once_and_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with exclusive_lock(path) as held:
        assert held
        with pytest.raises(LockedError, match=f"process {os.getpid()}"), exclusive_lock(path):
            pytest.fail("held twice")
        assert path.exists()
    assert not path.exists()


def test_a_lock_whose_file_was_unlinked_in_between_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our opening and our locking, the last holder unlinks the file and lets go."""
    path = tmp_path / "lock"
    real: Callable[..., None] = filesystem.fcntl.flock
    calls = []

    def flock(descriptor: int, flags: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            path.unlink()
        real(descriptor, flags)

    monkeypatch.setattr(filesystem.fcntl, "flock", flock)
    with exclusive_lock(path) as held:
        assert held
        assert path.exists()
        assert len(calls) == 2


def test_a_file_system_without_locks_removes_nothing_of_others(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    stale = output.parent / f".out.staging-{'0' * 16}"
    stale.mkdir()
    monkeypatch.setattr(filesystem.fcntl, "flock", flock)
    convert(output)
    assert contents(output) == dict(sorted(NEW.items()))
    assert stale.exists()
