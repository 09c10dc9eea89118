"""Which shards of a staging directory are finished, so that a run after a kill keeps what is proved good.

The journal lies in the staging directory: JSON lines, the first of which says what job it is of, and each other one of
a finished shard, added once that shard is flushed to the disk. Nothing in it is believed without a look: a shard counts
only if the plan has it and its bytes have the digests that its line says, and all of them only if the job is the same
in every respect.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from msgspec import Struct, field
from msgspec.structs import replace

import converters
from converters.digests import digest_of
from converters.errors import CheckpointError
from converters.filesystem import remove_tree, sync_directory
from converters.plan import Plan
from converters.storage.base import CheckpointReader
from converters.storage.file_digests import FileDigests, digest_file
from converters.storage.files import (
    close_quietly,
    open_for_reading,
    raise_unwritable,
    read_exactly,
    read_small_file,
    write_exactly,
    write_new_file,
)
from converters.text import printable

JOURNAL: Final = ".weightmap-journal"
VERSION: Final = 1
MAX_NBYTES: Final = 1 << 30
"""Bytes: a line takes about a hundred for each tensor."""

_HEAD_NBYTES: Final = 64 << 10


class Job(Struct, frozen=True):
    """What a run does, as far as the bytes of its shards depend on it.

    Attributes:
        plan: the digest of the plan.
        digest: the algorithm of the digests.
        inputs: for each file of the source, its size, times and inode (or version in a store), and the digest of its
            first 64 KiB, which hold the header.
        shards: for each file that the plan makes, the names of the tensors in it.
        weightmap: the version of this program.
    """

    plan: str
    digest: str
    inputs: Mapping[str, str]
    shards: Mapping[str, frozenset[str]] = field(default_factory=dict)
    weightmap: str = converters.__version__

    def difference(self, line: Mapping[str, Any]) -> str | None:
        """How the job of a journal's first line differs from this one; None if it doesn't."""
        if line.get("weightmap_journal") != VERSION or line.get("weightmap") != self.weightmap:
            return "another version of weightmap wrote it"
        if line.get("inputs") != dict(self.inputs):
            return "the source has changed since"
        if line.get("plan") != self.plan:
            return "it is of another spec, or of other options"
        return None if line.get("digest") == self.digest else "its digests are of another kind"

    def to_json(self) -> dict[str, Any]:
        """The first line of a journal."""
        return {
            "weightmap_journal": VERSION,
            "weightmap": self.weightmap,
            "plan": self.plan,
            "digest": self.digest,
            "inputs": dict(self.inputs),
        }


def job_of(plan: Plan, reader: CheckpointReader, digest: str) -> Job:
    """The job of a plan, with this source.

    Raises:
        CheckpointError: the source can't be read.
    """
    inputs = {}
    for name, file in reader.files.items():
        head = memoryview(bytearray(min(_HEAD_NBYTES, file.nbytes)))
        file.read_into(0, head)
        inputs[name] = f"{file.identity}, begins with {digest_of([head])}"
    shards = {shard.filename: frozenset(info.name for info in shard.tensors) for shard in plan.shards}
    return Job(digest_of([plan.to_json().encode()]), digest, inputs, shards)


class Journal:
    """The journal of a staging directory, open for more.

    Attributes:
        kept: the shards that an earlier run finished, by file name.
        afresh: why those of an earlier run were thrown away; None if they weren't.
    """

    def __init__(
        self, staging: Path, kept: Mapping[str, FileDigests], nbytes: int, afresh: str | None, *, sync: bool
    ) -> None:
        """See `open_journal`; `nbytes` is the length of what is kept of the file."""
        self._sync = sync
        self._path = staging / JOURNAL
        self._position = nbytes
        self.kept = kept
        self.afresh = afresh

    def add(self, found: FileDigests) -> None:
        """Note a shard that is flushed to the disk.

        Raises:
            OutputError: the journal can't be written.
        """
        line = _line(found.to_json())
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise_unwritable(error, self._path)
        try:
            write_exactly(descriptor, memoryview(line), self._position, self._path)
            if self._sync:
                os.fsync(descriptor)
        except OSError as error:
            raise_unwritable(error, self._path)
        finally:
            close_quietly(descriptor)
        self._position += len(line)

    def remove(self) -> None:
        """Remove the journal: what is in the directory is complete, and will get its name.

        Raises:
            OutputError: it can't be removed.
        """
        try:
            self._path.unlink()
        except OSError as error:
            raise_unwritable(error, self._path)


def finished_shards(staging: Path, job: Job) -> int:
    """How many finished shards of this very job a staging directory has, by its journal."""
    try:
        lines, _ = _read(staging)
    except (CheckpointError, ValueError):
        return 0
    return len(lines) - 1 if lines and job.difference(lines[0]) is None else 0


def why_useless(staging: Path, job: Job) -> str | None:
    """Why the finished shards of a staging directory are of no use to this job; None if they are, or if it has none."""
    if not os.path.lexists(staging / JOURNAL):
        return None
    try:
        lines, _ = _read(staging)
    except (CheckpointError, ValueError) as error:
        return f"its journal can't be read: {error}"
    return job.difference(lines[0]) if len(lines) > 1 else None


def open_journal(staging: Path, job: Job, *, sync: bool = True) -> Journal:
    """Take up the journal of a staging directory, with all shards that are proved good; or start one.

    Whatever doesn't belong to them is removed. Any mismatch starts afresh.

    Raises:
        OutputError: the directory can't be written.
    """
    if not os.path.lexists(staging / JOURNAL):
        return _start(staging, job, None, sync=sync)
    kept: dict[str, FileDigests] = {}
    nbytes = 0
    try:
        lines, nbytes = _read(staging)
        difference = job.difference(lines[0]) if lines else "its journal is empty"
        kept = {} if difference else {line["file"]: FileDigests.from_json(line) for line in lines[1:]}
        difference = difference or _damage(staging, kept, job)
    except (CheckpointError, ValueError, KeyError, TypeError, AttributeError) as error:
        difference = f"its journal can't be read: {error}"
    if difference is not None:
        return _start(staging, job, difference, sync=sync)
    _remove_all_but(staging, {JOURNAL, *kept})
    try:
        os.truncate(staging / JOURNAL, nbytes)
    except OSError as error:
        raise_unwritable(error, staging / JOURNAL)
    return Journal(staging, kept, nbytes, None, sync=sync)


def _start(staging: Path, job: Job, afresh: str | None, *, sync: bool) -> Journal:
    _remove_all_but(staging, set())
    line = _line(job.to_json())
    write_new_file(staging / JOURNAL, line, sync=sync)
    try:
        if sync:
            sync_directory(staging)
    except OSError as error:
        raise_unwritable(error, staging)
    return Journal(staging, {}, len(line), afresh, sync=sync)


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n"


def _read(staging: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of the journal that are whole, and their bytes; the last one may have been cut off by a kill."""
    path = staging / JOURNAL
    content = read_small_file(path, MAX_NBYTES, printable(str(path)))
    whole = content[: content.rfind(b"\n") + 1]
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
    except RecursionError:
        raise ValueError("a line is nested too deeply") from None
    if not all(isinstance(line, dict) for line in lines):
        raise ValueError("a line is no JSON object")
    return lines, len(whole)


