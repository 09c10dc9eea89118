"""What libraries are told before they are imported: by which commands, and never over what the user said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.commands.support import SPEC, environment, write_checkpoint

THREADS = "OPENBLAS_NUM_THREADS"


def threads_after(*words: str | Path, given: str | None = None) -> str:
    """What the environment says of OpenBLAS's threads when a command is done."""
    code = (
        "import os, sys\nfrom converters.commands import main\n"
        f"try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    print('\\n' + os.environ.get({THREADS!r}, 'nothing'))"
    )
    variables = {name: value for name, value in environment().items() if name != THREADS}
    variables |= {THREADS: given} if given is not None else {}
    line = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=True, env=variables).stdout.splitlines()[-1]


def test_a_conversion_starts_no_threads_for_matrix_products(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "phi")
    assert threads_after("convert", "--spec", SPEC, source, tmp_path / "a") == "1"
    assert threads_after("convert", "--spec", SPEC, source, tmp_path / "b", given="3") == "3"


def test_verify_does_so_where_it_runs_no_models(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "phi")
    verify = ("verify", "--spec", "missing", source, source)  # it ends there, and never runs them
    for words in (("--level", "roundtrip"), ("--level", "accounting"), ("--only", "roundtrip")):
        assert threads_after(*verify, *words) == "1", words
    for words in (("--level", "modules"), ("--only", "roundtrip", "--only", "logits"), ()):
        assert threads_after(*verify, *words) == "nothing", words
