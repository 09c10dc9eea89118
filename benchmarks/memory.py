"""Brings the machine's memory into a known state before a run.

    python -m benchmarks.memory NBYTES FILE...

A virtual machine gives free pages back to its host, and the first touch afterwards is many times slower. So half of
the rows are run with that many bytes of memory touched just before, by this process, which then ends. The other half
are run after a pause, in which free pages go back. The files, a run's input, are in the page cache either way.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

MARGIN = 1_000_000_000  # beyond what a run will need
CHUNK = 1 << 20
PAUSE_SECONDS = 3.0  # Linux reports free pages two seconds after they became free
MADV_POPULATE_WRITE = 23


def settle(needed: int, files: Iterable[Path], *, prefault: bool) -> None:
    """Prepare for a run that will fill `needed` bytes of page cache and reads `files`."""
    os.sync()  # what was removed is gone from the journal, and nothing of an earlier run is still on its way
    if not prefault:
        time.sleep(PAUSE_SECONDS)
    command = [sys.executable, __file__, str(needed + MARGIN if prefault else 0), *map(str, files)]
    subprocess.run(command, check=True)


def touch(nbytes: int) -> None:
    """Touch so many bytes, or all that are free: more would drop what is in the page cache."""
    nbytes = min(nbytes, _free())
    if nbytes <= 0:
        return
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(MADV_POPULATE_WRITE)
    except OSError:  # Linux before 5.14
        for offset in range(0, nbytes, mmap.PAGESIZE):
            memory[offset] = 1
    memory.close()


def _free() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemFree:"):
            return int(line.split()[1]) * 1024 - 300_000_000  # below this the system starts to reclaim
    raise RuntimeError("/proc/meminfo has no MemFree")


def cached(file: Path) -> bool:
    """Whether all of a file is in the page cache."""
    size = file.stat().st_size
    if not size:
        return True
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), size, flags=mmap.MAP_PRIVATE) as mapped:
        libc = ctypes.CDLL(None, use_errno=True)
        pages = -(-size // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * pages)()
        anchor = ctypes.c_char.from_buffer(mapped)
        try:
            failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(size), found)
        finally:
            del anchor
        return not failed and sum(byte & 1 for byte in bytes(found)) == pages


def read(file: Path) -> None:
    """Read a file, so that it is in the page cache."""
    buffer = bytearray(CHUNK)
    with file.open("rb", buffering=0) as opened:
        while opened.readinto(buffer):
            pass


if __name__ == "__main__":
    for name in sys.argv[2:]:
        if not cached(Path(name)):
            read(Path(name))
    touch(int(sys.argv[1]))  # last: the host gets back what is free, and fast