def _damage(staging: Path, kept: Mapping[str, FileDigests], job: Job) -> str | None:
    """What is wrong with the shards that should be there; None if nothing is."""
    for name, expected in kept.items():
        if frozenset(extent.name for extent in expected.tensors) != job.shards.get(name):
            return f"its journal says of {printable(name)} what isn't in the plan"
        path = staging / name
        where = printable(str(path))
        try:
            descriptor, identity = open_for_reading(path, where)
        except CheckpointError as error:
            return str(error)
        try:
            if identity.nbytes != expected.nbytes:
                return f"{printable(name)} has {identity.nbytes:,} bytes, not {expected.nbytes:,}"
            found, _ = digest_file(
                name,
                expected.nbytes,
                lambda position, buffer: read_exactly(descriptor, buffer, position, where),  # noqa: B023 - used here
                [replace(extent, digest="") for extent in expected.tensors],
                job.digest,
            )
        finally:
            close_quietly(descriptor)
        if found != expected:
            return f"{printable(name)} doesn't have the bytes that were written"
    return None


def _remove_all_but(staging: Path, kept: set[str]) -> None:
    try:
        for path in sorted(staging.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.relative_to(staging).as_posix() not in kept:
                remove_tree(path)
    except OSError as error:
        raise_unwritable(error, staging)
