"""Each system call that a whole process makes, in turn, disturbed by `strace`: killed, failing, or interrupted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from tests.crashes.calls import both_ways, judge_error, short
from tests.crashes.check import Checked, Row, end_of
from tests.crashes.scene import Scene
from tests.crashes.server import Server
from tests.crashes.strace import MUTATING, READING, Traced, traced, why_no_strace

_ERRORS: Final = ("EIO", "ENOSPC", "EDQUOT")
_FOLDER: Final = "O_DIRECTORY"
_INTERRUPTIBLE: Final = ("openat", "read", "pread64", "preadv2", "pwrite64", "write", "fsync", "ftruncate", "flock")


def kills_by_strace(scene: Scene, server: Server, every: int = 1) -> Row:
    """SIGKILL on entering each call that changes something below the outputs."""
    row = Row("kill -9, at each changing call (strace)")
    if why := why_no_strace():
        row.missing = why
        return row
    for checked in _ways(scene, server, every):
        for call, follow in _each(checked, MUTATING, every):
            if not call.path.startswith(str(scene.outputs)) or (call.name == "openat" and not call.creates):
                continue
            checked.begin()
            ended, calls = traced(
                checked.words,
                scene.root,
                (call.name,),
                inject=f"{call.name}:signal=KILL:when={call.number}",
                follow=follow,
            )
            end = end_of(ended, checked.state())
            fault = checked.broken_by_kill(ended) or checked.broken_by_rerun()
            where = short(scene, calls[-1].path) if calls else "nothing"
            row.add(f"{call.name} {call.number} of {where}", end, fault, ended.seconds)
    return row


def errors_by_strace(scene: Scene, server: Server, every: int = 1) -> list[Row]:
    """An error at each call that touches the scene, writes with three errors in turn; a row for each call by name."""
    if why := why_no_strace():
        return [Row("errors (strace)", missing=why)]
    rows: dict[str, Row] = {}
    for checked in _ways(scene, server, every):
        for place, (call, follow) in enumerate(_each(checked, tuple(dict.fromkeys((*MUTATING, *READING))), every)):
            error = _ERRORS[0] if call.path.startswith(str(scene.source)) else _ERRORS[place % len(_ERRORS)]
            row = rows.setdefault(call.name, Row(f"errors of {call.name} (strace)"))
            _inject(checked, row, call, error, follow=follow)
    return list(rows.values())


def interruptions_by_strace(scene: Scene, server: Server, every: int = 1) -> Row:
    """EINTR at each call that a signal may interrupt: the same bytes in the end."""
    row = Row("interrupted calls (strace)")
    if why := why_no_strace():
        row.missing = why
        return row
    checked, _ = both_ways(scene, server)
    for call, follow in _each(checked, _INTERRUPTIBLE, every):
        if _FOLDER not in call.text:  # Python doesn't try these again, and local disks don't interrupt them
            _inject(checked, row, call, "EINTR", follow=follow)
    return row


def _ways(scene: Scene, server: Server, every: int) -> Sequence[Checked]:
    """Both ways to publish; for a sample the one that makes all the calls of the other, too."""
    ways = both_ways(scene, server)
    return ways if every == 1 else ways[1:]


def _inject(checked: Checked, row: Row, call: Traced, error: str, *, follow: bool) -> None:
    checked.begin()
    inject = f"{call.name}:error={error}:when={call.number}"
    ended, calls = traced(checked.words, checked.scene.root, (call.name,), inject=inject, follow=follow)
    hits = [each for each in calls if each.hit and each.path]
    if not hits:
        row.missing = "some runs made their calls in another order, and were not disturbed"
        return
    what = f"{error} of {call.name} {call.number}"
    path = hits[0].path
    if error == "EINTR":
        fault = checked.broken_by_error(ended, ()) or checked.broken_by_rerun()
        row.add(f"{what}, {short(checked.scene, path)}", end_of(ended, checked.state()), fault, ended.seconds)
        return
    judge_error(checked, row, ended, what, call.name, path)


def _each(checked: Checked, names: tuple[str, ...], every: int) -> Iterator[tuple[Traced, bool]]:
    """Each so-manieth call of each name that touches the scene, of the first thread and of the others.

    strace counts calls by thread, so the first thread is traced alone; then all of them are, and those calls are meant
    whose numbers the first thread doesn't reach. What is left out so, the layer within the process disturbs.
    """
    reached: dict[str, int] = {}
    for follow in (False, True):
        checked.begin()
        ended, calls = traced(checked.words, checked.scene.root, names, follow=follow)
        if ended.code:
            raise AssertionError(f"the undisturbed conversion failed: {ended.errors}")
        chosen = {
            (call.name, call.number): call
            for call in calls
            if call.path.startswith(f"{checked.scene.root}/") and call.number > reached.get(call.name, 0)
        }
        if not follow:
            reached = {call.name: call.number for call in calls}
        by_name: dict[str, list[Traced]] = {}
        for call in chosen.values():
            by_name.setdefault(call.name, []).append(call)
        for some in by_name.values():
            for call in some[::every]:
                yield call, follow
