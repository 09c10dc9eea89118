from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import xxhash
from click.testing import CliRunner, Result

import converters
from converters.commands.program import main
from converters.commands.verify import LEVELS
from converters.verify import report as reports
from tests.verify.damage import LAYER, SPEC, edit, make_source, make_target

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("command") / "source")


@pytest.fixture(scope="module")
def good(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_target(source, tmp_path_factory.mktemp("command") / "good")


@pytest.fixture
def bad(good: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "bad"
    shutil.copytree(good, copy)
    edit(copy, lambda tensors: tensors.update({f"{LAYER}.norm1.weight": tensors[f"{LAYER}.norm1.weight"] + 1}))
    return copy


def run(*args: object) -> Result:
    return CliRunner().invoke(main, ["verify", "--spec", SPEC, *map(str, args)])


def test_levels_are_the_report_s() -> None:
    assert LEVELS == reports.LEVELS


def test_a_pass_is_exit_0_and_says_what_was_proved(source: Path, good: Path) -> None:
    result = run(source, good, "--level", "roundtrip")
    assert result.exit_code == 0, result.output
    assert "PASS: accounting and roundtrip proved in" in result.stdout
    assert "not run" in result.stdout


def test_a_failure_is_exit_4_and_says_where(source: Path, bad: Path) -> None:
    result = run(source, bad, "--level", "roundtrip")
    assert result.exit_code == 4, result.output
    text = " ".join(result.stdout.split())
    assert f"error: {LAYER}.norm1.weight: 48 of 48 elements differ" in text
    assert "+1 was added to 48 values in a row" in text
    assert "phi2_to_tenny.yaml:47" in text
    assert "FAIL: the target is not what the spec makes of the source" in text


def test_not_proved_is_exit_9(source: Path, good: Path) -> None:
    result = run(source, good, "--only", "logits", "--source-model", "no.such.package:Model")
    assert result.exit_code == 9, result.output
    assert "NOT PROVED" in result.stdout


def test_json_is_the_report(source: Path, bad: Path) -> None:
    result = run(source, bad, "--level", "roundtrip", "--json")
    assert result.exit_code == 4
    report = converters.Report.from_json(result.stdout)
    assert report.verdict is converters.Verdict.FAIL
    assert {finding.kind for finding in report.findings} == {"different-values", "source-not-restored"}
    digests = {file.name: file.digest for one in report.inputs if one.role == "source" for file in one.files}
    assert digests == {name: f"xxh3:{xxhash.xxh3_128_hexdigest((source / name).read_bytes())}" for name in digests}
    assert "config.json" in digests
    assert report.spec_digest == converters.load_spec(SPEC).digest


def test_digests_can_be_those_that_nobody_can_forge(source: Path, good: Path) -> None:
    report = converters.Report.from_json(
        run(source, good, "--only", "roundtrip", "--digest", "sha256", "--json").stdout
    )
    for one, directory in zip(report.inputs, (source, good), strict=True):
        digests = {file.name: file.digest for file in one.files}
        expected = {name: f"sha256:{hashlib.sha256((directory / name).read_bytes()).hexdigest()}" for name in digests}
        assert digests == expected
        assert "config.json" in digests
    with pytest.raises(ValueError, match="'md5'"):
        converters.verify(converters.load_spec(SPEC), source, good, digest="md5")


def test_json_errors_keep_their_form(source: Path) -> None:
    result = run(source, "nowhere", "--json")
    assert result.exit_code == 7
    assert json.loads(result.stdout)["error"]["kind"] == "CheckpointError"


def test_only_runs_single_levels_and_quiet_is_quiet(source: Path, good: Path) -> None:
    report = converters.Report.from_json(run(source, good, "--only", "roundtrip", "--json").stdout)
    assert [level.level for level in report.levels] == ["roundtrip"]
    assert [skipped.level for skipped in report.not_run] == ["accounting", "modules", "logits"]
    result = run(source, good, "--only", "accounting", "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_options_that_exclude_each_other(source: Path, good: Path, tmp_path: Path) -> None:
    assert run(source, good, "--level", "accounting", "--only", "roundtrip").exit_code == 2
    assert run(source, good, "--level", "everything").exit_code == 2
    assert run(source, good, "--report", tmp_path / "no" / "report.html").exit_code == 2


def test_the_options_of_the_conversion(source: Path, tmp_path: Path) -> None:
    target = make_target(source, tmp_path / "target", dtype="float16", set_config={"block": "classic"})
    assert run(source, target, "--level", "roundtrip").exit_code == 4
    result = run(source, target, "--level", "roundtrip", "--cast", "float16", "--set", "block=classic")
    assert result.exit_code == 0, result.output


def test_reverse(good: Path, tmp_path: Path) -> None:
    converters.convert(converters.load_spec(SPEC), good, tmp_path / "back", reverse=True)
    assert run(good, tmp_path / "back", "--reverse", "--level", "roundtrip").exit_code == 0


def test_the_html_report_is_written_whole(source: Path, bad: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = run(source, bad, "--level", "roundtrip", "--report", tmp_path / "report.html")
    assert result.exit_code == 4
    assert "FAIL" in (tmp_path / "report.html").read_text()
    assert [file.name for file in tmp_path.glob("*report*")] == ["report.html"]


def test_the_source_must_be_readable(good: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    assert run(tmp_path / "source", good).exit_code == 7
    assert run(good, good).exit_code == 6


def test_levels_1_and_2_import_no_tensor_library(source: Path, good: Path) -> None:
    program = (
        "import sys; from converters.commands.program import main\n"
        "code = main(['verify', *sys.argv[1:], '--level', 'roundtrip', '-q'], standalone_mode=False)\n"
        "print(code, [name for name in ('torch', 'transformers', 'matplotlib', 'rich') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, "--spec", SPEC, str(source), str(good)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "0 []"
