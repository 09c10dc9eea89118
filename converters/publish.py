"""An output directory that appears whole or not at all, and survives a power cut once success is reported.

Everything is written into a staging directory beside the output, flushed to the disk, and renamed. The promises:

- The output is absent (or the old one, untouched) until the new one is complete, and complete ever after.
- After any exception nothing is left beside the output. A kill leaves a staging directory, which the next run removes.
- Two runs never work on one output at the same time, where the file system has locks.

They are weaker where the file system can't rename without replacing, or swap (`renameat2`; nearly all of Linux can):
then an empty directory that appears at the last moment is replaced, and a kill in the middle of `overwrite` can leave
the old output under the name `.NAME.replaced-*`, from where the next run takes it back.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from converters.errors import OutputError, OutputExistsError
from converters.filesystem import (
    LockedError,
    UnsupportedRenameError,
    exchange,
    exclusive_lock,
    remove_tree,
    rename_noreplace,
    sync_directory,
    sync_tree,
)
from converters.output_checks import check_inputs_apart, check_replaceable, locate
from converters.storage.files import raise_unwritable
from converters.text import format_nbytes, printable

_STAGING: Final = "staging-"
_REPLACED: Final = "replaced-"
_TOKEN_DIGITS: Final = 16
_HEX: Final = frozenset("0123456789abcdef")


@contextmanager
def publishing(output: Path, *, overwrite: bool = False, inputs: Sequence[Path] = ()) -> Iterator[Path]:
    """Give a staging directory to write into; when the block ends well, it becomes `output`.

    Files written by `SafetensorsWriter` are flushed to the disk already; all others are flushed here.

    Args:
        output: the directory to make; its parent must exist.
        overwrite: replace a directory that is there, if it is empty or a checkpoint.
        inputs: files and directories that are read meanwhile; the output must be apart from them.

    Raises:
        OutputExistsError: something is at `output`, and may not be replaced.
        OutputError: `output` can't be made there, another run is making it, or the disk failed.
    """
    output = locate(output)
    check_inputs_apart(output, inputs)
    if not overwrite:  # else another run may be removing what it has just replaced, so look only under the lock
        check_replaceable(output, overwrite=False)
    staging = _beside(output, _STAGING + secrets.token_hex(_TOKEN_DIGITS // 2))
    with ExitStack() as lock:
        with _reported_for(output):
            if lock.enter_context(exclusive_lock(_beside(output, "lock"))):
                _clean_up_after_kill(output)
        # Again: another run may just have finished, or a killed one's old output was taken back.
        check_replaceable(output, overwrite=overwrite)
        try:
            with _reported_for(staging):
                staging.mkdir(mode=0o777)
            yield staging
            with _reported_for(output):
                sync_tree(staging)
                _publish(staging, output, overwrite=overwrite)
        except _OldOutputKeptError:
            raise
        except BaseException:
            # What failed is what the caller needs to hear of, not a file that can't be removed after it.
            with suppress(OSError):
                remove_tree(staging)
            raise
        _remove_old(staging)


def check_free_space(directory: Path, needed_nbytes: int) -> None:
    """Refuse to begin what can't be finished.

    Args:
        directory: an existing directory on the disk that will be written.
        needed_nbytes: bytes that will be written.

    Raises:
        OutputError: the disk has fewer bytes free.
    """
    try:
        status = os.statvfs(directory)
    except OSError as error:
        raise_unwritable(error, directory)
    free_nbytes = status.f_bavail * status.f_frsize
    if needed_nbytes > free_nbytes:
        raise OutputError(
            f"the output needs {format_nbytes(needed_nbytes)}, but only {format_nbytes(free_nbytes)} are free",
            printable(str(directory)),
            "Free some space, or choose another disk.",
        )


class _OldOutputKeptError(OutputError):
    """Publishing failed half-way, and the old output has a name of ours: it must not be removed."""


@contextmanager
def _reported_for(path: Path) -> Iterator[None]:
    """Turn what the system says into an `OutputError`; never around the caller's block, whose errors are its own."""
    try:
        yield
    except LockedError as error:
        raise OutputError(
            f"another run is writing this output: {printable(str(error))}",
            printable(str(path)),
            "Wait until it is done, or choose another output.",
        ) from None
    except OSError as error:
        raise_unwritable(error, Path(error.filename) if isinstance(error.filename, str) else path)


