"""Numbers for people."""

from __future__ import annotations

from typing import Final

from converters.text import format_nbytes

_UNITS: Final = ("", "K", "M", "B", "T")


def format_bytes(nbytes: int) -> str:
    """Write a number of bytes in decimal units; the same as `text.format_nbytes`.

    Example:
        >>> format_bytes(5_563_000_000)
        '5.56 GB'
    """
    return format_nbytes(nbytes)


def format_count(count: int) -> str:
    """Write a number of elements as model sizes are written; whole below a thousand.

    Example:
        >>> format_count(2_779_683_840)
        '2.78B'
    """
    if abs(count) < 1000:  # noqa: PLR2004 - the first unit
        return str(count)
    value = float(count)
    unit = 0
    # 999.995 would be shown as 1000.00, so it moves on to the next unit.
    while abs(value) >= 999.995 and unit < len(_UNITS) - 1:  # noqa: PLR2004
        value /= 1000
        unit += 1
    return f"{value:.2f}{_UNITS[unit]}"
