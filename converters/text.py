"""Text for people: names from untrusted files made safe to print, and sizes in decimal units."""

from __future__ import annotations

from typing import Final

PRINTABLE_LIMIT: Final = 1000
"""Characters of a name that a message shows; a hostile header can hold a name of a hundred million."""

_UNITS: Final = ("bytes", "KB", "MB", "GB", "TB", "PB", "EB")
_STEP: Final = 1000
# 999.995 would be shown as 1000.00, so it belongs to the next unit.
_NEXT_UNIT: Final = 999.995
_LAST_BYTE: Final = 0xFF
_LAST_OF_BASIC_PLANE: Final = 0xFFFF


def printable(name: str, limit: int = PRINTABLE_LIMIT) -> str:
    r"""Make a name from a file safe to show on a terminal or in a log.

    Everything that `str.isprintable` refuses becomes a `\x..`, `\u....` or `\U........` escape: control characters
    (C0, C1), bidirectional overrides, invisible formatting, odd spaces and lone surrogates. Names longer than
    `limit` characters are cut, and say how long they were.

    Example:
        >>> printable("layers.0\x1b[2J")
        'layers.0\\x1b[2J'
    """
    length = len(name)
    if length > limit:
        name = name[:limit]
    if not name.isprintable():
        name = "".join(character if character.isprintable() else _escape(character) for character in name)
    return name if length <= limit else f"{name}… ({length:,} characters)"


def format_nbytes(nbytes: int) -> str:
    """Write a number of bytes in decimal units, as `max_shard_size` reads them.

    Example:
        >>> format_nbytes(5_563_000_000)
        '5.56 GB'
    """
    if abs(nbytes) < _STEP:
        return f"{nbytes} {'byte' if nbytes == 1 else 'bytes'}"
    value = float(nbytes)
    unit = 0
    while abs(value) >= _NEXT_UNIT and unit < len(_UNITS) - 1:
        value /= _STEP
        unit += 1
    return f"{value:.2f} {_UNITS[unit]}"


def _escape(character: str) -> str:
    code = ord(character)
    if code <= _LAST_BYTE:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= _LAST_OF_BASIC_PLANE else f"\\U{code:08x}"
