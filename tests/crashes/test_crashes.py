"""A sample of every experiment: whatever happens to a conversion, its output is complete and right, or not there."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crashes.__main__ import table
from tests.crashes.check import Checked, Row
from tests.crashes.disks import why_no_ext4
from tests.crashes.experiments import EXPERIMENTS, QUICK
from tests.crashes.flushes import disorder
from tests.crashes.layer import Fault
from tests.crashes.power import loses_unflushed
from tests.crashes.scene import ABSENT, COMPLETE, OLD, Scene, scene
from tests.crashes.server import Ended, Server
from tests.crashes.strace import MUTATING, traced, why_no_strace


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as started:
        yield started


@pytest.fixture
def there() -> Iterator[Scene]:
    with scene() as made:
        yield made


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_promise_is_broken(name: str, there: Scene, server: Server) -> None:
    rows = EXPERIMENTS[name](there, server, QUICK)
    assert [violation for row in rows for violation in row.violations] == []
    if not any(row.tried for row in rows):
        pytest.skip("; ".join(f"{row.kind}: {row.missing}" for row in rows))
    assert all(row.tried or row.missing for row in rows)


def test_the_layer_sees_all_that_matters(there: Scene, server: Server) -> None:
    """If weightmap called the system by another way, the layer would disturb nothing, and no one would know."""
    there.clear()
    ended = server.run(there.words(), fault=Fault("none", 1, "EIO", str(there.root)))
    seen = {name for name, _ in ended.calls}
    assert {"open", "create", "mkdir", "preadv", "pwrite", "ftruncate", "fsync", "close", "renameat2"} <= seen
    created = {Path(path).name for name, path in ended.calls if name == "create"}
    assert {path.name for path in there.output.iterdir()} <= created


def test_the_layer_disturbs_one_call(there: Scene, server: Server) -> None:
    there.clear()
    ended = server.run(there.words(), fault=Fault("fsync", 2, "EIO", str(there.root)))
    assert ended.code == 8
    assert [name for name, _ in ended.hits] == ["fsync"]
    assert "Input/output error" in ended.errors


def test_a_power_cut_loses_what_was_not_flushed(there: Scene) -> None:
    """Else a cut could show nothing."""
    if why := why_no_ext4(there.root):
        pytest.skip(why)
    assert loses_unflushed(there)


# --- what is broken is told --------------------------------------------------------------------------------------


@pytest.fixture
def checked(there: Scene, server: Server) -> Checked:
    watch = Checked(there, server, there.words())
    watch.begin()
    return watch


KILLED = Ended(-9, "", "", 0.1)
WELL = Ended(0, "", "", 0.1)
FULL = Ended(8, "", "Error: the disk is full", 0.1)


def test_absent_and_complete_outputs_are_right(checked: Checked) -> None:
    assert checked.state() == ABSENT
    assert checked.broken_by_kill(KILLED) == ""
    assert checked.broken_by_error(FULL, {8}) == ""
    assert checked.server.run(checked.words).code == 0
    assert checked.state() == COMPLETE
    assert checked.broken_by_kill(KILLED) == checked.broken_by_kill(WELL) == ""
    assert checked.broken_by_rerun() == ""


@pytest.mark.parametrize("damage", ["missing", "changed", "truncated", "more"])
def test_an_output_that_is_neither_is_told(damage: str, checked: Checked) -> None:
    checked.server.run(checked.words)
    shard = sorted(checked.scene.output.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    elif damage == "more":
        (checked.scene.output / "more.json").write_text("{}")
    else:
        shard.write_bytes(content[:-1] + (bytes([content[-1] ^ 1]) if damage == "changed" else b""))
    for fault in (checked.broken_by_kill(KILLED), checked.broken_by_kill(WELL), checked.broken_by_error(WELL, ())):
        assert "neither old nor complete" in fault
    assert "neither old nor complete" in checked.broken_by_signal(Ended(130, "", "", 0.1), 130)
    assert "the complete output was not kept" not in checked.broken_by_rerun()


def test_an_old_output_must_not_be_gone(there: Scene, server: Server) -> None:
    watch = Checked(there, server, there.words("--overwrite"), old=True)
    watch.begin()
    assert watch.state() == OLD
    assert watch.broken_by_kill(KILLED) == ""
    assert "is old" in watch.broken_by_kill(WELL)
    there.clear()
    assert "is absent" in watch.broken_by_kill(KILLED)
    assert "is absent" in watch.broken_by_error(FULL, {8})


def test_other_broken_promises_are_told(checked: Checked) -> None:
    def fault(code: int = 8, errors: str = "Error: the disk is full") -> str:
        return checked.broken_by_error(Ended(code, "", errors, 0.1), {8})

    assert fault() == ""
    assert "exit code 1, not [8]" in fault(1)
    assert "ended well, and the output is absent" in fault(0)
    assert "a traceback" in fault(errors="Error: this is a mistake in weightmap")
    assert "not one clear message" in fault(errors="something")
    assert "exit code 1, not 130" in checked.broken_by_signal(Ended(1, "", "", 0.1), 130)
    assert "ended with 7" in checked.broken_by_kill(Ended(7, "", "Error", 0.1))
    lock = checked.scene.outputs / ".out.lock"
    lock.write_text("")
    assert "left ['.out.lock']" in fault()
    assert "left ['.out.lock']" in checked.broken_by_signal(Ended(130, "", "", 0.1), 130)
    assert checked.broken_by_kill(KILLED) == ""
    lock.rename(checked.scene.outputs / "tmp")
    assert "left ['tmp']" in checked.broken_by_kill(KILLED)
    assert "the next run left ['tmp']" in checked.broken_by_rerun()
    (checked.scene.source / "config.json").write_text("{}")
    assert "the source was touched" in checked.broken_by_kill(KILLED)
    checked.scene.clear()
    assert "the next run ended with" in checked.broken_by_rerun()


def test_an_output_behind_an_error_is_told(checked: Checked) -> None:
    checked.server.run(checked.words)
    assert "ended with an error, and the output is complete" in checked.broken_by_error(FULL, {8})


def test_each_missing_flush_is_told(there: Scene, server: Server) -> None:
    """A trace without one of its flushes is never in order."""
    if why := why_no_strace():
        pytest.skip(why)
    watch = Checked(there, server, there.words("--overwrite"), old=True)
    watch.begin()
    ended, calls = traced(watch.words, there.root, (*MUTATING, "exit_group"))
    assert ended.code == 0
    files = [name for name, content in there.references[watch.words].items() if content is not None]
    assert disorder(calls, there.output, files) == []
    # The journal of finished shards is flushed, too, and removed before the end.
    flushed = {call.path for call in calls if call.name == "fsync" and not call.path.endswith("journal")}
    assert len(flushed) >= len(files) + 2
    for path in flushed:
        assert disorder([call for call in calls if (call.name, call.path) != ("fsync", path)], there.output, files)
    moment = next(place for place, call in enumerate(calls) if call.name == "renameat2")
    assert disorder([calls[moment], *calls[:moment], *calls[moment + 1 :]], there.output, files)


def test_the_table_counts_and_names_each_violation() -> None:
    row = Row("kind")
    row.add("one", "absent", "", 1.0)
    row.add("two", "complete", "it is wrong", 2.5)
    lines = table([row, Row("other", missing=f"because of {errno.EPERM}")])
    assert lines[1].split() == ["kind", "2", "1", "2.50", "s", "1", "absent,", "1", "complete"]
    assert lines[3].split()[:3] == ["all", "2", "1"]
    assert "not tried: other: because of 1" in lines
    assert "violation: kind: two: it is wrong" in lines
