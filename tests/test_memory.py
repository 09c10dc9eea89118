"""The peak that a plan predicts is the one that is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from converters import memory
from converters.memory import MemoryEstimate, measured_peak, resident
from tests.commands.support import CONFIG, REPOSITORY, SPEC, environment, phi_shapes, run_weightmap, write_checkpoint

TRANSPOSE = """\
weightmap: 1
source: {layout: a}
target: {layout: b}
rules:
  - from: "{rest:path}.weight"
    to: "{rest:path}.weight"
    layout: i o -> o i
"""
LARGE = {"hidden": 1024, "inner": 4096, "vocab": 8000}
LARGE_CONFIG = {**CONFIG, "hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 8000}


def predicted_and_measured(*words: str | Path, output: Path) -> tuple[int, int]:
    """The peak in bytes that `plan` tells, and the one that `convert` measures, each in a process of its own."""
    plan = run_weightmap("plan", *words, "--json")
    assert plan.returncode == 0, plan.stderr
    done = run_weightmap("convert", *words[:3], output, *words[3:], "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(plan.stdout)["memory"]["peak"], json.loads(done.stdout)["memory"]["measured_peak"]


@pytest.mark.parametrize(
    "options", [(), ("--dtype", "float32"), ("--dtype", "bfloat16", "--threads", "1"), ("--max-memory", "32MB")]
)
def test_copies_and_casts(tmp_path: Path, options: tuple[str, ...]) -> None:
    source = write_checkpoint(tmp_path / "phi", phi_shapes(**LARGE), config=LARGE_CONFIG, dtype="F16")
    predicted, measured = predicted_and_measured("--spec", SPEC, source, *options, output=tmp_path / "out")
    assert abs(predicted - measured) < 0.2 * measured


@pytest.mark.parametrize(
    "options", [(), ("--dtype", "float16"), ("--threads", "4"), ("--max-memory", "64MB", "--threads", "4")]
)
def test_transposes(tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "spec.yaml").write_text(TRANSPOSE)
    shapes = {f"layers.{layer}.weight": [2048, 4096] for layer in range(2)}
    source = write_checkpoint(tmp_path / "source", shapes, config=None)
    predicted, measured = predicted_and_measured(
        "--spec", tmp_path / "spec.yaml", source, *options, output=tmp_path / "out"
    )
    assert abs(predicted - measured) < 0.2 * measured


def test_plain_copies_never_import_numpy(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(TRANSPOSE.replace("    layout: i o -> o i\n", ""))
    source = write_checkpoint(tmp_path / "source", {"a.weight": [512, 512]}, config=None)
    code = (
        "import sys\nfrom converters.commands import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n"
        "assert 'numpy' not in sys.modules"
    )
    line = [sys.executable, "-c", code, "convert", "--spec", tmp_path / "spec.yaml", source, tmp_path / "out", "--json"]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    estimate = json.loads(done.stdout)["memory"]
    assert estimate["libraries"] == 0
    assert estimate["peak"] < estimate["process"] + 5_000_000


def test_the_budget_is_kept(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(TRANSPOSE)
    source = write_checkpoint(tmp_path / "source", {f"{n}.weight": [2048, 4096] for n in range(3)}, config=None)
    words = ("convert", "--spec", tmp_path / "spec.yaml", source, tmp_path / "out", "--threads", "4", "--json")
    result = run_weightmap(*words, "--max-memory", "40MB")
    data = json.loads(result.stdout)["memory"]
    assert data["measured_peak"] - data["process"] < 40_000_000


def test_what_a_library_adds_is_as_documented() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from converters.memory import resident\n"
        "import click\n"
        "before = resident()\nimport numpy\nmiddle = resident()\nimport ml_dtypes\n"
        "print(middle - before, resident() - middle)"
    )
    line = [sys.executable, "-c", code]
    numpy, ml_dtypes = map(int, subprocess.run(line, capture_output=True, text=True, check=True).stdout.split())
    assert abs(numpy - memory.NUMPY_NBYTES) < 0.6 * memory.NUMPY_NBYTES
    assert abs(ml_dtypes - memory.ML_DTYPES_NBYTES) < memory.ML_DTYPES_NBYTES


def test_the_peak_is_at_least_what_was_reached() -> None:
    assert MemoryEstimate(10, 2, 3).peak == 15
    assert MemoryEstimate(10, 2, 3, 40).peak == 40
    assert measured_peak() >= resident() > 1_000_000


def test_without_proc_the_system_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "nothing")
    assert measured_peak() == resident() > 1_000_000
