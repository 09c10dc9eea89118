"""What a verification found: plain data, from the single measurement up to the report, and JSON both ways."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import ClassVar, Final

from msgspec import Struct, field

from converters.errors import Problem, VerificationError
from converters.text import printable
from converters.verify import report_json

LEVELS: Final = ("accounting", "roundtrip", "modules", "logits")
"""The levels by name, from the cheapest to the strongest."""


class Verdict(enum.Enum):
    """What a level, or all of them together, came to."""

    PASS = "pass"
    FAIL = "fail"
    NOT_PROVED = "not proved"

    def __str__(self) -> str:
        return self.value


class Severity(enum.Enum):
    """How much a finding matters: an error fails its level, the others never do."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"

    def __str__(self) -> str:
        return self.value


class Finding(Struct, frozen=True):
    """One thing that is wrong, or worth knowing.

    Names are kept as they are in the files; whoever shows them makes them printable.

    Attributes:
        kind: which finding it is, for machines: a short slug such as `missing-tensor`, the same from run to run.
        what: the sentence that people read, without the place.
        where: the key, module or file that it is about.
        expected: what should be there.
        got: what is there.
        rule: the rule of the spec that it follows from, with its line.
        layer: the number of the layer that `where` belongs to, where it belongs to one.
        diagnosis: what probably happened, such as "equal to layer 3's".
        hint: the next step.
        values: numbers that belong to it, by name, such as `differing` or `max_abs`.
    """

    kind: str
    what: str
    where: str | None = None
    expected: str | None = None
    got: str | None = None
    severity: Severity = Severity.ERROR
    rule: str | None = None
    layer: int | None = None
    diagnosis: str | None = None
    hint: str | None = None
    values: Mapping[str, float | int | str] = field(default_factory=dict)

    def problem(self) -> Problem:
        """The finding as one of an error's problems."""
        return Problem(self.text, printable(self.where) if self.where is not None else None, self.hint)

    @property
    def text(self) -> str:
        """The finding in one line, safe to print, without `where` and `hint`."""
        parts = [self.what]
        if self.expected is not None or self.got is not None:
            parts.append(f"expected {self.expected or 'nothing'}, got {self.got or 'nothing'}")
        if self.diagnosis is not None:
            parts.append(self.diagnosis)
        if self.rule is not None:
            parts.append(f"by {self.rule}")
        return printable("; ".join(parts))


class Measurement(Struct, frozen=True):
    """One row of a table, and one cell of a heat map: how far a tensor, module, block or prompt is off.

    Attributes:
        kind: what was measured: `tensor`, `module`, `block`, `prompt`.
        name: its name on the target's side, or the prompt's.
        counterpart: its name on the source's side.
        layer: the heat map's column.
        part: the heat map's row: the name without its layer, such as `self_attn.q_proj`.
        max_abs: largest absolute difference.
        relative: the difference by the size of what it is a part of; the heat map's colour.
        inherited: what of `relative` was there in its input already.
        added: what of `relative` it added.
        tolerance: the bound for `relative`; None where nothing was asked of it.
        passed: whether it kept the bound; None where nothing was asked of it.
        values: further numbers by name, such as `cosine`, `kl`, `top1`, `ulps`.
    """

    kind: str
    name: str
    counterpart: str | None = None
    layer: int | None = None
    part: str | None = None
    max_abs: float | None = None
    relative: float | None = None
    inherited: float | None = None
    added: float | None = None
    tolerance: float | None = None
    passed: bool | None = None
    values: Mapping[str, float | int | str] = field(default_factory=dict)


