"""`weightmap convert --in-place`: new names where the files lie, and what is said of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converters.commands.options import make_request

if TYPE_CHECKING:
    from converters.in_place import InPlace


def run_in_place(
    source: Path,
    output: Path | None,
    options: Mapping[str, Any],
    *,
    others: Mapping[str, bool],
    as_json: bool,
    quiet: bool,
) -> None:
    """Convert in place, and say what was done.

    Args:
        source: what the user gave.
        output: what the user gave, too, which is a mistake.
        options: those that say what to convert, see `make_request`.
        others: by name, whether options were given that are about an output of its own.
        as_json: print one JSON object.
        quiet: print warnings only.

    Raises:
        click.UsageError: options contradict each other.
        WeightmapError: it can't be done.
    """
    from converters.commands.terminal import print_json, warn
    from converters.in_place import convert_in_place, undo_interrupted
    from converters.text import printable

    if output is not None:
        raise click.UsageError("--in-place changes the checkpoint itself: give one directory, and no OUTPUT.")
    if given := [name for name, is_given in others.items() if is_given]:
        raise click.UsageError(f"--in-place makes no output: leave out {', '.join(given)}.")
    started = time.monotonic()
    # Before anything is read: to find a spec by --to takes a look at the checkpoint, too.
    if source.is_dir() and undo_interrupted(source):
        warn("a conversion in place was interrupted here before; what it had begun was undone first")
    request = make_request(source=source, **options)
    done = convert_in_place(request.spec, request.source, request.options)
    seconds = time.monotonic() - started
    if as_json:
        print_json(_as_json(done, seconds))
    elif not quiet:
        click.echo("\n".join(_summary(done, seconds)))
    for name in done.removed:
        warn(f"{printable(name)} was removed: it described the files as they were")
    for note in done.prepared.plan.notes:
        warn(note)


def _summary(done: InPlace, seconds: float) -> list[str]:
    from converters.commands.convert import duration
    from converters.commands.plan_text import heading
    from converters.commands.terminal import bold, counted, labelled, listed
    from converters.text import format_nbytes, printable

    plan = done.prepared.plan
    pairs = [
        ("by", heading(done.prepared.spec, None)),
        ("renamed", f"{counted(len(plan.targets), 'tensor')}; their data stays where it is"),
        (
            "wrote",
            f"{format_nbytes(done.nbytes)}: {listed(done.changed)}" if done.changed else "nothing: no name changes",
        ),
        ("took", duration(seconds)),
    ]
    return [bold(f"Converted {printable(str(done.directory))} in place"), *labelled(pairs)]


def _as_json(done: InPlace, seconds: float) -> dict[str, Any]:
    from converters.commands.plan_data import plan_json

    return {
        "output": str(done.directory),
        "in_place": True,
        **plan_json(done.prepared, done.prepared.spec),
        "changed": list(done.changed),
        "removed": list(done.removed),
        "bytes_written_in_place": done.nbytes,
        "seconds": round(seconds, 3),
    }
