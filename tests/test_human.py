from __future__ import annotations

import pytest

from converters.human import format_bytes, format_count


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.00 KB"),
        (5_563_000_000, "5.56 GB"),
        (999_995_000, "1.00 GB"),
        (-2500, "-2.50 KB"),
    ],
)
def test_bytes(nbytes: int, expected: str) -> None:
    assert format_bytes(nbytes) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00K"),
        (51_200, "51.20K"),
        (999_994, "999.99K"),
        (999_995, "1.00M"),
        (2_779_683_840, "2.78B"),
        (10**15, "1000.00T"),
        (-1500, "-1.50K"),
    ],
)
def test_counts(count: int, expected: str) -> None:
    assert format_count(count) == expected
