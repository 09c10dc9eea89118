"""Each hostile case ends as it must: one clear error or an exact copy, and nothing run, printed raw or left behind."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.commands.support import weightmap
from tests.hostile.case import MARKER, Case, fault_of, listing
from tests.hostile.corpus import CASES
from tests.hostile.measure import measure
from tests.hostile.payloads import PAYLOADS
from tests.pickles import pickled


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_it_ends_as_it_must(case: Case, tmp_path: Path) -> None:
    case.write(tmp_path)
    before = listing(tmp_path)
    result = weightmap(*case.command(tmp_path))
    assert fault_of(case, tmp_path, before, result.exit_code, result.stdout, result.stderr) == ""


def test_there_are_enough_of_them_of_each_kind_and_none_twice() -> None:
    kinds = Counter(case.kind for case in CASES)
    assert set(kinds) == {
        "safetensors",
        "index",
        "pickle",
        "zip",
        "npz",
        "distributed",
        "spec",
        "config",
        "directory",
    }
    assert min(kinds.values()) >= 40
    assert sum(not case.code for case in CASES) >= 100
    assert sum(bool(case.code) for case in CASES) >= 400
    assert max(Counter(case.title for case in CASES).values()) == 1


def test_the_same_files_are_written_each_time(tmp_path: Path) -> None:
    """Payloads aside, which name their own directory."""
    for case in [case for case in CASES if not callable(case.files)][::10]:
        for name in ("one", "two"):
            (tmp_path / case.title.replace("/", "-")[:100] / name).mkdir(parents=True)
            case.write(tmp_path / case.title.replace("/", "-")[:100] / name)
        one, two = (
            {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
            for root in sorted((tmp_path / case.title.replace("/", "-")[:100]).iterdir())
        )
        assert one == two


@pytest.mark.parametrize("name", ["os.system", "open", "exec", "a name from the stack", "subprocess"])
def test_a_payload_leaves_the_marker_where_a_pickle_is_really_run(name: str, tmp_path: Path) -> None:
    """Else no case could show that payloads don't run; in a process of its own, since it is code of a stranger."""
    payload, _ = PAYLOADS[name]
    (tmp_path / "payload").write_bytes(pickled(payload(tmp_path)))
    code = f"import pickle; pickle.load(open({str(tmp_path / 'payload')!r}, 'rb'))"
    subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert (tmp_path / MARKER).exists()


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    """Each promise, broken on purpose."""
    case = Case("kind", "name", {"in/a": "x"}, 7, ("why",))
    case.write(tmp_path)
    before = listing(tmp_path)

    def fault(code: int = 7, output: str = "", errors: str = "Error: in/a: why") -> str:
        return fault_of(case, tmp_path, before, code, output, errors)

    assert fault() == ""
    assert fault(code=0).startswith("exit code 0, not 7")
    assert "traceback" in fault(errors="Error: why\nTraceback (most recent call last):")
    assert "traceback" in fault(errors="Error: this is a mistake in weightmap: why")
    assert "prints '\\x1b'" in fault(errors="Error: why \x1b[2J")
    assert "not one clear message" in fault(output="half of an answer")
    assert "not one clear message" in fault(errors="Warning: why")
    assert "lacks ['why']" in fault(errors="Error: something")
    assert "characters" in fault(errors="Error: why" + "x" * 100_000)
    (tmp_path / "outputs/half").write_text("written")
    assert "wrote or changed" in fault()
    (tmp_path / MARKER).write_text("run")
    assert fault() == "a payload was run"


def test_another_value_in_an_accepted_copy_is_told(tmp_path: Path) -> None:
    case = next(each for each in CASES if each.title == "safetensors: no metadata")
    case.write(tmp_path)
    result = weightmap(*case.command(tmp_path))
    assert fault_of(case, tmp_path, {}, result.exit_code, result.stdout, result.stderr) == ""
    path = tmp_path / "outputs/out/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    assert "other values in ['a']" in fault_of(case, tmp_path, {}, 0, "", "")


def test_a_sample_ends_as_it_must_in_a_process_of_its_own(tmp_path: Path) -> None:
    """As the command line runs, which the table of `make hostile` measures for all of them."""
    trials = measure(CASES[::40], tmp_path)
    assert [trial.title for trial in trials] == [case.title for case in CASES[::40]]
    assert [trial.fault for trial in trials if trial.fault] == []
    assert all(trial.seconds > 0 and trial.nbytes > 10_000_000 for trial in trials)


def test_pickles_of_the_corpus_are_what_pickle_reads() -> None:
    value = {"a": [1, (2.5, None, True)], "é": b"c"}
    assert pickle.loads(pickled({"a": [1, (2.5, None, True)], "é": "c"})) == {**value, "é": "c"}  # noqa: S301 - our own
