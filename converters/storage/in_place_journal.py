"""A journal that lets files be changed where they lie: whatever interrupts it, the old state can be had back.

The journal is a file in the directory whose files are changed, and holds what they were and what they become. It
appears whole, by a rename, before the first change, and is removed after the last, each step flushed to the disk. So
a directory without a journal is in one state or the other; one with a journal may be between them, and `undo` takes
it back to the old one, as often as it takes. Readers refuse such a directory, see `unfinished.py`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from converters.errors import CheckpointError, OutputError, Problem
from converters.filesystem import sync_directory
from converters.storage.files import (
    close_quietly,
    open_for_reading,
    raise_unwritable,
    read_exactly,
    read_small_file,
    sync_and_close,
    write_exactly,
    write_new_file,
)
from converters.storage.unfinished import JOURNAL
from converters.text import printable

MAX_JOURNAL_NBYTES: Final = 1_000_000_000
"""Bytes: more than the headers of any checkpoint take, twice over."""

_UNFINISHED: Final = f"{JOURNAL}.new"
_PART: Final = f"{JOURNAL}.part"
_VERSION: Final = 1
_BLOCK: Final = 4096


class FileChange(Struct, frozen=True):
    """What becomes of one file.

    Attributes:
        name: of the file, which lies in the directory itself.
        old: what it holds before; None where there is no such file.
        new: what it holds afterwards; None where it is removed.
        is_start: `old` and `new` are only its first bytes, equally many, and the rest stays as it is.
    """

    name: str
    old: bytes | None
    new: bytes | None
    is_start: bool = False


def write_journal(directory: Path, changes: Sequence[FileChange]) -> None:
    """Write down all changes; none may have been made yet.

    Raises:
        OutputError: it can't be written.
    """
    content = _encode(changes)
    if len(content) > MAX_JOURNAL_NBYTES:
        raise OutputError(
            f"the headers are too large to be changed in place: the journal would take {len(content):,} bytes",
            printable(str(directory)),
            "Convert into another directory.",
        )
    write_new_file(directory / _UNFINISHED, content)
    try:
        (directory / _UNFINISHED).rename(directory / JOURNAL)
        sync_directory(directory)
    except OSError as error:
        raise_unwritable(error, directory / JOURNAL)


def apply(directory: Path, changes: Sequence[FileChange]) -> None:
    """Make all changes; the journal must have been written.

    Raises:
        OutputError: a file can't be written.
    """
    for change in changes:
        _put(directory, change, change.new)
    _sync(directory)


def remove_journal(directory: Path) -> None:
    """Remove the journal, and with it the way back.

    Raises:
        OutputError: it can't be removed.
    """
    _remove(directory / JOURNAL)
    _sync(directory)


def undo(directory: Path) -> bool:
    """Take back what an interrupted run has begun; only for the holder of the directory's lock.

    Returns:
        Whether there was anything to take back.

    Raises:
        CheckpointError: the journal is damaged, or files were changed since; nothing is touched then.
        OutputError: a file can't be written.
    """
    for leftover in (directory / _UNFINISHED, directory / _PART):
        if os.path.lexists(leftover):
            _remove(leftover)
    if not os.path.lexists(directory / JOURNAL):
        return False
    where = printable(str(directory / JOURNAL))
    changes = _decode(read_small_file(directory / JOURNAL, MAX_JOURNAL_NBYTES, where), where)
    problems = [problem for change in changes if (problem := _foreign(directory, change)) is not None]
    if problems:
        raise CheckpointError(problems)
    for change in changes:
        _put(directory, change, change.old)
    _sync(directory)
    remove_journal(directory)
    return True


def _put(directory: Path, change: FileChange, content: bytes | None) -> None:
    path = directory / change.name
    if content is None:
        _remove(path)
    elif change.is_start:
        _overwrite_start(path, content)
    else:
        _replace(path, directory / _PART, content)


def _overwrite_start(path: Path, content: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise_unwritable(error, path)
    try:
        write_exactly(descriptor, memoryview(content), 0, path)
    except BaseException:
        close_quietly(descriptor)
        raise
    sync_and_close(descriptor, path)


def _replace(path: Path, part: Path, content: bytes) -> None:
    """Give a file another content in one step, and leave it whom it belongs to."""
    write_new_file(part, content)
    try:
        with suppress(FileNotFoundError):
            status = path.lstat()
            part.chmod(stat.S_IMODE(status.st_mode))
            with suppress(PermissionError):  # only root may give files away
                os.chown(part, status.st_uid, status.st_gid)
        part.rename(path)
    except OSError as error:
        raise_unwritable(error, path)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise_unwritable(error, path)


def _sync(directory: Path) -> None:
    try:
        sync_directory(directory)
    except OSError as error:
        raise_unwritable(error, directory)


def _foreign(directory: Path, change: FileChange) -> Problem | None:
    """Say if a file holds what no step of ours has written: then someone else has changed it since."""
    path = directory / change.name
    where = printable(str(path))
    if not os.path.lexists(path):
        if not change.is_start:
            return None
        return Problem("the file has gone since a conversion in place was interrupted", where, "Put it back.")
    descriptor, identity = open_for_reading(path, where)
    try:
        known = [content for content in (change.old, change.new) if content is not None]
        nbytes = len(known[0]) if change.is_start else identity.nbytes
        if nbytes <= min(identity.nbytes, max(map(len, known))):
            found = bytearray(nbytes)
            read_exactly(descriptor, memoryview(found), 0, where)
            if bytes(found) in known or (change.is_start and _is_mixture(found, known)):
                return None
    finally:
        close_quietly(descriptor)
    hint = "Put the file back as it was, or restore the whole directory and remove the journal."
    return Problem("the file was changed since a conversion in place was interrupted", where, hint)


def _is_mixture(found: bytearray, known: Sequence[bytes]) -> bool:
    """Whether each byte is that of one of these, as a write that was cut off leaves it."""
    for start in range(0, len(found), _BLOCK):
        block = found[start : start + _BLOCK]
        parts = [content[start : start + _BLOCK] for content in known]
        if block not in parts and not all(byte in at for byte, *at in zip(block, *parts, strict=True)):
            return False
    return True


def _encode(changes: Sequence[FileChange]) -> bytes:
    lines = [json.dumps({"weightmap_in_place": _VERSION, "files": len(changes)})]
    for change in changes:
        fields = {"file": change.name, "is_start": change.is_start}
        lines.append(json.dumps({**fields, "old": _to_text(change.old), "new": _to_text(change.new)}))
    content = "".join(f"{line}\n" for line in lines).encode()
    return content + json.dumps({"sha256": hashlib.sha256(content).hexdigest()}).encode() + b"\n"


def _decode(content: bytes, where: str) -> list[FileChange]:
    body, _, last = content.rstrip(b"\n").rpartition(b"\n")
    body += b"\n"
    try:
        _expect(json.loads(last), {"sha256": hashlib.sha256(body).hexdigest()})
        first, *rest = (json.loads(line) for line in body.splitlines())
        _expect(first, {"weightmap_in_place": _VERSION, "files": len(rest)})
        return list(_changes(rest))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"the journal of an interrupted conversion in place is damaged: {printable(str(error))}",
            where,
            "Restore the directory from where you got it; nothing in it was touched now.",
        ) from None


def _expect(found: object, expected: object) -> None:
    if found != expected:
        raise ValueError(f"expected {expected}, got {found}")


def _changes(lines: Sequence[dict[str, Any]]) -> Iterator[FileChange]:
    for line in lines:
        name = line["file"]
        # The journal may come with a checkpoint from a stranger.
        if not name or name in {".", ".."} or "/" in name or "\0" in name:
            raise ValueError(f"'{name}' is not the name of a file here")
        name.encode()  # a lone surrogate is a ValueError, too
        change = FileChange(name, _from_text(line["old"]), _from_text(line["new"]), line["is_start"])
        sizes = {None if content is None else len(content) for content in (change.old, change.new)}
        if sizes == {None} or (change.is_start and (None in sizes or len(sizes) > 1)):
            raise ValueError(f"{name}: what it was and what it becomes don't fit each other")
        yield change


def _to_text(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


def _from_text(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text, validate=True)
