"""The report as one HTML file that needs nothing else: no network, no scripts; readable in light and dark."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Final

from converters.errors import WeightmapError
from converters.text import format_nbytes, printable
from converters.verify.report import Finding, Gate, Input, LevelResult, Measurement, Report, Severity, Verdict

SHOWN_FINDINGS: Final = 200
"""Findings of one level that the page lists; the JSON has all of them."""

OPEN_FINDINGS: Final = 12
"""Findings of one level that are shown without a click."""

SHOWN_ROWS: Final = 25
"""Rows of the tables of measurements."""

_STYLE: Final = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1d2329; --soft: #5b6670; --faint: #d8dee4; --panel: #f5f7f9;
  --pass: #12703c; --fail: #b3261e; --open: #8a5a00; --exact: #dfe7ee; --line: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181c; --ink: #e4e9ee; --soft: #9aa7b3; --faint: #3a444e;
  --panel: #1c2228; --pass: #5fd38d; --fail: #ff8a80; --open: #f5c265; --exact: #2b343d; --line: #7cb7f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
table { border-collapse: collapse; margin: .5rem 0; } .wide { overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--faint); }
th { color: var(--soft); font-weight: 600; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
code { font: .88em ui-monospace, monospace; overflow-wrap: break-word; } .soft code { overflow-wrap: anywhere; }
.soft { color: var(--soft); } ul { margin: .3rem 0; padding-left: 1.2rem; }
.verdict { font-weight: 700; white-space: nowrap; } .pass { color: var(--pass); } .fail { color: var(--fail); }
.open { color: var(--open); }
.banner { border-left: .4rem solid; padding: .6rem 1rem; background: var(--panel); margin: 1rem 0; font-size: 1.1rem; }
svg { display: block; height: auto; margin: .5rem 0; } details { margin: .5rem 0; } summary { cursor: pointer; }
@media print { body { max-width: none; } }
"""
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_CLASSES: Final = {Verdict.PASS: "pass", Verdict.FAIL: "fail", Verdict.NOT_PROVED: "open"}
_WORDS: Final = {
    Verdict.PASS: "Pass: everything that was asked for is proved.",
    Verdict.FAIL: "Fail: the target is not what the spec makes of the source.",
    Verdict.NOT_PROVED: "Not proved: nothing wrong was found, but not everything that was asked for is proved.",
}


def check_plotting() -> None:
    """Make sure that a report can be drawn, before hours are spent on what it would show.

    Raises:
        WeightmapError: matplotlib isn't installed.
    """
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise WeightmapError("an HTML report needs matplotlib", hint="pip install 'weightmap[report]', or use --json")


