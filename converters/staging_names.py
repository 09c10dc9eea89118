"""The names that a run uses beside its output while it works: made, found again, and told from those of other outputs.

An output `NAME` has `.NAME.lock` while a run makes it, `.NAME.staging-TOKEN` for what is not complete yet, and
`.NAME.replaced-TOKEN` for an old output that was moved aside where two directories can't be swapped in one step.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from msgspec import Struct

STAGING: Final = "staging"
REPLACED: Final = "replaced"
_LOCK_END: Final = ".lock"
_TOKEN_DIGITS: Final = 16
_HEX: Final = frozenset("0123456789abcdef")


class Leftover(Struct, frozen=True):
    """A directory with a name of ours.

    Attributes:
        path: where it is.
        output: the output that it belongs to, which need not exist.
        kind: `STAGING` or `REPLACED`.
    """

    path: Path
    output: Path
    kind: str


def new_staging(output: Path) -> Path:
    """A name that no other run has, for what becomes `output`; locks may fail, so chance keeps two runs apart."""
    return _beside(output, f"{STAGING}-{os.urandom(_TOKEN_DIGITS // 2).hex()}")


def replaced_name(output: Path, staging: Path) -> Path:
    """Where the old output goes while `staging` takes its place."""
    return _beside(output, f"{REPLACED}-{staging.name[-_TOKEN_DIGITS:]}")


def lock_name(output: Path) -> Path:
    """The lock file of an output."""
    return _beside(output, "lock")


def output_of_lock(path: Path) -> Path | None:
    """The output whose lock file would have this name; None if none would. Other programs name files so, too."""
    name = path.name.removeprefix(".").removesuffix(_LOCK_END)
    return path.with_name(name) if path.name == f".{name}{_LOCK_END}" and name else None


def leftovers(output: Path, kind: str) -> list[Path]:
    """The directories of this kind that belong to an output, whoever made them.

    Raises:
        OSError: its parent can't be read.
    """
    return [found.path for found in leftovers_in(output.parent) if found.output == output and found.kind == kind]


def leftovers_in(directory: Path) -> list[Leftover]:
    """The staging directories and old outputs in a directory; links and files are never ours.

    Raises:
        OSError: it can't be read.
    """
    with os.scandir(directory) as entries:
        found = [(entry.name, *parsed) for entry in entries if (parsed := _parse(entry))]
    return [Leftover(directory / name, directory / output, kind) for name, output, kind in sorted(found)]


def _parse(entry: os.DirEntry[str]) -> tuple[str, str] | None:
    # From the end: `.a.staging-b.staging-0123456789abcdef` belongs to an output named `a.staging-b`.
    head, token = entry.name[:-_TOKEN_DIGITS], entry.name[-_TOKEN_DIGITS:]
    if not head.startswith(".") or len(token) < _TOKEN_DIGITS or not _HEX.issuperset(token):
        return None
    for kind in (STAGING, REPLACED):
        output = head[1:].removesuffix(f".{kind}-")
        if output and head == f".{output}.{kind}-" and entry.is_dir(follow_symlinks=False):
            return output, kind
    return None


def _beside(output: Path, suffix: str) -> Path:
    return output.parent / f".{output.name}.{suffix}"
