"""Python's collector of reference cycles, kept quiet where a hundred thousand tensors become a million objects."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """Within the block, or the function that it decorates, no cycles are looked for.

    Headers and plans have no cycles. The collector can't know that, and while they grow it would walk through all of
    them again and again: at a hundred thousand tensors that took as long as planning itself.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
