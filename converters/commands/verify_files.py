"""`weightmap verify-files`: whether a published directory is still what was published."""

from __future__ import annotations

import time
from pathlib import Path

import click

from converters.commands.guard import EXIT_CODES, Guarded
from converters.commands.options import (
    CONTEXT_SETTINGS,
    checkpoint_argument,
    debug_option,
    json_option,
    revision_option,
)


@click.command(name="verify-files", cls=Guarded, context_settings=dict(CONTEXT_SETTINGS), epilog=EXIT_CODES)
@checkpoint_argument("directory")
@revision_option
@click.option(
    "--threads",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Files that are read at once. [default: the number of processors, 4 at the most]",
)
@json_option
@debug_option
def verify_files(*, directory: Path, revision: str | None, threads: int | None, as_json: bool) -> None:
    """Check that a directory is still what `weightmap convert` published.

    Every file in DIRECTORY is read and compared with its digest in weightmap_manifest.json, and the index with the
    headers of the files, in both directions. No source is needed. Where something differs, the exit code is 4, and the
    message says in which tensor.
    """
    from converters.commands.progress import progress_bar
    from converters.commands.terminal import counted, print_json, warn
    from converters.engine import default_threads
    from converters.errors import VerificationError
    from converters.published import Published
    from converters.storage.locations import locate
    from converters.text import format_nbytes, printable

    directory = locate(directory, revision)
    started = time.monotonic()
    published = Published.open(directory)
    with progress_bar(published.nbytes, shown=not as_json, doing="Checking", ending="Comparing names") as progress:
        checked = published.check(threads=threads or default_threads(), progress=progress)
    seconds = time.monotonic() - started
    if as_json and not checked.problems:
        data = {
            "files": checked.files,
            "tensors": checked.tensors,
            "nbytes": checked.nbytes,
            "seconds": round(seconds, 3),
        }
        print_json({"directory": str(directory), **data, "notes": [str(note) for note in checked.notes]})
    if checked.problems:
        raise VerificationError(checked.problems)
    if not as_json:
        speed = f"{format_nbytes(int(checked.nbytes / max(seconds, 1e-6)))}/s"
        click.echo(
            f"{printable(str(directory))} is what was published: {counted(checked.files, 'file')}, "
            f"{counted(checked.tensors, 'tensor')}, {format_nbytes(checked.nbytes)}, {seconds:.2f} s, {speed}"
        )
    for note in checked.notes:
        warn(str(note).replace("\n    ", " "))
