from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from benchmarks.process import CommandFailedError, measure

NBYTES = 150_000_000


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_memory_is_the_process_s_own_and_apart_by_kind(tmp_path: Path) -> None:
    file = tmp_path / "mapped"
    with file.open("wb") as opened:
        opened.truncate(NBYTES)
    taken = f"x = bytearray({NBYTES}); import time; time.sleep(0.1)"
    mapped = (
        f"import mmap, time; f = open({str(file)!r}); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ);"
        f"[m[i] for i in range(0, {NBYTES}, 4096)]; time.sleep(0.1)"
    )
    held = bytearray(NBYTES * 2)  # this process's own memory is not the other's
    small = measure(python("import time; time.sleep(0.1)"), log=tmp_path / "log")
    anonymous = measure(python(taken), log=tmp_path / "log")
    from_file = measure(python(mapped), log=tmp_path / "log")
    assert len(held) > small.resident * 2
    assert anonymous.anonymous > NBYTES > anonymous.file
    assert from_file.file > NBYTES > from_file.anonymous
    assert min(anonymous.resident, from_file.resident) > NBYTES


def test_times_of_several_commands_add_up(tmp_path: Path) -> None:
    sleep, work = "import time; time.sleep(0.2)", "sum(range(5_000_000))"
    start = time.perf_counter()
    both = measure(python(sleep), python(work), log=tmp_path / "log")
    elapsed = time.perf_counter() - start
    assert 0.2 < both.wall <= elapsed
    assert both.cpu > 0
    assert both.user > 0


def test_a_command_that_fails_says_what_it_printed(tmp_path: Path) -> None:
    with pytest.raises(CommandFailedError, match="ended with 3:\nno such luck"):
        measure(python("import sys; sys.stderr.write('no such luck'); sys.exit(3)"), log=tmp_path / "log")
