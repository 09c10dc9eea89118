"""A few steps that a signal must not come between, such as making a lock file and remembering that it was made."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Within the block, signals that have a handler are only noted; the handlers are called at its end.

    Keep the block short. Blocking the signals themselves would not do: another thread would take them.
    """
    if threading.current_thread() is not threading.main_thread():  # only the first one handles signals
        yield
        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        came.append(number)

    usual = {number: handler for number in _STOPPING if callable(handler := signal.getsignal(number))}
    try:
        for number in usual:
            signal.signal(number, note)
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        for missed in came:
            signal.raise_signal(missed)
