"""JSON as its standard means it: no duplicate keys, no NaN, no lone surrogates, nothing nested without end."""

from __future__ import annotations

import json
import re
from typing import Any, Final, NoReturn

import msgspec

from converters.text import printable

JsonObject = dict[str, Any]
"""A parsed JSON object, whose values are still to be checked."""

MAX_VALUES: Final = 1_000_000
"""Most values in a JSON file: an index of a million tensors. A hundred times more would take minutes and gigabytes."""

_NEGATIVE_ZERO: Final = re.compile(rb"-0(?<=[:,\[\s]-0)")
_TEXT_LIMIT: Final = 100


class StrictJsonError(Exception):
    """What is wrong with a piece of JSON; its caller knows the file, and makes a `CheckpointError` of it."""


def parse_object(raw: bytes | bytearray, *, infinite: bool = False, max_values: int = MAX_VALUES) -> JsonObject:
    """Parse one JSON object, strictly. Integers stay exact; `infinite` lets NaN and Infinity pass.

    Raises:
        StrictJsonError: not UTF-8, not JSON, not an object, a duplicate key, NaN or Infinity, `-0`, a lone surrogate,
            nested too deeply, or more values than `max_values`.
    """
    # Each value follows one of these; those within strings count, too, which is not worth telling apart.
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > max_values:
        raise StrictJsonError(f"it holds more than {max_values:,} values")
    document = _parse_quickly(raw)
    if document is not None:
        return document
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StrictJsonError(f"byte {error.start} is not UTF-8") from None
    # A hook for every integer costs a tenth of a second in a large header, so it is set only where it could matter.
    parse_int = _exact_int if "-0" in text else int
    try:
        document = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=float if infinite else _refuse_constant,
            parse_int=parse_int,
            parse_float=_finite,
        )
    except RecursionError:
        raise StrictJsonError("the JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise StrictJsonError(f"not JSON: {error.msg} at byte {len(text[: error.pos].encode())}") from None
    except ValueError as error:  # Python's own limit on the digits of an integer
        raise StrictJsonError(f"not JSON: {error}") from None
    if type(document) is not dict:
        raise StrictJsonError(f"expected a JSON object, got {describe(document)}")
    if "\\ud" in text or "\\uD" in text:
        _check_unicode(document)
    return document


def _parse_quickly(raw: bytes | bytearray) -> JsonObject | None:
    """The object, if it is surely a strict one: five times as fast; None if a closer look is needed.

    msgspec is as strict but for duplicate keys, of which it keeps the last, and `-0`. Without a backslash each string
    has exactly two quotes, so that none was lost if there are twice as many quotes as strings.
    """
    if b"\\" in raw or has_negative_zero(raw):
        return None
    try:
        document = msgspec.json.decode(raw)
        if type(document) is dict and raw.count(b'"') == 2 * _count_strings(document):
            return document
    except (ValueError, RecursionError):
        pass
    return None


def has_negative_zero(raw: bytes | bytearray) -> bool:
    """Whether a number may begin with `-0`; where one does, this is true."""
    return b"-0" in raw and _NEGATIVE_ZERO.search(raw) is not None  # a text is found faster than a pattern


def _count_strings(value: object) -> int:
    """The strings in parsed JSON, keys among them."""
    if type(value) is dict:
        return len(value) + _count_strings([*value.values()])
    if type(value) is list:
        kinds = set(map(type, value))
        return len(value) if kinds == {str} else sum(map(_count_strings, value)) if kinds & {str, list, dict} else 0
    return int(type(value) is str)


def describe(value: object) -> str:
    """Show a parsed value as JSON would, cut to a length that fits into a message."""
    if value is None or isinstance(value, bool | int | float | str):
        return printable(json.dumps(value, ensure_ascii=False), _TEXT_LIMIT)
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "an object"


def _check_unicode(document: JsonObject) -> None:
    """Refuse lone surrogates, which JSON's escapes can spell and UTF-8 can't."""
    text = json.dumps(document, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.start + 20]
        raise StrictJsonError(f"a string holds a lone surrogate: ...{printable(around)}...") from None


def _unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise StrictJsonError(f"the key '{printable(key)}' occurs twice")
            seen.add(key)
    return result


def _refuse_constant(constant: str) -> NoReturn:
    raise StrictJsonError(f"{constant} is not JSON")


def _finite(literal: str) -> float:
    value = float(literal)
    if value in (float("inf"), float("-inf")):
        raise StrictJsonError(f"the number {printable(literal, _TEXT_LIMIT)} is too large")
    return value


def _exact_int(literal: str) -> int:
    if literal == "-0":
        raise StrictJsonError("-0 is not an integer")
    return int(literal)
