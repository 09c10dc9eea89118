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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

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
from converters.staging_names import REPLACED, STAGING, leftovers, lock_name, new_staging, replaced_name
from converters.storage.files import raise_unwritable
from converters.text import format_nbytes, printable


@contextmanager
def publishing(
    output: Path,
    *,
    overwrite: bool = False,
    inputs: Sequence[Path] = (),
    sync: bool = True,
    worth: Callable[[Path], int] | None = None,
) -> Iterator[Path]:
    """Give a staging directory to write into; when the block ends well, it becomes `output`.

    Files written by `SafetensorsWriter` are flushed to the disk already; all others are flushed here.

    Args:
        output: the directory to make; its parent must exist.
        overwrite: replace a directory that is there, if it is empty or a checkpoint.
        inputs: files and directories that are read meanwhile; the output must be apart from them.
        sync: whether files and names are flushed to the disk; without it a power cut can take all of them.
        worth: how much of a staging directory can be used again. One that a killed run left, and that is worth most,
            is given instead of a new one; after an error, what is worth something is kept, and the error says so.

    Raises:
        OutputExistsError: something is at `output`, and may not be replaced.
        OutputError: `output` can't be made there, another run is making it, or the disk failed.
    """
    output = locate(output)
    with _reported_for(output):
        check_inputs_apart(output, inputs)
        if not overwrite:  # else another run may be removing what it has just replaced, so look only under the lock
            check_replaceable(output, overwrite=False)
    with ExitStack() as lock:
        kept: Path | None = None
        with _reported_for(output):
            if lock.enter_context(exclusive_lock(lock_name(output))):
                kept = _clean_up_after_kill(output, worth)
        staging = kept or new_staging(output)
        with _reported_for(output):
            # Again: another run may just have finished, or a killed one's old output was taken back.
            check_replaceable(output, overwrite=overwrite)
        try:
            with _reported_for(staging):
                staging.mkdir(mode=0o777, exist_ok=kept is not None)
            yield staging
            with _reported_for(output):
                if sync:
                    sync_tree(staging)
                _publish(staging, output, overwrite=overwrite, sync=sync)
        except _OldOutputKeptError:
            raise
        except BaseException as error:
            if worth is not None and worth(staging):
                error.add_note(f"what is finished is kept in {printable(str(staging))}; go on with --resume")
                raise
            # What failed is what the caller needs to hear of, not a file that can't be removed after it.
            with suppress(OSError):
                remove_tree(staging)
            raise
        try:
            _remove_old(staging)
        except OutputError:
            raise
        except BaseException:  # a signal: the new output is complete, so the old one goes all the same
            with suppress(OSError):
                remove_tree(staging)
            raise


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


def _publish(staging: Path, output: Path, *, overwrite: bool, sync: bool) -> None:
    """Give the finished staging directory its name; an old output has the name `staging` afterwards."""
    replacing = os.path.lexists(output)
    check_replaceable(output, overwrite=overwrite)
    if replacing:
        _swap(staging, output)
    else:
        _place(staging, output)
    if not sync:
        return
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
        _swap_in_steps(staging, output, aside=replaced_name(output, staging))


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


def _clean_up_after_kill(output: Path, worth: Callable[[Path], int] | None) -> Path | None:
    """Take back or remove what a killed run left beside the output; only for the holder of the lock.

    Returns:
        A staging directory that can be used again.
    """
    old = leftovers(output, REPLACED)
    if len(old) > 1 and not os.path.lexists(output):
        raise OutputError(
            f"is not there, and {len(old)} old ones are beside it: {', '.join(printable(path.name) for path in old)}",
            printable(str(output)),
            "Rename the one that you want to keep, and remove the others.",
        )
    for path in old:
        if os.path.lexists(output):
            # Half of it must not be put back by the next run, if this one is killed; a staging directory never is.
            path.rename(new_staging(output))
        else:
            path.rename(output)
    left = {path: worth(path) if worth is not None else 0 for path in leftovers(output, STAGING)}
    best = max(left, key=lambda path: left[path], default=None)
    kept = best if best is not None and left[best] else None
    for path in left:
        if path != kept:
            remove_tree(path)
    return kept
