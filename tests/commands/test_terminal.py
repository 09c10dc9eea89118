"""Text in columns and paragraphs."""

from __future__ import annotations

import io
import os
import sys

import click
import pytest

from converters.commands import terminal


class Terminal(io.StringIO):
    """A stream that says that it is one."""

    def isatty(self) -> bool:
        return True


def of_width(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))


def test_width_is_the_terminals_within_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert terminal.width(io.StringIO()) == 100
    for columns, expected in ((80, 80), (20, 60), (300, 120)):
        of_width(monkeypatch, columns)
        assert terminal.width() == expected


def test_cells_counts_columns() -> None:
    assert terminal.cells("abc") == 3
    assert terminal.cells("層") == 2
    assert terminal.cells("e\u0301→") == 2


def test_table_aligns_and_lets_long_cells_stick_out() -> None:
    rows = [("a", "1", "x"), ("層", "200", "y"), ("long" * 3, "3", "z")]
    assert terminal.table(rows, "<><", widest=4) == ["  a     1  x", "  層  200  y", "  longlonglong    3  z"]


def test_labelled_wraps_under_the_text_and_leaves_out_what_is_empty() -> None:
    lines = terminal.labelled([("one", "word " * 10), ("none", ""), ("three", "x")], columns=30)
    assert [click.unstyle(line) for line in lines] == [
        "  one    word word word word",
        "         word word word word",
        "         word word",
        "  three  x",
    ]


def test_listed_and_counted() -> None:
    assert terminal.listed(["a", "b\x1b"], 8) == "a, b\\x1b"
    assert terminal.listed(list("abcdef"), 2) == "a, b and 4 more"
    assert terminal.counted(1, "pair") == "1 pair"
    assert terminal.counted(1200, "pair") == "1,200 pairs"


def test_lines_are_fitted_only_to_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    of_width(monkeypatch, 60)
    line = "    " + "word " * 30
    assert terminal.fitted(line, io.StringIO()) == [line]
    lines = terminal.fitted(line.rstrip(), Terminal())
    assert all(part.startswith("    word") and len(part) <= 60 for part in lines)
    assert len(lines) == 3
    first, second, *_ = terminal.fitted("word " * 30, Terminal(), 7, "  ")
    assert len(first) <= 53
    assert second.startswith("  word")
