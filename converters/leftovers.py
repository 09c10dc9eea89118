"""What killed runs left beside their outputs: found, told from what a living run holds, removed or put back.

Nothing is touched but under the lock of its output. An old output that was moved aside for a new one that never came
is put back: it is the only copy then.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from enum import Enum
from itertools import groupby
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from converters.errors import CheckpointError, OutputError, Problem
from converters.filesystem import (
    LockedError,
    UnsupportedRenameError,
    check_unlocked,
    exclusive_lock,
    remove_tree,
    rename_noreplace,
    sync_directory,
)
from converters.journal import JOURNAL
from converters.journal import MAX_NBYTES as JOURNAL_LIMIT
from converters.staging_names import REPLACED, STAGING, leftovers_in, lock_name, new_staging, output_of_lock
from converters.storage.files import read_small_file
from converters.text import printable

LOCK: Final = "lock"
# Other programs have files called .NAME.lock, too; ours say who made them.
_LOCK_TEXT: Final = re.compile(r"process [0-9]+ on \S+")
_LOCK_LIMIT: Final = 1000
_BLOCK_NBYTES: Final = 512  # of st_blocks, whatever the file system's own are
_NO_LOCKS: Final = "this file system has no locks, so nobody can tell whether a run uses it"


class Action(Enum):
    """What is done with something that was found."""

    REMOVE = "remove"
    RESTORE = "restore"
    KEEP = "keep"


class Finished(Struct, frozen=True):
    """What the journal of a staging directory says is finished."""

    shards: int
    nbytes: int


class Found(Struct, frozen=True):
    """Something that a run left, or uses now.

    Attributes:
        path: where it is.
        output: the output that it belongs to.
        kind: `STAGING`, `REPLACED` or `LOCK`.
        nbytes: bytes that it takes on the disk.
        modified: when something in it was last written, in seconds since 1970.
        finished: of a staging directory with a journal: `convert --resume` can go on from there.
        holder: who holds the lock of the output now; empty if nobody does.
        action: what can be done with it.
        why: why it is kept, if it is.
    """

    path: Path
    output: Path
    kind: str
    nbytes: int
    modified: float
    finished: Finished | None = None
    holder: str = ""
    action: Action = Action.KEEP
    why: str = ""


class Cleaned(Struct, frozen=True):
    """What became of what was found.

    Attributes:
        done: what was removed or put back, as its `action` says.
        kept: what was left alone.
        problems: what failed.
    """

    done: tuple[Found, ...] = ()
    kept: tuple[Found, ...] = ()
    problems: tuple[Problem, ...] = ()


def find(directory: Path) -> list[Found]:
    """Find what runs left in a directory, and beside it for an output of its own name; changes nothing.

    Args:
        directory: one that holds outputs, or an output, which need not exist.

    Raises:
        OutputError: it can't be read, or neither it nor its parent exists.
    """
    beside, name = _parent_and_name(directory)
    if not os.path.lexists(directory) and not beside.is_dir():
        what = f"the directory {printable(str(beside))} doesn't exist"
        raise OutputError(what, printable(str(directory)), "Correct the path.")
    try:
        names = _names_in(directory) if os.path.lexists(directory) else []
        # A parent such as /home may be closed to us, while what is in the directory is ours.
        if name and os.access(beside, os.R_OK):
            names += [each for each in _names_in(beside) if each[1] == beside / name]
    except OSError as error:
        raise OutputError(f"can't be read: {error.strerror or error}", printable(str(error.filename))) from error
    found = []
    for output, group in groupby(sorted(names, key=lambda each: (each[1], each[2], each[0])), lambda each: each[1]):
        found += _judged(output, [_measured(*each) for each in group])
    return found


def clean(found: Sequence[Found]) -> Cleaned:
    """Remove what nobody needs and put back what is the only copy, each output under its lock."""
    cleaned = Cleaned()
    for output, group in groupby(found, lambda each: each.output):
        cleaned = _added(cleaned, _clean(output, list(group)))
    return cleaned


def _clean(output: Path, found: list[Found]) -> Cleaned:
    lock = lock_name(output)
    try:
        with exclusive_lock(lock) as certain:
            if not certain:
                return Cleaned(kept=tuple(_kept(found, _NO_LOCKS)))
            # Again, since another run may have cleaned up or published in between.
            now = [each for each in _names_in(output.parent) if each[1] == output and each[2] != LOCK]
            cleaned = _act(_decided(output, [_measured(*each) for each in sorted(now)]))
    except LockedError as error:
        return Cleaned(kept=tuple(_kept(found, "", str(error))))
    except OSError as error:
        return Cleaned(problems=(_problem(error, lock),))
    # The last holder of a lock removes its file.
    locks = [replace(each, action=Action.REMOVE) for each in found if each.kind == LOCK]
    return _added(cleaned, Cleaned(done=tuple(each for each in locks if not os.path.lexists(each.path))))


def _act(found: Iterable[Found]) -> Cleaned:
    """Carry out what was decided; only for the holder of the lock."""
    cleaned = Cleaned()
    for each in found:
        try:
            match each.action:
                case Action.REMOVE:
                    _remove(each)
                case Action.RESTORE:
                    _restore(each)
                case Action.KEEP:
                    cleaned = _added(cleaned, Cleaned(kept=(each,)))
                    continue
        except OSError as error:
            cleaned = _added(cleaned, Cleaned(problems=(_problem(error, each.path),)))
        else:
            cleaned = _added(cleaned, Cleaned(done=(each,)))
    return cleaned


def _remove(found: Found) -> None:
    path = found.path
    if found.kind == REPLACED:
        # Half of it must not be put back by the next run, if this one is killed; a staging directory never is.
        path = path.rename(new_staging(found.output))
    remove_tree(path)


def _restore(found: Found) -> None:
    try:
        rename_noreplace(found.path, found.output)
    except UnsupportedRenameError:
        found.path.rename(found.output)
    sync_directory(found.output.parent)


def _names_in(directory: Path) -> list[tuple[Path, Path, str]]:
    """What has a name of ours in a directory: its path, its output and its kind."""
    found = [(each.path, each.output, each.kind) for each in leftovers_in(directory)]
    outputs = {output for _, output, _ in found}
    with os.scandir(directory) as entries:
        paths = [directory / entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    for path in paths:
        output = output_of_lock(path)
        if output is not None and (output in outputs or _is_lock(path)):
            found.append((path, output, LOCK))
    return found


def _is_lock(path: Path) -> bool:
    try:
        text = read_small_file(path, _LOCK_LIMIT, "").decode("utf-8", "replace")
    except CheckpointError:
        return False
    return _LOCK_TEXT.fullmatch(text) is not None


def _measured(path: Path, output: Path, kind: str) -> Found:
    nbytes, modified = 0, 0.0
    with suppress(OSError):  # a living run may have renamed it meanwhile
        modified = path.lstat().st_mtime
    for status in _statuses(path):
        nbytes += status.st_blocks * _BLOCK_NBYTES
        modified = max(modified, status.st_mtime)
    finished = _read_journal(path / JOURNAL) if kind == STAGING else None
    return Found(path, output, kind, nbytes, modified, finished)


def _statuses(path: Path) -> Iterator[os.stat_result]:
    """What the system says of each file below a path; what can't be looked at, or goes away meanwhile, is left out."""
    for folder, _, files in os.walk(path):
        for name in files:
            with suppress(OSError):
                yield Path(folder, name).lstat()


