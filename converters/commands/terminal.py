"""Text for a terminal: width, colour, wrapped paragraphs and aligned columns. Piped, it is the same text, plain."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

import click

from converters.text import printable

_NARROWEST = 60
_WIDEST = 120
_PIPED = 100
_SPACE = "  "
_WARNING = "Warning:"


def width(stream: TextIO | None = None) -> int:
    """Columns that text may take on a stream, by default standard output; a fixed number where it is no terminal."""
    if not (stream or sys.stdout).isatty():
        return _PIPED
    import shutil

    return max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size().columns))


def cells(text: str) -> int:
    """Columns that a text takes on a terminal, where some characters take two, and some none."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def pad(text: str, to: int, side: str = "<") -> str:
    """Fill a text with spaces, on its right (`<`) or on its left (`>`)."""
    space = " " * max(0, to - cells(text))
    return text + space if side == "<" else space + text


def table(rows: Sequence[Sequence[str]], sides: str, *, indent: int = 2, widest: int = 80) -> list[str]:
    """Rows as lines in aligned columns.

    Args:
        rows: plain text, with as many cells each.
        sides: `<` or `>` for each column.
        indent: spaces before each line.
        widest: a cell longer than this sticks out, and moves no other line.
    """
    widths = [
        max((size for row in rows if (size := cells(row[column])) <= widest), default=0) for column in range(len(sides))
    ]
    return [
        (" " * indent + _SPACE.join(pad(*cell) for cell in zip(row, widths, sides, strict=True))).rstrip()
        for row in rows
    ]


def labelled(pairs: Iterable[tuple[str, str]], *, indent: int = 2, columns: int | None = None) -> list[str]:
    """Pairs of a label and a text, the texts aligned and wrapped; a pair with an empty text is left out."""
    shown = [(label, text) for label, text in pairs if text]
    margin = indent + max((cells(label) for label, _ in shown), default=0) + len(_SPACE)
    lines = []
    for label, text in shown:
        first, *rest = wrapped(text, (columns or width()) - margin)
        lines.append(" " * indent + dim(pad(label, margin - indent)) + first)
        lines += [" " * margin + line for line in rest]
    return lines


def wrapped(text: str, columns: int) -> list[str]:
    """A paragraph in lines; a word longer than a line, such as a key, stays whole."""
    import textwrap

    return textwrap.wrap(text, max(columns, 20), break_long_words=False, break_on_hyphens=False) or [""]


def listed(names: Sequence[str], limit: int = 8) -> str:
    """Names from files, made safe to print, with a comma between; the rest is a number."""
    shown = ", ".join(printable(name, 100) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def counted(count: int, one: str, many: str | None = None) -> str:
    """A number with its noun: `1 tensor`, `2 tensors`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def bold(text: str) -> str:
    """Headings."""
    return click.style(text, bold=True)


def dim(text: str) -> str:
    """What explains, and can be passed over."""
    return click.style(text, dim=True)


def warn(text: str) -> None:
    """A warning on standard error; on a terminal in lines that fit."""
    plain = " ".join(printable(line.strip()) for line in text.split("\n"))
    margin = " " * (len(_WARNING) + 1)
    text = "\n".join(fitted(plain, sys.stderr, len(margin), margin))
    click.echo(f"{click.style(_WARNING, fg='yellow', bold=True)} {text}", err=True)


def fitted(line: str, stream: TextIO, first: int = 0, margin: str | None = None) -> list[str]:
    """A line in as many as a terminal needs; where `stream` is none, the line as it is, so that it can be searched for.

    Args:
        line: plain text.
        stream: where it will be printed.
        first: columns that stand before it.
        margin: what stands before the lines that follow; by default the spaces that the line begins with.
    """
    columns = width(stream) - first
    if not stream.isatty() or cells(line) <= columns:
        return [line]
    import textwrap

    indent = line[: len(line) - len(line.lstrip())]
    margin = indent if margin is None else margin
    filled = textwrap.fill(
        line.strip(), columns + first, initial_indent=" " * first + indent, subsequent_indent=margin,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return filled[first:].split("\n")


def print_json(data: Mapping[str, Any]) -> None:
    """One JSON object on standard output; characters beyond ASCII are escaped, so that no name can do harm."""
    import json

    click.echo(json.dumps(data, indent=2))