def _remove_old(staging: Path) -> None:
    """Remove the old output, which has staging's name now, if there was one."""
    try:
        remove_tree(staging)
    except OSError as error:
        raise OutputError(
            f"the new output is complete, but the old one can't be removed: {error.strerror or error}",
            printable(str(staging)),
            "Remove it yourself.",
        ) from error


def _publish(staging: Path, output: Path, *, overwrite: bool) -> None:
    """Give the finished staging directory its name; an old output has the name `staging` afterwards."""
    replacing = os.path.lexists(output)
    check_replaceable(output, overwrite=overwrite)
    if replacing:
        _swap(staging, output)
    else:
        _place(staging, output)
    try:
        sync_directory(output.parent)
    except OSError as error:
        # No one knows which names a power cut would leave now, so go back to the old ones and keep the old output.
        try:
            if replacing:
                _swap(staging, output)
            else:
                output.rename(staging)
        except OSError:
            kept = f"; the output that it replaced is kept at {printable(str(staging))}" if replacing else ""
            raise _OldOutputKeptError(
                f"complete, but not flushed to the disk: {error.strerror or error}{kept}", printable(str(output))
            ) from error
        raise


def _place(staging: Path, output: Path) -> None:
    try:
        rename_noreplace(staging, output)
    except FileExistsError:
        raise OutputExistsError(
            "something has appeared here while the output was being made",
            printable(str(output)),
            "Find out what else writes here, then start again.",
        ) from None
    except UnsupportedRenameError:
        check_replaceable(output, overwrite=False)
        staging.rename(output)


def _swap(staging: Path, output: Path) -> None:
    try:
        exchange(staging, output)
    except UnsupportedRenameError:
        _swap_in_steps(staging, output, aside=_beside(output, _REPLACED + staging.name[-_TOKEN_DIGITS:]))


def _swap_in_steps(staging: Path, output: Path, *, aside: Path) -> None:
    output.rename(aside)
    try:
        staging.rename(output)
        try:
            aside.rename(staging)
        except BaseException:
            output.rename(staging)
            raise
    except BaseException as error:
        try:
            aside.rename(output)
        except OSError:
            raise _OldOutputKeptError(
                f"can't be replaced: {error}; the old output is at {printable(str(aside))}",
                printable(str(output)),
                "The next run with this output puts it back, or rename it yourself.",
            ) from error
        raise


def _clean_up_after_kill(output: Path) -> None:
    """Take back or remove what a killed run left beside the output; only for the holder of the lock."""
    for path in _leftovers(output, _REPLACED):
        if os.path.lexists(output):
            remove_tree(path)
        else:
            path.rename(output)
    for path in _leftovers(output, _STAGING):
        remove_tree(path)


def _leftovers(output: Path, kind: str) -> list[Path]:
    prefix = _beside(output, kind).name
    with os.scandir(output.parent) as entries:
        return [
            Path(entry.path)
            for entry in entries
            # All of the rest must be a token: `.a.staging-b.staging-0123` belongs to an output named `a.staging-b`.
            if entry.name.startswith(prefix)
            and len(entry.name) == len(prefix) + _TOKEN_DIGITS
            and _HEX.issuperset(entry.name[len(prefix) :])
            and entry.is_dir(follow_symlinks=False)
        ]


def _beside(output: Path, suffix: str) -> Path:
    return output.parent / f".{output.name}.{suffix}"
