"""Each system call of a run in turn: the run is killed there, or the call fails, or does half of what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from tests.crashes.check import CHECKPOINT, CONFIG, OUTPUT, Checked, Row, end_of
from tests.crashes.layer import MUTATING, Fault
from tests.crashes.scene import Scene
from tests.crashes.server import Ended, Server

READ_ERRORS: Final = ("EIO",)
WRITE_ERRORS: Final = ("EIO", "ENOSPC", "EDQUOT")
_REMOVING: Final = ("unlink", "unlinkat", "rmdir")
"""What can't be removed is left."""
_ASKING: Final = ("fstat", "lstat", "newfstatat", "flock")
"""A lock is left where no one can tell whose it is."""
_PARTIAL: Final = ("pwrite", "write", "preadv", "pread", "read")

Call = tuple[str, int, str]
"""The name of a call, its number among those of its name, and the path that it is about."""


def calls_of(checked: Checked, below: str | None = None) -> list[Call]:
    """The calls of an undisturbed run that touch the scene, or what is below a path of it, in their order."""
    checked.begin()
    ended = checked.server.run(checked.words, fault=Fault("none", 1, "EIO", below or under(checked.scene)))
    if ended.code:
        raise AssertionError(f"the undisturbed conversion failed: {ended.errors}")
    counts: dict[str, int] = {}
    found = []
    for name, path in ended.calls:
        counts[name] = counts.get(name, 0) + 1
        found.append((name, counts[name], path))
    return found


def under(scene: Scene) -> str:
    """What all paths of a scene begin with."""
    return str(scene.root)


def kills_at_calls(scene: Scene, server: Server, every: int = 1) -> Row:
    """SIGKILL before and after each call that changes something, in both ways to publish."""
    row = Row("kill -9, at each changing call (layer)")
    for checked, (name, number, path) in _in_turn(both_ways(scene, server), _is_mutating, every):
        for do in ("kill", "kill after"):
            ended = _run(checked, Fault(name, number, do, under(scene)))
            end = end_of(ended, checked.state())
            fault = hit_fault(ended) or checked.broken_by_kill(ended) or checked.broken_by_rerun()
            row.add(f"{do} {name} {number} of {short(scene, path)}", end, fault, ended.seconds)
    return row


def errors_at_calls(scene: Scene, server: Server, every: int = 1) -> list[Row]:
    """Each error at each call, one of them in turn if it is a sample; a row for each call by name."""
    rows: dict[str, Row] = {}
    all_calls = _in_turn(both_ways(scene, server), lambda _: True, every)
    for place, (checked, (name, number, path)) in enumerate(all_calls):
        errors = READ_ERRORS if _is_below(path, scene.source) else WRITE_ERRORS
        for error in errors if every == 1 else [errors[place % len(errors)]]:
            ended = _run(checked, Fault(name, number, error, under(scene)))
            row = rows.setdefault(name, Row(f"errors of {name} (layer)"))
            if fault := hit_fault(ended):
                row.add(f"{error} of {name} {number}", "not tried", fault, ended.seconds)
                continue
            # Threads take turns as they like, so it may have been another call than the one that was meant.
            judge_error(checked, row, ended, f"{error} of {name} {number}", name, ended.hits[0][1])
    return list(rows.values())


def judge_error(checked: Checked, row: Row, ended: Ended, what: str, name: str, path: str) -> None:
    """Count a run that met with an error: at which call, and about which path."""
    scene = checked.scene
    left = name in _REMOVING or (name in _ASKING and path.endswith(".lock"))
    fault = checked.broken_by_error(ended, codes_for(scene, path), left=left)
    end = end_of(ended, checked.state())
    row.add(f"{what}, {short(scene, path)}", end, fault or checked.broken_by_rerun(), ended.seconds)


def codes_for(scene: Scene, path: str) -> set[int]:
    """The exit codes that tell of an error at a path."""
    if path.endswith("in/config.json"):
        return {CHECKPOINT, CONFIG}
    if path == str(scene.root):  # around both
        return {CHECKPOINT, OUTPUT}
    return {CHECKPOINT} if _is_below(path, scene.source) else {OUTPUT}


def halves_of_calls(scene: Scene, server: Server) -> Row:
    """Reads and writes that do half of what they were asked, each time: the same bytes in the end."""
    row = Row("short reads and writes (layer)")
    for checked in both_ways(scene, server):
        for name in _PARTIAL:
            ended = _run(checked, Fault(name, 0, "short", under(scene)))
            if not ended.hits:
                continue
            end = end_of(ended, checked.state())
            fault = checked.broken_by_error(ended, ()) or checked.broken_by_rerun()
            row.add(f"each {name} halved", end, fault, ended.seconds)
    return row


def both_ways(scene: Scene, server: Server) -> tuple[Checked, Checked]:
    """A plain conversion, and one that replaces an old output."""
    return Checked(scene, server, scene.words()), Checked(scene, server, scene.words("--overwrite"), old=True)


def _in_turn(ways: Sequence[Checked], wanted: Callable[[Call], bool], every: int) -> Iterable[tuple[Checked, Call]]:
    """Each so-manieth of the calls of each name, and always the last, which is the odd one."""
    for checked in ways:
        calls = [call for call in calls_of(checked) if wanted(call)]
        totals = {name: number for name, number, _ in calls}
        for call in calls:
            name, number, _ = call
            if number % every == 1 % every or number == totals[name]:
                yield checked, call


def _run(checked: Checked, fault: Fault) -> Ended:
    checked.begin()
    return checked.server.run(checked.words, fault=fault)


def _is_mutating(call: Call) -> bool:
    return call[0] in MUTATING


def _is_below(path: str, directory: object) -> bool:
    return path == str(directory) or path.startswith(f"{directory}/")


def hit_fault(ended: Ended) -> str:
    """What is wrong with the experiment itself, if the call that it disturbs was never made."""
    return "" if ended.hits else "the call was never made, so nothing was tried"


def short(scene: Scene, path: str) -> str:
    """A path, as it is named in a message."""
    return path.removeprefix(f"{scene.root}/")
