"""Keeps what was measured in a JSON file, row by row, so that a run that was stopped loses nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.machine import describe

Row = dict[str, Any]


class Results:
    """The rows of a file, by their keys."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.rows: dict[str, Row] = json.loads(file.read_text()) if file.exists() else {}

    def put(self, key: str, row: Row) -> None:
        """Add a row, or replace it, with the machine and date of now."""
        self.rows[key] = row | {"machine": describe()}
        staging = self._file.with_suffix(".unfinished")
        staging.write_text(json.dumps(self.rows, indent=1))
        staging.replace(self._file)


def pair_key(kind: str, name: str, size: str, *, prefault: bool) -> str:
    """The key of a row of pairs."""
    return f"{kind} {name} {size} {'touched' if prefault else 'returned'}"
