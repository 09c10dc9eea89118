"""Directories in which a conversion in place was interrupted: nobody reads them until that is taken back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from converters.errors import CheckpointError
from converters.text import printable

JOURNAL: Final = ".weightmap-in-place"
"""The name of the journal, see `in_place_journal.py`."""


def refuse_unfinished(directory: Path) -> None:
    """Check that no change in place was interrupted in a directory.

    Raises:
        CheckpointError: one was.
    """
    if os.path.lexists(directory / JOURNAL):
        raise CheckpointError(
            f"a conversion in place was interrupted here, so its files may not fit each other ({JOURNAL} is there)",
            printable(str(directory)),
            "Run `weightmap convert --in-place` here again, with any spec: it first undoes what was begun.",
        )
