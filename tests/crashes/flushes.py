"""The order of flushes, from a trace: each file and folder before the rename, the parent after it and before exit."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.crashes.calls import both_ways
from tests.crashes.check import Row
from tests.crashes.scene import Scene
from tests.crashes.server import Server
from tests.crashes.strace import MUTATING, Traced, traced, why_no_strace

_FLUSHES: Final = ("fsync", "fdatasync")
_WRITES: Final = ("pwrite64", "pwritev", "pwritev2", "write", "ftruncate", "fallocate", "copy_file_range", "sendfile")
_RENAMES: Final = ("rename", "renameat", "renameat2")
_REMOVALS: Final = ("unlink", "unlinkat", "rmdir")


def flush_order(scene: Scene, server: Server) -> Row:
    """Trace a conversion of each kind."""
    row = Row("order of flushes in a trace")
    if why := why_no_strace():
        row.missing = why
        return row
    for checked in both_ways(scene, server):
        checked.begin()
        ended, calls = traced(checked.words, scene.root, (*MUTATING, "exit_group"))
        if ended.code:
            raise AssertionError(f"the undisturbed conversion failed: {ended.errors}")
        files = [name for name, content in scene.references[checked.words].items() if content is not None]
        violations = disorder(calls, scene.output, files)
        row.add("replacing" if checked.old else "plain", checked.state(), "; ".join(violations), ended.seconds)
    return row


def disorder(calls: list[Traced], output: Path, files: list[str]) -> list[str]:
    """What is not flushed when it must be.

    Args:
        calls: of a whole run.
        output: the directory that it made.
        files: all that are in it, by relative path.
    """
    published = [place for place, call in enumerate(calls) if call.name in _RENAMES and call.path == str(output)]
    if len(published) != 1:
        return [f"{len(published)} renames to the output"]
    moment = published[0]
    staging = _source_of(calls[moment], output)
    problems = []
    for name in files:
        path = f"{staging}/{name}"
        written = _last(calls[:moment], _WRITES, path)
        if written is None:
            problems.append(f"{name} is never written")
        elif not _is_flushed(calls[written:moment], path):
            problems.append(f"{name} is not flushed between its last write and the rename")
    for folder in sorted({str((Path(staging) / name).parent) for name in files}):
        made = [
            place for place, call in enumerate(calls[:moment]) if call.creates and str(Path(call.path).parent) == folder
        ]
        if not made or not _is_flushed(calls[made[-1] : moment], folder):
            problems.append(f"{Path(folder).name} is not flushed between its last new file and the rename")
    flushed = [
        place
        for place, call in enumerate(calls)
        if place > moment and call.name in _FLUSHES and call.path == str(output.parent)
    ]
    if not flushed:
        problems.append("the parent is not flushed after the rename")
    removed = [
        place for place, call in enumerate(calls) if place > moment and call.name in _REMOVALS and staging in call.text
    ]
    if flushed and removed and removed[0] < flushed[0]:
        problems.append("the old output is removed before the parent is flushed")
    if any(call.name in _WRITES and call.path.startswith(str(output)) for call in calls[moment:]):
        problems.append("something is written into the output after the rename")
    return problems


def _source_of(rename: Traced, output: Path) -> str:
    """The first of the two paths of a rename."""
    start = rename.text.index(f"{output.parent}/.")
    return rename.text[start : rename.text.index('"', start)]


def _last(calls: list[Traced], names: tuple[str, ...], path: str) -> int | None:
    found = [place for place, call in enumerate(calls) if call.name in names and call.path == path]
    return found[-1] if found else None


def _is_flushed(calls: list[Traced], path: str) -> bool:
    return any(call.name in _FLUSHES and call.path == path and "= 0" in call.text for call in calls)
