"""A spec in words: for `specs list` and `specs show`, as text and as plain data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec.structs import asdict

from converters.commands.plan_text import section
from converters.commands.terminal import bold, dim, labelled, table, width, wrapped
from converters.config_mapping import ConfigSide
from converters.errors import Problem, SpecError
from converters.layout import WHOLE
from converters.library import measured_differences
from converters.operations.registry import operation_text
from converters.spec import Dim, Rule, Spec, Term
from converters.spec_yaml import spec_to_yaml
from converters.text import printable

_LONGEST = 1000
"""Characters of a description that are shown."""


def one_way_reasons(spec: Spec) -> tuple[Problem, ...]:
    """Why a spec has no inverse; empty where it has one."""
    try:
        spec.inverse()
    except SpecError as error:
        return error.problems
    return ()


def spec_summary(spec: Spec) -> dict[str, Any]:
    """A spec in a few values, as plain data.

    `there` and `back` are the two directions, each with its exactness and with the largest difference between the two
    sides that was measured (null where nobody has); `back` is null where there is no way back.
    """
    reasons, measured = one_way_reasons(spec), measured_differences(spec)
    back = None if reasons else {"exactness": spec.inverse().exactness, "measured": measured.get("back")}
    return {
        "name": spec.name,
        "path": spec.path,
        "sha256": spec.digest,
        "description": spec.description,
        "models": list(spec.models),
        "from": spec.source.layout,
        "to": spec.target.layout,
        "reversible": not reasons,
        "exactness": spec.exactness,
        "there": {"exactness": spec.exactness, "measured": measured.get("there")},
        "back": back,
        "proof": None if spec.proof is None else asdict(spec.proof),
        "rules": len(spec.rules),
    }


def spec_json(spec: Spec) -> dict[str, Any]:
    """A whole spec as plain data; `yaml` is the spec itself, which loads again."""
    return {
        **spec_summary(spec),
        "reverse": spec.reverse,
        "dims": {dim.name: str(dim.value) for dim in spec.dims},
        "placeholders": {name: str(kind) for name, kind in spec.placeholders},
        "rules": [_rule_json(rule) for rule in spec.rules],
        "drop": {drop.pattern: drop.reason for drop in spec.source.drop},
        "yaml": spec_to_yaml(spec),
    }


def _rule_json(rule: Rule) -> dict[str, Any]:
    return {
        "rule": rule.path,
        "text": rule.text,
        "line": rule.location.line if rule.location else None,
        "kind": rule.kind,
        "exactness": rule.exactness,
        "one_way": _one_way(rule),
        "from": [_term_json(term) for term in rule.sources],
        "to": [_term_json(term) for term in rule.targets],
        "when": None if rule.when is None else str(rule.when),
        "optional": rule.optional,
    }


def _term_json(term: Term) -> dict[str, Any]:
    return {
        "label": term.label,
        "sharing": term.sharing,
        "keys": [str(key) for key in term.keys],
        "layout": str(term.layout),
    }


def _one_way(rule: Rule) -> str | None:
    """Why a rule has no inverse."""
    try:
        rule.inverse()
    except SpecError as error:
        return error.problems[0].hint or error.problems[0].what
    return None


def list_lines(specs: Sequence[Spec]) -> Iterator[str]:
    """Specs as a table, each with the models that it is for."""
    summaries = [spec_summary(spec) for spec in specs]
    rows = [("spec", "layouts", "restores", "within", "measured", "compared with")]
    for spec, data in zip(specs, summaries, strict=True):
        proof = data["proof"] or {"oracles": [], "tolerance": None}
        oracles = ", ".join(map(printable, proof["oracles"]))
        within = number(proof["tolerance"])
        rows.append((printable(spec.name), sides(spec), restores(data), within, worst_measured(data), oracles))
    heading, *lines = table(rows, "<<<><<", indent=0)
    yield dim(heading)
    for spec, line in zip(specs, lines, strict=True):
        yield line
        about = ", ".join(spec.models) or spec.description
        yield from (dim(f"  {part}") for part in wrapped(printable(about, _LONGEST), width() - 2))
    yield ""
    hint = (
        "↔ goes both ways: --reverse takes the way back. 'within' is the tolerance of the tests, as an absolute "
        "difference in float32; 'measured' is the larger of both directions. `weightmap specs show NAME` shows the "
        "rules, `weightmap detect DIR` which specs fit a checkpoint."
    )
    yield from map(dim, wrapped(hint, width()))


def restores(data: Mapping[str, Any]) -> str:
    """What is left of the source after each direction: `exact`, or `exact, one-way` where the two differ."""
    back = data["back"]["exactness"] if data["back"] is not None else "no way back"
    there = data["there"]["exactness"]
    return there if back == there else f"{there}, {back}"


def worst_measured(data: Mapping[str, Any]) -> str:
    """The larger one of the differences that were measured there and back."""
    ways = [way["measured"] for way in (data["there"], data["back"]) if way is not None]
    return number(max((value for value in ways if value is not None), default=None))


def number(value: float | None) -> str:
    """A difference or a tolerance, short: `1e-4`, `2.9e-6`, `0`."""
    if value is None:
        return "-"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}" if value else "0"


def sides(spec: Spec) -> str:
    """The two layouts, and the ways between them: `hf/phi ↔ tenny`."""
    arrow = "→" if one_way_reasons(spec) else "↔"
    return f"{printable(spec.source.layout)} {arrow} {printable(spec.target.layout)}"


def show_lines(spec: Spec) -> Iterator[str]:
    """A whole spec."""
    reasons = one_way_reasons(spec)
    name = printable(spec.name) + (" (reversed)" if spec.reverse else "")
    yield bold(f"{name}: {sides(spec)}")
    if spec.description:
        yield from (f"  {line}" for line in wrapped(printable(spec.description), width() - 2))
    yield f"  {spec.exactness}, {'one way only' if reasons else 'both ways'}" + dim(f", {printable(spec.path)}")
    yield from section("About", labelled(_about(spec)))
    yield from section("Dims", labelled((dim_.name, _dim_text(dim_)) for dim_ in spec.dims))
    yield from section("Placeholders", labelled((name, str(kind)) for name, kind in spec.placeholders))
    yield from section("Rules", [line for rule in spec.rules for line in _rule_lines(rule)])
    yield from section(
        "Dropped", labelled((printable(drop.pattern), printable(drop.reason)) for drop in spec.source.drop)
    )
    yield from section("config.json", list(_config_lines(spec)))
    yield from section("Notes", labelled(_note_pairs(spec)))


def _about(spec: Spec) -> Iterator[tuple[str, str]]:
    yield "models", printable(", ".join(spec.models), _LONGEST)
    if spec.proof is not None:
        data = spec_summary(spec)
        oracles = printable(" and ".join(spec.proof.oracles), _LONGEST)
        within = f"{printable(spec.proof.compares)} within {number(spec.proof.tolerance)} of {oracles}"
        measured = worst_measured(data)
        yield "proved", within + (f", measured {measured}" if measured != "-" else "")


def _dim_text(dim_: Dim) -> str:
    if not dim_.from_keys:
        return str(dim_.value)
    default = "" if str(dim_.value) == "null" else f", else {dim_.value}"
    return f"how many the keys have{default}"


def _rule_lines(rule: Rule) -> Iterator[str]:
    line = f", line {rule.location.line}" if rule.location else ""
    facts = [rule.exactness]
    if rule.operations:
        facts.append(", ".join(operation_text(operation) for operation in rule.operations))
    if rule.when is not None:
        facts.append(f"when {rule.when}")
    if rule.optional:
        facts.append("optional")
    yield f"  {rule.kind}" + dim(printable(f", {', '.join(facts)}{line}"))
    sources = _term_rows(rule.sources, "    ") or [("    ", _made(rule), "")]
    targets = _term_rows(rule.targets, "  → ") or [("  → ", "nothing; it is compared with what is made anew", "")]
    if len(sources) == len(targets) == 1 and not sources[0][2] and not targets[0][2]:
        joined = f"    {sources[0][1]} → {targets[0][1]}"
        if len(joined) <= width():
            yield joined
            sources = targets = []
    rows = [(f"{margin}{key}", layout) for margin, key, layout in (*sources, *targets)]
    yield from table(rows, "<<", indent=0, widest=width() // 2 + 20)
    if why := _one_way(rule):
        yield from (f"    {part}" for part in wrapped(f"one way: {printable(why)}", width() - 4))


def _made(rule: Rule) -> str:
    shape = ", ".join(map(str, rule.shape))
    return f"{rule.fill.value if rule.fill else 'nothing'} [{shape}] {rule.dtype or ''}".rstrip()


def _term_rows(terms: Sequence[Term], margin: str) -> list[tuple[str, str, str]]:
    """For each key its margin, the key with its label, and the layout, where one is given."""
    rows: list[tuple[str, str, str]] = []
    for term in terms:
        for number, key in enumerate(term.keys):
            joint = "+ " if term.sharing == "inputs" else "= "
            label = joint if number else f"{term.label}: " if term.label else ""
            layout = "" if number or term.layout == WHOLE else str(term.layout)
            rows.append((margin if not rows else "    ", label + printable(str(key)), layout))
    return rows


def _config_lines(spec: Spec) -> Iterator[str]:
    checked = [(key, f"must be {json.dumps(value)}") for key, value in spec.source.config.items()]
    written = [(key, f"becomes {json.dumps(value)}") for key, value in spec.target.config.items()]
    pairs: list[tuple[str, str]] = [*checked, *written]
    if spec.config is not None:
        pairs += [(old, f"→ {new}") for old, new in spec.config.rename]
        pairs += _side_pairs(spec.config.target)
        # What this side sets or derives for itself means nothing to the other one.
        pairs += [(key, "is left out") for key in (*spec.config.source.set, *spec.config.source.derive)]
        pairs += [(key, f"is left out: {reason}") for key, reason in spec.config.source.delete.items()]
    shown: dict[str, str] = {}
    for key, text in pairs:
        if key in shown and text != "is left out":
            shown[key] += f", {text}"
        shown.setdefault(key, text)
    yield from labelled((printable(key), printable(text)) for key, text in shown.items())
    holder = spec.config.target.carry_under if spec.config is not None else ""
    place = f"under {printable(holder)}" if holder else "as they are"
    yield dim(f"  all other keys are carried {place}")


def _side_pairs(side: ConfigSide) -> list[tuple[str, str]]:
    values = [(key, f"is set to {json.dumps(value)}") for key, value in side.set.items()]
    values += [(key, f"is {expression}") for key, expression in side.derive.items()]
    return values + [(key, f"is {expression} where none is carried") for key, expression in side.default.items()]


def _note_pairs(spec: Spec) -> Iterator[tuple[str, str]]:
    for note in spec.notes:
        yield "when" if note.when is not None else "always", str(note.when) if note.when is not None else ""
        yield "" if note.when is not None else "always", printable(note.say)
