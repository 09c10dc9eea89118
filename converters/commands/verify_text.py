"""A verification's report as text for a terminal: what each level came to, and the findings that matter most."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from converters.commands.terminal import bold, counted, dim, labelled, pad, width, wrapped
from converters.text import printable

if TYPE_CHECKING:
    from converters.verify.report import Finding, LevelResult, Report, Verdict

SHOWN = 10
"""Findings of one level that are shown; `--json` and `--report` have more."""

_COLOURS = {"pass": "green", "fail": "red", "not proved": "yellow"}
_LEVEL_WIDTH, _VERDICT_WIDTH = 10, 10


def report_lines(report: Report) -> Iterator[str]:
    """The whole report, line by line."""
    paths = {one.role: printable(one.path) for one in report.inputs}
    yield bold(f"Verified {paths.get('target', '')} against {paths.get('source', '')}")
    reverse = " in reverse" if report.reverse else ""
    yield from labelled([("by", f"{printable(report.spec)}{reverse} (sha256 {report.spec_digest[:12]})")])
    yield ""
    for result in report.levels:
        yield from _level(result)
    for skipped in report.not_run:
        yield from _row(skipped.level, dim(pad("not run", _VERDICT_WIDTH)), skipped.reason)
    for result in report.levels:
        yield from _findings(result)
    yield ""
    yield f"{_shout(report.verdict)}{_advice(report)}"


def _level(result: LevelResult) -> Iterator[str]:
    took = f" ({_seconds(result.seconds)})" if result.seconds is not None else ""
    yield from _row(result.level, _shout(result.verdict, _VERDICT_WIDTH), f"{printable(result.reason, 10_000)}{took}")
    margin = " " * (_LEVEL_WIDTH + _VERDICT_WIDTH + 6)
    for line in result.evidence:
        for text in wrapped(printable(line, 10_000), width() - len(margin)):
            yield margin + dim(text)


def _row(level: str, verdict: str, text: str) -> Iterator[str]:
    margin = _LEVEL_WIDTH + _VERDICT_WIDTH + 6
    first, *rest = wrapped(text, width() - margin)
    yield f"  {pad(level, _LEVEL_WIDTH)}  {verdict}  {first}"
    for line in rest:
        yield " " * margin + line


def _findings(result: LevelResult) -> Iterator[str]:
    if not result.findings:
        return
    yield ""
    yield bold(f"{result.level}: {counted(len(result.findings), 'finding')}")
    for finding in result.findings[:SHOWN]:
        yield from _finding(finding)
    if len(result.findings) > SHOWN:
        yield dim(f"  and {len(result.findings) - SHOWN:,} more; --json lists all of them")


def _finding(finding: Finding) -> Iterator[str]:
    colour = {"error": "red", "warning": "yellow"}.get(finding.severity.value)
    where = f"{printable(finding.where)}: " if finding.where is not None else ""
    label = click.style(f"{finding.severity}:", fg=colour)
    lines = wrapped(f"{where}{printable(finding.what)}", width() - 4)
    yield f"  {label} {lines[0]}"
    details = list(lines[1:])
    if finding.expected is not None or finding.got is not None:
        details.append(printable(f"expected {finding.expected or 'nothing'}, got {finding.got or 'nothing'}"))
    details.extend(printable(text) for text in (finding.diagnosis, finding.hint) if text is not None)
    for detail in details:
        for line in wrapped(detail, width() - 6):
            yield f"      {line}"
    if finding.rule is not None:
        for line in wrapped(f"by {printable(finding.rule)}", width() - 6):
            yield dim(f"      {line}")


def _shout(verdict: Verdict, columns: int = 0) -> str:
    return click.style(pad(verdict.value.upper(), columns), fg=_COLOURS[verdict.value], bold=True)


def _advice(report: Report) -> str:
    match report.verdict.value:
        case "pass":
            proved = " and ".join(result.level for result in report.levels)
            return f": {proved} proved in {_seconds(report.seconds)}"
        case "fail":
            return ": the target is not what the spec makes of the source"
        case _:
            return ": nothing wrong was found, but not everything that was asked for is proved"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
