"""Arithmetic and comparison in expressions: every result fits in 64 bits, and every refusal is a `SpecError`.

Other than in Python, true and false are no numbers, and text and numbers don't mix.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TypeGuard

from converters.errors import SpecError
from converters.expression_scope import Unresolved, Value
from converters.text import printable

LARGEST_MAGNITUDE = 2**63
"""Shapes, offsets and JSON readers go no further; a number above this is a mistake."""

ROUNDING_TOLERANCE = 1e-9
"""How near `int()` must be to a whole number to take it: far above float noise, far below any real fraction."""

_LONGEST_SHOWN = 60

_ARITHMETIC: dict[str, Callable[[int | float, int | float], int | float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
}


def compute(symbol: str, left: object, right: object, text: str) -> int | float:
    """`left symbol right` for `+ - * / // %`: `/` is never whole, `//` and `%` are floored, as in Python.

    Args:
        symbol: the operator.
        left: its left operand, which must be a number.
        right: likewise.
        text: the expression, for messages.

    Raises:
        SpecError: an operand is no number, the division is by zero, or the result doesn't fit.
    """
    first, second = _number(left, symbol, text), _number(right, symbol, text)
    if symbol in ("/", "//", "%") and second == 0:
        raise SpecError(f"{text}: division of {describe(left)} by zero")
    return check_size(_ARITHMETIC[symbol](first, second), text)


def negate(value: object, text: str) -> int | float:
    """`-value`.

    Raises:
        SpecError: it is no number.
    """
    return check_size(-_number(value, "-", text), text)


def to_whole_number(value: object, text: str) -> int:
    """`int(value)`: the nearest whole number when it is within `ROUNDING_TOLERANCE`, else the next one below.

    0.4 * 80 is meant as 32, whichever side of it the floats come out on; 0.4 * 81 = 32.4 gives 32.

    Raises:
        SpecError: it is no number, or doesn't fit.
    """
    number = _number(value, "int()", text)
    nearest = round(number)
    whole = nearest if abs(number - nearest) <= ROUNDING_TOLERANCE else math.floor(number)
    return int(check_size(whole, text))


def in_order(symbol: str, left: object, right: object, text: str) -> bool:
    """`left symbol right` for `< <= > >=`, between two numbers or two texts.

    Raises:
        SpecError: the operands are neither.
    """
    if not ((isinstance(left, str) and isinstance(right, str)) or (is_number(left) and is_number(right))):
        what = f"{text}: {symbol} needs two numbers or two texts, got {describe(left)} and {describe(right)}"
        raise SpecError(what)
    sign = (left > right) - (left < right)  # type: ignore[operator]
    return {"<": sign < 0, "<=": sign <= 0, ">": sign > 0, ">=": sign >= 0}[symbol]


def equal(left: object, right: object) -> bool:
    """`left == right`; true equals only true, and not 1."""
    return isinstance(left, bool) == isinstance(right, bool) and left == right


def contains(item: object, items: object, text: str) -> bool:
    """`item in items`.

    Raises:
        SpecError: `items` is no list.
    """
    if isinstance(items, str) or not isinstance(items, Sequence):
        raise SpecError(f"{text}: 'in' needs a list on its right side, got {describe(items)}")
    return any(equal(item, other) for other in items)


def check_size(number: int | float, text: str) -> int | float:  # noqa: PYI041 - says what is meant
    """The number itself.

    Args:
        number: what was read or computed.
        text: the expression that it comes from, for messages.

    Raises:
        SpecError: it is a whole number beyond 2**63, infinite, or not a number.
    """
    if isinstance(number, int):
        if abs(number) > LARGEST_MAGNITUDE:
            raise SpecError(f"{text} is a number that does not fit in 64 bits")
    elif not math.isfinite(number):
        raise SpecError(f"{text} is not a finite number")
    return number


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it counts as a number; true and false don't."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: object, symbol: str, text: str) -> int | float:
    if not is_number(value):
        raise SpecError(f"{text}: {symbol} needs numbers, got {describe(value)}")
    return value


def describe(value: object) -> str:
    """A value in words, for messages."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text '{printable(value, _LONGEST_SHOWN)}'"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, Sequence):
        return "a list"
    if isinstance(value, int) and abs(value) > LARGEST_MAGNITUDE:
        return "a number that does not fit in 64 bits"  # str() refuses 5,000 digits
    return "null" if value is None else str(value)


def item_of(items: Value, number: Value, text: str) -> Value:
    """`items[number]`, counted from 0.

    Raises:
        SpecError: it is no list, or the number is no whole number.
    """
    if isinstance(items, str) or not isinstance(items, Sequence):
        raise SpecError(f"{text}: {describe(items)} is no list")
    if isinstance(number, bool) or not isinstance(number, int):
        raise SpecError(f"{text}: {describe(number)} is no whole number")
    if not 0 <= number < len(items):
        return Unresolved(f"{text}: the list has {len(items)} items, and none with the number {number}")
    found = items[number]
    if isinstance(found, int | float) and not isinstance(found, bool):
        return check_size(found, text)
    return found if isinstance(found, bool | str | Sequence | Mapping) else None
