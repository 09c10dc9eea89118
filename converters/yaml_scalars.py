"""What an unquoted YAML word means: the part of YAML's core schema on which all readers agree.

YAML 1.1 and 1.2 read the same text differently: `no` is false to one and text to the other, `012` is ten or
twelve, `1e3` is text or a number. A spec must not depend on its reader, so whatever they disagree about is
refused, and the refusal says what to write instead. Source: https://yaml.org/type/ (1.1) against
https://yaml.org/spec/1.2.2/#103-core-schema (1.2).
"""

from __future__ import annotations

import math
import re
from typing import TypeAlias

PlainValue: TypeAlias = str | int | float | bool | None

MAX_WHOLE_NUMBER = 2**63 - 1
"""The largest whole number that a scalar may hold; shapes, offsets and JSON readers go no further."""

_KEYWORDS: dict[str, PlainValue] = {"": None, "~": None, "null": None, "true": True, "false": False}
_BOOLEANS_OF_YAML_1_1 = {"y": "true", "yes": "true", "on": "true", "n": "false", "no": "false", "off": "false"}
_LONGEST_WORD = 5
_LONGEST_WHOLE_NUMBER = 20
_LONGEST_SHOWN = 40
_LONGEST_CONVERTED = 64
_DECIMAL = 10

_WHOLE = r"-?(?:0|[1-9][0-9]*)"
_FRACTION = r"-?(?:0|[1-9][0-9]*)\.[0-9]+(?:[eE][-+][0-9]+)?"
_HEXADECIMAL = r"[-+]?0[xX][0-9a-fA-F_]+"
_OCTAL = r"[-+]?0[oO][0-7_]+"
_BINARY = r"[-+]?0[bB][01_]+"
_LEADING_ZERO = r"[-+]?0[0-9_]+"
_BASE_SIXTY = r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?"
_DATE = r"(?s)[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt \t].*)?"
_NOT_FINITE = r"(?i)[-+]?\.(?:inf|nan)"
_OTHER_NUMBER = r"[-+]?(?:\.[0-9][0-9_]*|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9_]+)?"


class AmbiguousScalarError(ValueError):
    """An unquoted word that YAML readers understand differently, or whose value can't be held.

    Args:
        what: why it is refused.
        hint: what to write instead.
    """

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


def read_plain(text: str) -> PlainValue:
    """The value of an unquoted scalar.

    Raises:
        AmbiguousScalarError: readers of YAML disagree about it, or it is a number too large to hold.
    """
    if len(text) <= _LONGEST_WORD:
        if text in _KEYWORDS:
            return _KEYWORDS[text]
        _refuse_ambiguous_word(text)
    if text[0] in "0123456789+-.":
        return _read_number(text)
    return text


def _refuse_ambiguous_word(text: str) -> None:
    lowered = text.lower()
    if lowered in _BOOLEANS_OF_YAML_1_1:
        meaning = _BOOLEANS_OF_YAML_1_1[lowered]
        raise AmbiguousScalarError(
            f"{text} is read as {meaning} by some YAML readers and as text by others",
            f'write "{text}" for the text, or {meaning}',
        )
    if lowered in _KEYWORDS:
        raise AmbiguousScalarError(
            f"{text} is read as {lowered} by some YAML readers and as text by others",
            f'write "{text}" for the text, or {lowered}',
        )
    if text in ("<<", "="):
        raise AmbiguousScalarError(f"{text} has a special meaning to some YAML readers", f'write "{text}" for the text')


def _read_number(text: str) -> PlainValue:
    if ".." in text and "-" not in text:
        return text  # the range of a placeholder, such as 0..L; of what is refused below, only a date could hold dots
    if re.fullmatch(_WHOLE, text):
        # Long digit strings are compared by length first: int() takes quadratic time, and refuses above 4,300.
        if len(text) > _LONGEST_WHOLE_NUMBER or abs(int(text)) > MAX_WHOLE_NUMBER:
            raise AmbiguousScalarError(
                f"the number {_shortened(text)} does not fit in 64 bits", "write it in quotes for the text"
            )
        return int(text)
    if re.fullmatch(_FRACTION, text):
        value = float(text)
        if not math.isfinite(value):
            raise AmbiguousScalarError(
                f"the number {_shortened(text)} does not fit in 64 bits", "write it in quotes for the text"
            )
        return value
    _refuse_other_number(text)
    return text


def _refuse_other_number(text: str) -> None:
    shown = _shortened(text)
    for pattern, base, kind in ((_HEXADECIMAL, 16, "a hexadecimal"), (_OCTAL, 8, "an octal"), (_BINARY, 2, "a binary")):
        if re.fullmatch(pattern, text):
            number = _in_decimal(text, base)
            raise AmbiguousScalarError(
                f"{shown} is read as {kind} number by some YAML readers and as text by others",
                f'write "{shown}" for the text, or {number}',
            )
    if re.fullmatch(_LEADING_ZERO, text):
        number = _in_decimal(text, _DECIMAL)
        raise AmbiguousScalarError(
            f"{shown} is read as an octal number by some YAML readers and as a decimal one by others",
            f'write "{shown}" for the text, or {number}',
        )
    if re.fullmatch(_BASE_SIXTY, text):
        raise AmbiguousScalarError(
            f"{shown} is read as a number in base 60 by some YAML readers and as text by others",
            f'write "{shown}" for the text',
        )
    if re.fullmatch(_DATE, text):
        raise AmbiguousScalarError(
            f"{shown} is read as a date by some YAML readers and as text by others", f'write "{shown}" for the text'
        )
    if re.fullmatch(_NOT_FINITE, text):
        raise AmbiguousScalarError(
            f"{shown} is infinity, or not a number, to some YAML readers", f'write "{shown}" for the text'
        )
    if re.fullmatch(_OTHER_NUMBER, text):
        raise AmbiguousScalarError(
            f"{shown} is read as a number by some YAML readers and as text by others",
            f'write "{shown}" for the text, or {_as_number(text)}',
        )


def _in_decimal(text: str, base: int) -> str:
    digits = text.replace("_", "").lstrip("-+").lower()
    digits = digits[2:] if base != _DECIMAL else digits
    if not digits or len(digits) > _LONGEST_CONVERTED or int(digits, base) > MAX_WHOLE_NUMBER:
        return "the decimal number"
    return f"{'-' if text[0] == '-' else ''}{int(digits, base)}"


def _as_number(text: str) -> str:
    """The spelling of a number on which readers agree."""
    digits = text.replace("_", "")
    if len(digits) > _LONGEST_SHOWN:
        return "a decimal number such as 0.5 or 1.0e-5"
    if "." not in digits and "e" not in digits.lower():
        return _in_decimal(digits, _DECIMAL)
    mantissa, _, exponent = digits.lstrip("+").lower().partition("e")
    whole, _, fraction = mantissa.partition(".")
    sign, whole = ("-", whole[1:]) if whole.startswith("-") else ("", whole)
    spelling = f"{sign}{whole.lstrip('0') or '0'}.{fraction or '0'}"
    if exponent:
        spelling += f"e{exponent if exponent[0] in '-+' else '+' + exponent}"
    return spelling if re.fullmatch(_FRACTION, spelling) else "a decimal number such as 0.5 or 1.0e-5"


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."
