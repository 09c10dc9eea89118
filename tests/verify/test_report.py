from __future__ import annotations

import json
import math

import pytest

import converters
from converters.verify.report import (
    LEVELS,
    Finding,
    Gate,
    Input,
    InputFile,
    LevelResult,
    Measurement,
    Report,
    Severity,
    Skipped,
    Verdict,
)

HOSTILE = "a<script>\x1b[2J\u202e$x$\"'&"


def result(verdict: Verdict, level: str = "accounting", *findings: Finding) -> LevelResult:
    return LevelResult(level, verdict, f"because of {level}", findings=findings)


def full_report() -> Report:
    """Every field set, with names that try to break out of wherever they are shown."""
    finding = Finding(
        "kind",
        "what",
        HOSTILE,
        "1",
        "2",
        Severity.WARNING,
        "rule (spec.yaml:3)",
        3,
        "diagnosis",
        "hint",
        {"n": math.nan, "i": 2, "t": "x"},
    )
    measurement = Measurement(
        "module",
        HOSTILE,
        HOSTILE,
        3,
        HOSTILE,
        math.inf,
        math.nan,
        0.5,
        1e-7,
        1e-5,
        passed=False,
        values={"cosine": 0.5},
    )
    gate = Gate("cosine", 0.5, 0.9, at_least=True, where=HOSTILE)
    level = LevelResult(
        "modules",
        Verdict.FAIL,
        "reason",
        ("one", HOSTILE),
        (finding, Finding("error", "wrong", HOSTILE)),
        (
            measurement,
            Measurement("module", "b", layer=4, part="p", relative=0.0),
            Measurement("block", "c", layer=5, part="p", relative=0.1, inherited=0.05, added=0.05),
        ),
        (gate,),
        gate,
        "cpu",
        "float32",
        {"torch": "2"},
        1.5,
    )
    return Report(
        (result(Verdict.PASS), level),
        (Skipped("logits", HOSTILE),),
        "spec",
        "spec.yaml",
        "ab" * 32,
        reverse=True,
        inputs=(
            Input("source", HOSTILE, (InputFile("model.safetensors", 12, "cd" * 32, "contents"),)),
            Input("target", "t"),
        ),
        versions={"python": "3"},
        command="weightmap verify",
        started="2026-01-01T00:00:00+00:00",
        seconds=2.5,
    )


@pytest.mark.parametrize(
    ("verdicts", "expected", "exit_code"),
    [
        ((), Verdict.NOT_PROVED, 9),
        ((Verdict.PASS,), Verdict.PASS, 0),
        ((Verdict.PASS, Verdict.NOT_PROVED), Verdict.NOT_PROVED, 9),
        ((Verdict.NOT_PROVED, Verdict.FAIL, Verdict.PASS), Verdict.FAIL, 4),
    ],
)
def test_verdict_and_exit_code(verdicts: tuple[Verdict, ...], expected: Verdict, exit_code: int) -> None:
    report = Report(tuple(map(result, verdicts)))
    assert (report.verdict, report.exit_code) == (expected, exit_code)


def test_raise_for_failure_lists_what_failed() -> None:
    Report((result(Verdict.PASS),)).raise_for_failure(allow_not_proved=False)
    Report((result(Verdict.NOT_PROVED),)).raise_for_failure()
    note = Finding("note", "only a note", severity=Severity.NOTE)
    failed = result(Verdict.FAIL, "roundtrip", Finding("kind", "what", "key", "1", "2", diagnosis="swapped"), note)
    with pytest.raises(converters.VerificationError) as error:
        Report((failed,)).raise_for_failure()
    assert [str(problem) for problem in error.value.problems] == ["key: what; expected 1, got 2; swapped"]
    assert error.value.exit_code == 4
    with pytest.raises(converters.VerificationError, match="accounting: not proved: because of accounting"):
        Report((result(Verdict.NOT_PROVED),)).raise_for_failure(allow_not_proved=False)


def test_json_both_ways() -> None:
    report = full_report()
    text = report.to_json()
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (data["weightmap_report"], data["verdict"], data["exit_code"]) == (2, "fail", 4)
    assert data["levels"][1]["measurements"][0]["max_abs"] == "Infinity"
    read = Report.from_json(text)
    assert read.to_json() == text
    assert read.levels[1].findings[1] == report.levels[1].findings[1]
    assert math.isnan(read.levels[1].measurements[0].relative or 0)
    assert read.levels[1].gate == report.levels[1].gate


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weightmap_report": 99}', '{"weightmap_report": 2, "levels": [1]}'])
def test_what_is_no_report(text: str) -> None:
    with pytest.raises(converters.WeightmapError):
        Report.from_json(text)


def test_findings_are_safe_to_print() -> None:
    finding = Finding("kind", HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    for text in (finding.text, str(finding.problem()), str(Gate("g", 1.0, 2.0, where=HOSTILE))):
        assert "\x1b" not in text
        assert "\u202e" not in text


def test_gates_keep_their_bounds_and_nan_keeps_none() -> None:
    assert Gate("g", 1.0, 1.0).passed
    assert not Gate("g", 1.1, 1.0).passed
    assert Gate("g", 1.1, 1.0, at_least=True).passed
    assert not Gate("g", math.nan, 1.0).passed
    assert not Gate("g", math.nan, 1.0, at_least=True).passed


def test_levels_by_name() -> None:
    report = full_report()
    assert report.level("modules") is report.levels[1]
    assert report.level("logits") is None
    assert LEVELS == ("accounting", "roundtrip", "modules", "logits")
