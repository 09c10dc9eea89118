"""A progress bar on standard error: bytes, bytes a second and the time left. On anything but a terminal, nothing."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_BETWEEN_UPDATES = 0.1


def quiet_downloads(*, shown: bool) -> None:
    """Keep huggingface_hub's own bars off standard error where ours would not be either; call before it is imported."""
    if not shown or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


class Meter:
    """Adds up bytes, reported from several threads, and tells of them ten times a second at most."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.nbytes = 0
        self._tell = tell
        self._lock = threading.Lock()
        self._told = 0.0

    def __call__(self, nbytes: int) -> None:
        """Add the bytes that were just written or compared."""
        with self._lock:
            self.nbytes += nbytes
            now = time.monotonic()
            if now - self._told < _BETWEEN_UPDATES:
                return
            self._told = now
        self._tell(self.nbytes)

    def finish(self) -> None:
        """Tell of what is left."""
        self._tell(self.nbytes)


@contextmanager
def progress_bar(
    total_nbytes: int, *, shown: bool, doing: str = "Converting", ending: str = "Flushing to disk"
) -> Iterator[Meter]:
    """A bar while the block runs; it is gone afterwards.

    Args:
        total_nbytes: bytes that there are to do.
        shown: whether the user wants a bar.
        doing: what it says until the last byte.
        ending: what it says from then on.
    """
    if not shown or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield Meter(lambda _: None)
        return
    # Not at the top: it takes longer to import than all the rest of a small conversion.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=Console(stderr=True),
        transient=True,
        expand=True,
    )
    task = bar.add_task(doing, total=total_nbytes)

    def tell(nbytes: int) -> None:
        # What follows the last byte is fsync, which can take as long as the writing did, and tells nothing.
        done = nbytes >= total_nbytes
        bar.update(task, completed=nbytes, description=ending if done else doing)

    with bar:
        meter = Meter(tell)
        yield meter
        meter.finish()