def to_html(report: Report) -> str:
    """The whole page.

    Raises:
        WeightmapError: matplotlib isn't installed.
    """
    check_plotting()
    verdict = report.verdict
    body = [
        f"<h1>weightmap verify: {_text(report.spec)}</h1>",
        f'<p class="soft">{_text(_sides(report))}</p>',
        f'<p class="banner {_CLASSES[verdict]}"><span class="verdict">{_text(_WORDS[verdict])}</span></p>',
        _levels(report),
        *(_level(result) for result in report.levels),
        _provenance(report),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(verdict.value)}: {_text(report.spec)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def _text(value: object) -> str:
    """Any text, from whatever file, safe to put between tags and into attributes."""
    return html.escape(printable(str(value)))


def _sides(report: Report) -> str:
    paths = {one.role: one.path for one in report.inputs}
    direction = "the spec in reverse" if report.reverse else "the spec"
    return f"{paths.get('target', '?')} against what {direction} makes of {paths.get('source', '?')}"


def _badge(verdict: Verdict) -> str:
    return f'<span class="verdict {_CLASSES[verdict]}">{_text(verdict.value.upper())}</span>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: frozenset[int] = frozenset()) -> str:
    """A table of cells that are HTML already; `numbers` are the columns aligned to the right."""
    cells = "".join(f"<th>{_text(name)}</th>" for name in head)
    lines = [f"<tr>{cells}</tr>"]
    for row in rows:
        tags = ('<td class="number">' if column in numbers else "<td>" for column in range(len(row)))
        lines.append("<tr>" + "".join(f"{tag}{cell}</td>" for tag, cell in zip(tags, row, strict=True)) + "</tr>")
    return '<div class="wide"><table>' + "\n".join(lines) + "</table></div>" if len(lines) > 1 else ""


def _levels(report: Report) -> str:
    rows = [
        (_text(result.level), _badge(result.verdict), _text(result.reason), _text(_seconds(result.seconds)))
        for result in report.levels
    ]
    rows.extend(
        (_text(one.level), '<span class="soft">not run</span>', _text(one.reason), "") for one in report.not_run
    )
    return _table(("level", "verdict", "", "time"), rows, frozenset({3}))


def _level(result: LevelResult) -> str:
    from converters.verify.plots import depth_plot, heat_map

    ran = " · ".join(_text(text) for text in (result.device, result.dtype) if text)
    parts = [
        f"<h2>{_text(result.level)} {_badge(result.verdict)}</h2>",
        f"<p>{_text(result.reason)}</p>",
        f'<p class="soft">computed on {ran}</p>' if ran else "",
        "<ul>" + "".join(f"<li>{_text(line)}</li>" for line in result.evidence) + "</ul>" if result.evidence else "",
        _gates(result.gates, result.gate),
    ]
    if picture := heat_map(result.measurements, f"{result.level}-heat"):
        parts.append("<h3>Error by layer and part</h3>")
        parts.append(f'<p class="soft">Grey: no error at all. Red: NaN or infinite.</p>{picture}')
    if picture := depth_plot(result.measurements, f"{result.level}-depth"):
        parts.append(f"<h3>Error against depth</h3>{picture}")
    parts.append(_findings(result.findings))
    parts.append(_measurements(result.measurements))
    return "\n".join(part for part in parts if part)


def _gates(gates: Sequence[Gate], deciding: Gate | None) -> str:
    rows = [
        (
            _text(gate.name) + (" <strong>(decided)</strong>" if gate == deciding else ""),
            _text(_number(gate.measured)),
            _text(f"{'≥' if gate.at_least else '≤'} {_number(gate.tolerance)}"),
            _badge(Verdict.PASS if gate.passed else Verdict.FAIL),
            f"<code>{_text(gate.where)}</code>" if gate.where else "",
        )
        for gate in gates
    ]
    return _table(("gate", "measured", "bound", "", "where"), rows, frozenset({1, 2}))


def _findings(findings: Sequence[Finding]) -> str:
    classes = {Severity.ERROR: "fail", Severity.WARNING: "open", Severity.NOTE: "soft"}
    rows = [
        (
            f'<span class="{classes[one.severity]}">{_text(one.severity)}</span>',
            f"<code>{_text(one.where)}</code>" if one.where is not None else "",
            _what(one),
        )
        for one in findings[:SHOWN_FINDINGS]
    ]
    if not rows:
        return ""
    head = ("", "where", "what")
    parts = ["<h3>Findings</h3>", _table(head, rows[:OPEN_FINDINGS])]
    if rest := rows[OPEN_FINDINGS:]:
        if len(findings) > SHOWN_FINDINGS:
            rest.append(("", "", f"and {len(findings) - SHOWN_FINDINGS:,} more; the JSON lists all of them"))
        summary = f"<summary>{len(findings) - OPEN_FINDINGS:,} more</summary>"
        parts.append(f"<details>{summary}{_table(head, rest)}</details>")
    return "\n".join(parts)


def _what(one: Finding) -> str:
    lines = [_text(one.what)]
    if one.expected is not None or one.got is not None:
        lines.append(
            f"expected <code>{_text(one.expected or 'nothing')}</code>, got <code>{_text(one.got or 'nothing')}</code>"
        )
    if one.diagnosis is not None:
        lines.append(f"<strong>{_text(one.diagnosis)}</strong>")
    if one.rule is not None:
        lines.append(f'<span class="soft">by <code>{_text(one.rule)}</code></span>')
    if one.hint is not None:
        lines.append(f'<span class="soft">{_text(one.hint)}</span>')
    return "<br>".join(lines)


def _measurements(measurements: Sequence[Measurement]) -> str:
    def badness(one: Measurement) -> float:
        value = one.relative if one.relative is not None else one.max_abs
        return math.inf if value is None or math.isnan(value) else value

    worst = sorted((one for one in measurements if badness(one) > 0), key=badness, reverse=True)
    if not measurements:
        return ""
    if not worst:
        return f'<p class="soft">{len(measurements):,} measured, all of them without any difference.</p>'
    shown = worst[:SHOWN_ROWS]
    columns: list[tuple[str, list[float | str | None]]] = [
        ("largest", [one.max_abs for one in shown]),
        ("relative", [one.relative for one in shown]),
        ("inherited", [one.inherited for one in shown]),
        ("added", [one.added for one in shown]),
    ]
    names = dict.fromkeys(name for one in shown for name in one.values)
    columns.extend((name, [one.values.get(name) for one in shown]) for name in names)
    kept = [(name, values) for name, values in columns if any(value is not None for value in values)]
    rows = [
        (
            f"<code>{_text(one.name)}</code>",
            f"<code>{_text(one.counterpart)}</code>" if one.counterpart else "",
            *(_text(_number(values[number])) for _, values in kept),
            "" if one.passed is None else _badge(Verdict.PASS if one.passed else Verdict.FAIL),
        )
        for number, one in enumerate(shown)
    ]
    head = (worst[0].kind, "made of" if any(one.counterpart for one in shown) else "", *(name for name, _ in kept), "")
    heading = f"<h3>The worst: {len(shown)} of {len(measurements):,}, {len(worst):,} of which differ at all</h3>"
    return heading + _table(head, rows, frozenset(range(2, 2 + len(kept))))


def _provenance(report: Report) -> str:
    rows = [
        ("spec", f"<code>{_text(report.spec_path or report.spec)}</code>{' in reverse' if report.reverse else ''}"),
        ("spec sha256", f"<code>{_text(report.spec_digest)}</code>"),
        ("command", f"<code>{_text(report.command)}</code>" if report.command else ""),
        ("started", f"{_text(report.started)}, took {_text(_seconds(report.seconds))}"),
        ("versions", _text(", ".join(f"{name} {version}" for name, version in report.versions.items()))),
    ]
    table = _table(("", ""), [row for row in rows if row[1]])
    return "<h2>Where this comes from</h2>" + table + "".join(_files(one) for one in report.inputs)


def _files(one: Input) -> str:
    rows = [
        (
            f"<code>{_text(file.name)}</code>",
            _text(format_nbytes(file.nbytes)),
            f"<code>{_text(file.digest)}</code>",
            _text(file.digest_of),
        )
        for file in one.files
    ]
    heading = f"{_text(one.role)}: <code>{_text(one.path)}</code>, {len(rows)} files"
    table = _table(("file", "size", "digest", "of its"), rows, frozenset({1}))
    return f"<details><summary>{heading}</summary>{table}</details>"


def _number(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
