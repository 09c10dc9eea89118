"""Whatever a command ends in, its user gets one message and an exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from converters import errors
from converters.commands.guard import Guarded, guard
from converters.errors import Location, Problem
from tests.commands.support import REPOSITORY, SPEC, environment, write_checkpoint


def outcome(work: Callable[[], object], *words: str) -> Result:
    """What the user sees of a command that does this."""

    @click.command(cls=Guarded)
    @click.option("--json", "as_json", is_flag=True)
    @click.option("--debug", is_flag=True)
    def command(*, as_json: bool, debug: bool) -> object:
        del as_json, debug
        return work()

    return CliRunner().invoke(command, list(words))


def raising(error: BaseException) -> Callable[[], object]:
    def work() -> object:
        raise error

    return work


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.WeightmapError, 1),
        (errors.CoverageError, 3),
        (errors.VerificationError, 4),
        (errors.SpecError, 5),
        (errors.ConfigError, 6),
        (errors.CheckpointError, 7),
        (errors.OutputError, 8),
        (errors.OutputExistsError, 8),
        (errors.MemoryBudgetError, 1),
    ],
)
def test_each_error_has_its_exit_code(kind: type[errors.WeightmapError], code: int) -> None:
    result = outcome(raising(kind("this is wrong", "here", "do that")))
    assert result.exit_code == code
    assert result.stderr == "Error: here: this is wrong\n    do that\n"
    assert result.stdout == ""


def test_all_problems_are_shown_each_with_its_place_and_hint() -> None:
    problems = [Problem("one", Location("a.yaml", 3, 5), "so"), Problem("two", "model.weight"), Problem("three")]
    result = outcome(raising(errors.SpecError(problems)))
    assert result.stderr == "Error: 3 problems\n  a.yaml:3:5: one\n      so\n  model.weight: two\n  three\n"


def test_a_pointer_stays_under_what_it_points_at() -> None:
    result = outcome(raising(errors.SpecError("odd", Location("a.yaml", 1), "(H D\n    ^\n    close it")))
    assert result.stderr == "Error: a.yaml:1:1: odd\n    (H D\n    ^\n    close it\n"


def test_json_errors_are_on_both_outputs() -> None:
    problem = Problem("wrong", Location("a.yaml", 3, 5), "so")
    result = outcome(raising(errors.CoverageError(problem)), "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout) == {
        "error": {
            "kind": "CoverageError",
            "exit_code": 3,
            "problems": [
                {"what": "wrong", "where": "a.yaml:3:5", "hint": "so", "file": "a.yaml", "line": 3, "column": 5}
            ],
        }
    }
    assert result.stderr == "Error: a.yaml:3:5: wrong\n    so\n"


def test_json_usage_errors() -> None:
    result = outcome(lambda: None, "--json", "--nonsense")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["kind"] == "NoSuchOptionError" or "--nonsense" in result.stdout
    assert "--nonsense" in result.stderr


def test_control_characters_never_reach_the_terminal() -> None:
    for error in (errors.CheckpointError("\x1b[2J", "\x07"), RuntimeError("\x1b[2J"), OSError(2, "\x1b", "\x1b[2J")):
        result = outcome(raising(error), "--debug")
        assert result.exit_code
        assert "\x1b" not in result.output
        assert "\x07" not in result.output
        assert "\\x1b" in result.stderr


def test_an_unexpected_error_is_called_a_mistake_of_ours() -> None:
    result = outcome(raising(ZeroDivisionError("oh")))
    assert result.exit_code == 1
    assert "mistake in weightmap" in result.stderr
    assert "ZeroDivisionError: oh" in result.stderr
    assert "--debug" in result.stderr
    assert "Traceback" not in result.output


def test_debug_shows_the_traceback_of_any_error() -> None:
    for error in (ZeroDivisionError("oh"), errors.SpecError("oh")):
        result = outcome(raising(error), "--debug")
        assert "Traceback" in result.stderr
        assert "test_guard.py" in result.stderr


def test_what_the_system_refuses_is_no_mistake_of_ours() -> None:
    result = outcome(raising(PermissionError(13, "Permission denied", "some/file")))
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: some/file: the system refused: Permission denied\n")
    assert "not enough memory" in outcome(raising(MemoryError())).stderr


def test_interrupts() -> None:
    assert outcome(raising(KeyboardInterrupt())).exit_code == 130
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        result = outcome(lambda number=number: os.kill(os.getpid(), number), "--json")  # type: ignore[misc]
        assert result.exit_code == code
        assert f"stopped by {number.name}" in result.stderr
        assert json.loads(result.stdout)["error"]["kind"] == "Stopped"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_signals_that_are_ignored_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert outcome(lambda: os.kill(os.getpid(), signal.SIGHUP)).exit_code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_does_not_disturb_the_cleaning_up() -> None:
    cleaned = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            cleaned.append(True)

    assert outcome(work).exit_code == 143
    assert cleaned


def test_what_a_command_returns_is_its_exit_code() -> None:
    assert outcome(lambda: 9).exit_code == 9
    assert outcome(lambda: None).exit_code == 0


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "phi")
    command = [sys.executable, str(REPOSITORY / "cli.py"), "plan", "--spec", SPEC, str(source), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_can_not_be_written_is_an_error(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "phi")
    command = [sys.executable, str(REPOSITORY / "cli.py"), "inspect", str(source)]
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment())
    assert result.returncode == 1
    assert "No space left on device" in result.stderr
    assert "Traceback" not in result.stderr


def test_of_a_thousand_problems_a_hundred_are_shown() -> None:
    problems = [Problem(f"problem {number}") for number in range(1000)]

    def work() -> None:
        raise errors.CheckpointError(problems)

    lines = outcome(work).stderr.splitlines()
    assert lines[:2] == ["Error: 1000 problems", "  problem 0"]
    assert lines[-2:] == ["  problem 99", "  ... and 900 more"]


def test_a_signal_that_comes_within_a_destructor_stops_the_program_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)  # what is raised here, Python drops

    def run() -> None:
        thing = Dying()
        del thing
        time.sleep(5)
        raise AssertionError("the signal was lost")

    assert guard(run) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "Error: stopped by SIGTERM\n"
