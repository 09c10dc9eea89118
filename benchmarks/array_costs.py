"""Processor seconds for a gigabyte of what the engine does to arrays: `python -m benchmarks.array_costs [DIRECTORY]`.

One thread, least of a few runs, by the processor's clock. Four files of a gigabyte are written into the directory,
which is to be on the disk that is asked about, and vanish at the end.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from converters.gather import assign
from converters.operations.cast import Cast
from converters.schedule import COMPUTED_CHUNK, COPY_BUFFER
from converters.tensor_info import DType

RUNS = 5
PANEL = 64 << 20
FILE = 16 * PANEL
GB = 1e9


def seconds(work: Callable[[], object]) -> float:
    """Least processor time of a few runs, in user and system mode."""
    found = []
    for _ in range(RUNS):
        start = time.thread_time()
        work()
        found.append(time.thread_time() - start)
    return min(found)


def rearranging() -> Iterator[tuple[str, float]]:
    """A matrix from the memory into the memory."""
    source = np.random.default_rng(0).integers(0, 1 << 16, (2560, 10240)).astype(np.uint16)
    same, other = np.zeros_like(source), np.zeros(source.shape[::-1], np.uint16)
    yield "copy in memory", seconds(lambda: np.copyto(same, source)) / source.nbytes
    yield "transpose, [2560, 10240] of 16 bits", seconds(lambda: assign(other, source.T)) / source.nbytes
    if not np.array_equal(other, source.T):
        raise AssertionError("a fast wrong copy")


def casting() -> Iterator[tuple[str, float]]:
    """Chunks of weights as a model has them: few of them are too small to be normal numbers."""
    values = np.random.default_rng(0).standard_normal(COMPUTED_CHUNK, np.float32) * np.float32(0.02)
    for raw, dtype in (
        (values.astype(np.float16).view(np.uint16), DType.F16),
        (values.view(np.uint32), DType.F32),
    ):
        cast = Cast(DType.BF16)
        chunks = range(100)
        spent = seconds(lambda: [cast.apply(raw, dtype, "w") for _ in chunks])  # noqa: B023 - called at once
        yield f"cast {dtype.label} to BF16, bytes in", spent / len(chunks) / raw.nbytes


def writing(directory: Path) -> Iterator[tuple[str, float]]:
    """A panel into new files, whole and in pieces: a large write takes large folios.

    These come from memory that may not have been touched for long, which a virtual machine has given back to its host.
    So all files stay until the end: memory that the last one has freed would be touched already.
    """
    panel = memoryview(bytearray(b"\1") * PANEL)
    pieces = (COPY_BUFFER, PANEL, COPY_BUFFER, PANEL)
    with ExitStack() as files:
        for piece in pieces:
            file = files.enter_context(tempfile.TemporaryFile(dir=directory, buffering=0))
            os.posix_fallocate(file.fileno(), 0, FILE)
            start = time.thread_time()
            for place in range(0, FILE, piece):
                first = place % PANEL
                os.pwrite(file.fileno(), panel[first : first + piece], place)
            yield f"write by {piece >> 10} KiB", (time.thread_time() - start) / FILE


def main() -> None:
    """Print the table."""
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.gettempdir())
    for rows in (rearranging(), casting(), writing(directory)):
        for name, spent in rows:
            print(f"{name:40} {spent * GB:6.2f} s/GB", flush=True)


if __name__ == "__main__":
    main()
