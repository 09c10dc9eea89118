"""What to say when the YAML parser gives up: its own words where they help, ours where a key pattern is the cause."""

from __future__ import annotations

import yaml
from msgspec import Struct

from converters.errors import Location, Problem

QUOTE_PATTERNS = 'put a text that begins with { or * in quotes, such as "{i}.weight"'

_QUOTE_IN_FLOW = "inside [ ] or { }, put a text that holds any of { } [ ] , in quotes"
_QUOTE_ALL = "put the whole text in quotes"


class _Stop(Struct, frozen=True):
    """Where and why the parser stopped.

    Attributes:
        problem, context: the parser's words: what it missed, and what it was reading.
        begins_at: the start of what it was reading.
        stops_at: the place where it could not go on.
        before, after: the document's text on both sides of that place.
    """

    problem: str
    context: str
    begins_at: Location
    stops_at: Location
    before: str
    after: str


def syntax_problem(error: yaml.YAMLError, path: str, text: str) -> Problem:
    """The problem, with its place, that made the parser stop.

    Args:
        error: what PyYAML raised.
        path: the file's name in messages.
        text: the document that was parsed.
    """
    if not isinstance(error, yaml.MarkedYAMLError):
        return Problem(f"not valid YAML: {error}".splitlines()[0], path)
    begin, end = error.context_mark or error.problem_mark, error.problem_mark or error.context_mark
    if begin is None or end is None:
        return Problem(f"not valid YAML: {error.problem or error.context}", path)
    stop = _Stop(
        error.problem or "",
        error.context or "",
        _location(begin, path),
        _location(end, path),
        text[: end.index],
        text[end.index :],
    )
    return _wrong_beginning(stop) or _in_flow(stop) or _in_block(stop) or _in_the_parsers_words(stop)


def _wrong_beginning(stop: _Stop) -> Problem | None:
    if "cannot start any token" in stop.problem:
        if stop.after.startswith("\t"):
            return Problem("a tab can't indent", stop.stops_at, "indent with spaces")
        return Problem(f"a text can't begin with {stop.after[:1]}", stop.stops_at, _QUOTE_ALL)
    if stop.context in ("while scanning an alias", "while scanning an anchor"):
        sign = "*" if "alias" in stop.context else "&"
        return Problem(f"a text can't begin with {sign}", stop.begins_at, _QUOTE_ALL)
    if "quoted scalar" in stop.context and "end of stream" in stop.problem:
        return Problem("this quote is never closed", stop.begins_at, "add the missing quote")
    return None


def _in_flow(stop: _Stop) -> Problem | None:
    if stop.context == "while parsing a flow node" and not stop.after.strip():
        return Problem("a list or mapping before the end is never closed", stop.stops_at, "add the missing ] or }")
    if stop.context not in ("while parsing a flow sequence", "while parsing a flow mapping"):
        return None
    kind, closer = ("list", "]") if "sequence" in stop.context else ("mapping", "}")
    if not stop.after.strip():
        return Problem(f"this {kind} is never closed", stop.begins_at, f"add the missing {closer}")
    begin = f"line {stop.begins_at.line}, column {stop.begins_at.column}"
    what = f"expected , or {closer} in the {kind} that begins at {begin}, got {stop.after[0]}"
    return Problem(what, stop.stops_at, _QUOTE_IN_FLOW)


def _in_block(stop: _Stop) -> Problem | None:
    if "mapping values are not allowed" in stop.problem:
        return Problem("a key and its value can't stand here", stop.stops_at, "put a text that holds ': ' in quotes")
    if stop.context == "while scanning a simple key":
        return Problem("expected ': ' after this key", stop.begins_at)
    if stop.context != "while parsing a block mapping":
        return None
    previous = stop.before.rstrip(" ")[-1:]
    if previous in ("}", "]"):
        return Problem(f"text goes on after {previous}", stop.stops_at, QUOTE_PATTERNS)
    begin = f"line {stop.begins_at.line}, column {stop.begins_at.column}"
    return Problem(f"expected a key of the mapping that begins at {begin}", stop.stops_at, "check the indentation")


def _in_the_parsers_words(stop: _Stop) -> Problem:
    begin = f" that begins at line {stop.begins_at.line}, column {stop.begins_at.column}"
    context = f" ({stop.context}{begin})" if stop.context else ""
    return Problem(f"not valid YAML: {stop.problem}{context}", stop.stops_at)


def _location(mark: yaml.Mark, path: str) -> Location:
    return Location(path, mark.line + 1, mark.column + 1)