def _read_journal(path: Path) -> Finished | None:
    """Count what a journal says, which a kill may have cut anywhere; whether it is true is for `--resume` to check."""
    try:
        lines = read_small_file(path, JOURNAL_LIMIT, "").splitlines()
    except CheckpointError:
        return None
    shards: dict[str, int] = {}
    for line in lines[1:]:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and isinstance(file := entry.get("file"), str):
            nbytes = entry.get("nbytes")
            shards[file] = nbytes if isinstance(nbytes, int) else 0
    return Finished(len(shards), sum(shards.values()))


def _judged(output: Path, found: list[Found]) -> list[Found]:
    """Say what can be done with what belongs to an output, without its lock."""
    try:
        if not check_unlocked(lock_name(output)):
            return _kept(found, _NO_LOCKS)
    except LockedError as error:
        return _kept(found, "", str(error))
    except OSError as error:
        return _kept(found, f"its lock can't be opened: {error.strerror or error}")
    return _decided(output, found)


def _decided(output: Path, found: list[Found]) -> list[Found]:
    """Say what can be done with what belongs to an output, if nobody holds its lock."""
    old = [each for each in found if each.kind == REPLACED]
    if os.path.lexists(output) or not old:
        return [replace(each, action=Action.REMOVE) for each in found]
    if len(old) == 1:
        return [replace(each, action=Action.RESTORE if each in old else Action.REMOVE) for each in found]
    why = f"there are {len(old)} of them, and no {printable(output.name)}: rename the one that you want"
    return [replace(each, why=why) if each in old else replace(each, action=Action.REMOVE) for each in found]


def _kept(found: Iterable[Found], why: str, holder: str = "") -> list[Found]:
    return [replace(each, action=Action.KEEP, why=why, holder=holder) for each in found]


def _added(first: Cleaned, second: Cleaned) -> Cleaned:
    return Cleaned(first.done + second.done, first.kept + second.kept, first.problems + second.problems)


def _problem(error: OSError, path: Path) -> Problem:
    return Problem(f"can't be removed or put back: {error.strerror or error}", printable(str(path)))


def _parent_and_name(directory: Path) -> tuple[Path, str]:
    if directory.name in {"", ".."}:  # `.` has no name of its own
        return directory / "..", directory.resolve().name
    return directory.parent, directory.name
