from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.text import format_nbytes, printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("model.layers.0.weight", "model.layers.0.weight"),
        ("größe.权重.вес", "größe.权重.вес"),
        ("a b", "a b"),
        ("clear\x1b[2J", r"clear\x1b[2J"),
        ("line\nbreak\r\ttab\0", r"line\x0abreak\x0d\x09tab\x00"),
        ("delete\x7f", r"delete\x7f"),
        ("c1\x9b31m", r"c1\x9b31m"),
        ("bidi\u202egnp.exe", r"bidi\u202egnp.exe"),
        ("isolate\u2066x\u2069", r"isolate\u2066x\u2069"),
        ("mark\u200f\u061c", r"mark\u200f\u061c"),
        ("invisible\u200b\ufeff", r"invisible\u200b\ufeff"),
        ("separator\u2028", r"separator\u2028"),
        ("surrogate\ud800", r"surrogate\ud800"),
        ("tag\U000e0041", r"tag\U000e0041"),
        ("emoji 🤗", "emoji 🤗"),
        ("", ""),
    ],
)
def test_printable_escapes_what_acts_on_a_terminal(name: str, shown: str) -> None:
    assert printable(name) == shown


@given(st.text(st.characters(codec=None, exclude_categories=[])))
def test_printable_never_lets_a_control_through(name: str) -> None:
    shown = printable(name)
    assert shown.isprintable()
    shown.encode("utf-8")
    assert not {unicodedata.category(character) for character in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_printable_cuts_a_long_name_and_says_so() -> None:
    shown = printable("x" * 5_000_000)
    assert len(shown) < 1100
    assert shown.endswith("… (5,000,000 characters)")
    assert printable("abcdef", limit=3) == "abc… (6 characters)"


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.00 KB"),
        (999_994, "999.99 KB"),
        (999_996, "1.00 MB"),
        (5_563_000_000, "5.56 GB"),
        (10**15, "1.00 PB"),
        (10**22, "10000.00 EB"),
    ],
)
def test_format_nbytes(nbytes: int, shown: str) -> None:
    assert format_nbytes(nbytes) == shown