class Gate(Struct, frozen=True):
    """One condition that a level must meet; the report names the one that decided.

    Attributes:
        name: such as `relative to the logit range`.
        measured: the worst value found.
        tolerance: the bound.
        at_least: whether the bound is the least value (as for cosine) and not the largest.
        where: where the worst value was: a module, a prompt.
    """

    name: str
    measured: float
    tolerance: float
    at_least: bool = False
    where: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the bound is kept; NaN keeps none."""
        return self.measured >= self.tolerance if self.at_least else self.measured <= self.tolerance

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        at = f" at {printable(self.where)}" if self.where is not None else ""
        return f"{self.name} {self.measured:.3g}{at}, must be {sign} {self.tolerance:.3g}"


class LevelResult(Struct, frozen=True):
    """What one level came to.

    Attributes:
        level: one of `LEVELS`.
        reason: one sentence: why it failed or isn't proved, or what a pass means.
        evidence: what was done and seen, a line each.
        gate: the gate that decided, where gates did.
        device: what models ran on, such as `cpu`; None where none ran.
        dtype: what they computed in, and why where that isn't what was asked for.
        versions: of the libraries that it used, by name.
        seconds: how long it took; filled in by whoever ran it.
    """

    level: str
    verdict: Verdict
    reason: str
    evidence: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    gates: tuple[Gate, ...] = ()
    gate: Gate | None = None
    device: str | None = None
    dtype: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that fail it."""
        return tuple(finding for finding in self.findings if finding.severity is Severity.ERROR)


class InputFile(Struct, frozen=True):
    """One file that was verified.

    Attributes:
        name: relative to the checkpoint.
        digest: such as `xxh3:99aa06d3014798d86001c324468d497f`, of what `digest_of` says: `contents`, or `header`
            where only that was read.
    """

    name: str
    nbytes: int
    digest: str
    digest_of: str


class Input(Struct, frozen=True):
    """One side: its role (`source` or `target`), the path as it was given, and its files."""

    role: str
    path: str
    files: tuple[InputFile, ...] = ()


class Skipped(Struct, frozen=True):
    """A level that wasn't run, and why."""

    level: str
    reason: str


class Report(Struct, frozen=True):
    """See the module.

    Attributes:
        levels: the levels that were asked for, in order.
        not_run: the others.
        spec: the spec's name; `spec_path` is its file, `spec_digest` the sha256 of it, in hexadecimal.
        reverse: whether the spec was applied the other way round.
        versions: of Python and the libraries, by name.
        command: the command line, or the call.
        started: when, as ISO 8601 in UTC.
        seconds: how long all of it took.
    """

    levels: tuple[LevelResult, ...]
    not_run: tuple[Skipped, ...] = ()
    spec: str = ""
    spec_path: str = ""
    spec_digest: str = ""
    reverse: bool = False
    inputs: tuple[Input, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    started: str = ""
    seconds: float = 0.0

    EXIT_CODES: ClassVar[Mapping[Verdict, int]] = {Verdict.PASS: 0, Verdict.FAIL: 4, Verdict.NOT_PROVED: 9}

    @property
    def verdict(self) -> Verdict:
        """FAIL if any level failed; else NOT_PROVED if any that was asked for isn't proved, or there are none."""
        verdicts = {result.verdict for result in self.levels} or {Verdict.NOT_PROVED}
        return next(verdict for verdict in (Verdict.FAIL, Verdict.NOT_PROVED, Verdict.PASS) if verdict in verdicts)

    @property
    def exit_code(self) -> int:
        """0 for a pass, 4 for a failure, 9 for not proved."""
        return self.EXIT_CODES[self.verdict]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, in order of the levels."""
        return tuple(finding for result in self.levels for finding in result.findings)

    def level(self, name: str) -> LevelResult | None:
        """The result of one level; None if it wasn't asked for."""
        return next((result for result in self.levels if result.level == name), None)

    def raise_for_failure(self, *, allow_not_proved: bool = True) -> None:
        """Raise if the verdict is FAIL; and with `allow_not_proved=False` unless it is PASS.

        Raises:
            VerificationError: with one problem for each finding that failed a level.
        """
        wrong = {Verdict.FAIL} if allow_not_proved else {Verdict.FAIL, Verdict.NOT_PROVED}
        problems = [problem for result in self.levels if result.verdict in wrong for problem in _problems(result)]
        if self.verdict in wrong:
            raise VerificationError(problems or [Problem("nothing was verified")])

    def to_json(self) -> str:
        """The report as strict JSON; `from_json` reads it back as an equal report."""
        return report_json.dump(self)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read a report that `to_json` wrote.

        Raises:
            WeightmapError: the text is no report, or one of another version.
        """
        found: Report = report_json.load(text)
        return found


def _problems(result: LevelResult) -> Iterable[Problem]:
    if not result.errors:
        yield Problem(f"{result.level}: {result.verdict}: {result.reason}")
    for finding in result.errors:
        yield finding.problem()
