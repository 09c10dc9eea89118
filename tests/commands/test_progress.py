"""The progress bar, on a terminal that is made for the test."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from converters.commands.progress import Meter, progress_bar
from tests.commands.support import CONFIG, REPOSITORY, SPEC, environment, phi_shapes, write_checkpoint


def on_a_terminal(*words: str | Path, **more: str) -> str:
    """What a command shows on a terminal, as its standard error."""
    parent, child = pty.openpty()
    line = [sys.executable, str(REPOSITORY / "cli.py"), *map(str, words)]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=child, env=environment(TERM="xterm", COLUMNS="100", **more)
    ) as process:
        os.close(child)
        shown = bytearray()
        while True:
            try:
                part = os.read(parent, 65536)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            shown += part
    os.close(parent)
    assert process.returncode == 0
    return shown.decode()


def test_the_bar_is_shown_on_a_terminal_and_only_when_wanted(tmp_path: Path) -> None:
    shapes = phi_shapes(hidden=512, inner=2048, vocab=5000)
    config = {**CONFIG, "hidden_size": 512, "intermediate_size": 2048, "vocab_size": 5000}
    source = write_checkpoint(tmp_path / "phi", shapes, config=config)
    words = ("convert", "--spec", SPEC, source)
    shown = on_a_terminal(*words, tmp_path / "a")
    assert "Converting" in shown
    assert "MB" in shown
    assert "\x1b[" in shown
    assert "\x1b[3" not in on_a_terminal(*words, tmp_path / "b", NO_COLOR="1")
    assert on_a_terminal(*words, tmp_path / "c", "--quiet") == ""


def test_a_meter_adds_up_and_tells_seldom() -> None:
    told: list[int] = []
    meter = Meter(told.append)
    for _ in range(1000):
        meter(3)
    meter.finish()
    assert told[-1] == meter.nbytes == 3000
    assert len(told) < 20


def test_without_a_terminal_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(10, shown=True) as meter:
        meter(10)
    assert meter.nbytes == 10
    assert capsys.readouterr() == ("", "")
