"""`weightmap clean`: say what killed runs left beside their outputs, and remove it if asked."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converters.commands.guard import EXIT_CODES, Guarded, problems_json, show_problems
from converters.commands.options import CONTEXT_SETTINGS, debug_option, json_option
from converters.commands.values import OutputPath
from converters.text import printable

if TYPE_CHECKING:
    from converters.leftovers import Cleaned, Found

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


@click.command(cls=Guarded, context_settings=dict(CONTEXT_SETTINGS), epilog=EXIT_CODES)
@click.argument("directory", metavar="DIR", type=OutputPath())
@click.option("--yes", is_flag=True, help="Do what the list says. Without it nothing is changed.")
@json_option
@debug_option
def clean(*, directory: Path, yes: bool, as_json: bool) -> int:
    """Show what killed runs left beside outputs, and remove it.

    DIR is a directory that holds outputs, or an output itself, which need not exist: what lies in DIR is shown, and
    what lies beside DIR and belongs to an output of that name. These are staging directories (.NAME.staging-*), old
    outputs that were moved aside (.NAME.replaced-*), and locks (.NAME.lock).

    Without --yes nothing is changed. With it, an old output whose place is empty is put back, and the rest is removed.
    What a living run uses is never touched. There is no need to clean before a run: it removes what is left of its
    own output, or with --resume goes on from there.

    \b
    weightmap clean models/          the outputs in models/
    weightmap clean models/tenny     one output, whether it is there or not
    """  # noqa: D301 - \b tells click to leave the lines as they are
    from converters.commands.terminal import print_json
    from converters.errors import OutputError
    from converters.leftovers import Cleaned, find
    from converters.leftovers import clean as clean_up
    from converters.storage.remote_path import RemotePath

    if isinstance(directory, RemotePath):
        what = "object stores have no locks, so nobody can tell whether a run is still writing"
        hint = "Look for .NAME.staging-* with the store's own tools."
        raise OutputError(what, printable(str(directory)), hint)
    found = find(directory)
    cleaned = clean_up(found) if yes else Cleaned(kept=tuple(found))
    if as_json:
        print_json(_as_json(directory, cleaned))
    else:
        lines = _done_lines(directory, cleaned) if yes else _list_lines(directory, found)
        click.echo("\n".join(lines))
    if cleaned.problems:
        show_problems(cleaned.problems)
        return OutputError.exit_code
    return 0


def _list_lines(directory: Path, found: Sequence[Found]) -> list[str]:
    from converters.commands.terminal import bold, counted, labelled
    from converters.leftovers import Action
    from converters.text import format_nbytes

    where = printable(str(directory))
    if not found:
        return [f"{where}: no run left anything in it, or beside it under its name"]
    total = format_nbytes(sum(each.nbytes for each in found))
    lines = [bold(f"{where}: {counted(len(found), 'leftover')}, {total} on the disk")]
    for each in found:
        pairs = [("is", _what(each)), ("resume", _resume_text(each)), ("--yes", _action_text(each))]
        lines += ["", f"  {printable(str(each.path))}", *labelled(pairs, indent=4)]
    lines.append("")
    if all(each.action is Action.KEEP for each in found):
        return [*lines, "Nothing was changed, and nothing here can be."]
    return [*lines, f"Nothing was changed. To do so: weightmap clean {shlex.quote(where)} --yes"]


def _what(found: Found) -> str:
    from converters.leftovers import LOCK
    from converters.staging_names import STAGING
    from converters.text import format_nbytes

    name = printable(found.output.name)
    if found.kind == LOCK:
        return f"the lock of {name}" if found.holder else f"the lock of a run that made {name} and is gone"
    size = f"{format_nbytes(found.nbytes)}, last written {_age(found.modified)}"
    if found.kind != STAGING:
        return f"the {name} that a new one was to replace: {size}"
    return f"{name}, being written: {size}" if found.holder else f"{name}, not complete: {size}"


def _resume_text(found: Found) -> str:
    from converters.commands.terminal import counted
    from converters.leftovers import Action
    from converters.text import format_nbytes

    if found.finished is None or not found.finished.shards or found.action is Action.KEEP:
        return ""
    finished = f"{counted(found.finished.shards, 'shard')} ({format_nbytes(found.finished.nbytes)})"
    return f"convert --resume, with the options of that run, keeps {finished} of it"


def _action_text(found: Found) -> str:
    from converters.leftovers import Action

    if found.holder:
        return f"leaves it alone: {printable(found.holder)} uses it"
    match found.action:
        case Action.REMOVE:
            return "removes it"
        case Action.RESTORE:
            name = printable(found.output.name)
            return f"puts it back as {name}, which is missing: this is the only copy"
        case Action.KEEP:
            return f"leaves it alone: {found.why}"


def _done_lines(directory: Path, cleaned: Cleaned) -> list[str]:
    from converters.leftovers import Action
    from converters.text import format_nbytes

    lines = []
    for each in cleaned.done:
        path = printable(str(each.path))
        if each.action is Action.RESTORE:
            lines.append(f"Put back {path} as {printable(str(each.output))}")
        else:
            lines.append(f"Removed {path}" + (f", {format_nbytes(each.nbytes)}" if each.nbytes else ""))
    for each in cleaned.kept:
        why = f"{printable(each.holder)} uses it" if each.holder else each.why
        lines.append(f"Left {printable(str(each.path))} alone: {why}")
    return lines or [f"{printable(str(directory))}: there was nothing to remove"]


def _age(modified: float) -> str:
    seconds = datetime.now(UTC).timestamp() - modified
    for unit, name in ((_DAY, "day"), (_HOUR, "hour"), (_MINUTE, "minute")):
        if seconds >= unit:
            count = int(seconds // unit)
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return "just now"


def _as_json(directory: Path, cleaned: Cleaned) -> dict[str, Any]:
    return {
        "directory": str(directory),
        "leftovers": [_found_json(each, done=each in cleaned.done) for each in (*cleaned.done, *cleaned.kept)],
        "problems": problems_json(cleaned.problems),
    }


def _found_json(found: Found, *, done: bool) -> dict[str, Any]:
    finished = found.finished
    return {
        "path": str(found.path),
        "output": str(found.output),
        "kind": found.kind,
        "nbytes": found.nbytes,
        "modified": datetime.fromtimestamp(found.modified, UTC).isoformat(timespec="seconds"),
        "finished": None if finished is None else {"shards": finished.shards, "nbytes": finished.nbytes},
        "holder": found.holder or None,
        "action": found.action.value,
        "why": found.why or None,
        "done": done,
    }
