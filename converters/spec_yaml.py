"""A `Spec` back to YAML, so that an inverse, or a spec made in code, can be read, kept and edited.

What is written reads back as an equal spec. Comments and the order of top-level sections are not part of a spec; the
sections come in the order of the language's documentation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from converters.config_mapping import ConfigMapping, ConfigSide
from converters.errors import SpecError
from converters.expressions import Expression, Literal
from converters.layout import WHOLE
from converters.operations import Operation
from converters.operations.cast import Cast
from converters.operations.registry import operation_to_json
from converters.spec import CONFIG_FILE, LANGUAGE_VERSION, Dim, Drop, Note, Proof, Rule, Side, Spec, Term
from converters.yaml_dump import dump_yaml

Data = dict[str, Any]


def spec_to_yaml(spec: Spec) -> str:
    """The spec as YAML; `parse_spec(spec_to_yaml(spec)) == spec`.

    Raises:
        SpecError: YAML has no spelling for it, such as two entries for one key.
    """
    sections: list[Data] = [
        {
            "weightmap": LANGUAGE_VERSION,
            "name": spec.name,
            **({"description": spec.description} if spec.description else {}),
            **({"models": list(spec.models)} if spec.models else {}),
            **({"proof": _proof(spec.proof)} if spec.proof is not None else {}),
        },
        {"source": _side(spec.source, with_drop=False), "target": _side(spec.target, with_drop=True)},
    ]
    if spec.dims:
        sections.append({"dims": _mapping("dims", ((dim.name, _dim(dim)) for dim in spec.dims))})
    if spec.placeholders:
        kinds = ((name, str(kind)) for name, kind in spec.placeholders)
        sections.append({"placeholders": _mapping("placeholders", kinds)})
    renames = _leading_renames(spec.rules)
    if renames:
        sections.append({"rename": renames})
    if len(renames) < len(spec.rules):
        sections.append({"rules": [_rule(rule) for rule in spec.rules[len(renames) :]]})
    if spec.source.drop:
        sections.append({"drop": _drops(spec.source.drop)})
    if spec.config is not None:
        sections.append({"config": _config(spec.config)})
    if spec.notes:
        sections.append({"notes": [_note(note) for note in spec.notes]})
    try:
        return "\n".join(dump_yaml(section) for section in sections)
    except ValueError as error:
        raise SpecError(f"the spec {spec.name} has no spelling as YAML: {error}", spec.path or None) from None


def _proof(proof: Proof) -> Data:
    return {"oracles": list(proof.oracles), "compares": proof.compares, "tolerance": proof.tolerance}


def _dim(dim: Dim) -> object:
    if not dim.from_keys:
        return _expression(dim.value)
    unknown = isinstance(dim.value, Literal) and dim.value.value is None
    return {"from": "keys"} if unknown else {"from": "keys", "default": _expression(dim.value)}


def _side(side: Side, *, with_drop: bool) -> Data:
    data: Data = {"layout": side.layout}
    if side.config:
        data["config"] = dict(side.config)
    if side.config_file != CONFIG_FILE:
        data["config_file"] = side.config_file or None
    if side.file:
        data["file"] = side.file
    if side.files or side.configs:
        files = ((part.label_text, part.file_text) for part in side.files)
        data["files"] = _mapping("files", (*files, *side.configs))
    if side.strip_prefix:
        data["strip_prefix"] = list(side.strip_prefix)
    if with_drop and side.drop:
        data["drop"] = _drops(side.drop)
    return data


def _drops(drops: Iterable[Drop]) -> Data:
    return _mapping("drop", ((drop.pattern, drop.reason) for drop in drops))


def _leading_renames(rules: Iterable[Rule]) -> Data:
    """The rules at the beginning that say no more than `old: new`; the order of rules is kept, so it ends at others."""
    renames: Data = {}
    for rule in rules:
        plain = len(rule.sources) == len(rule.targets) == 1 and rule == Rule(
            (Term(rule.sources[0].keys),), (Term(rule.targets[0].keys),)
        )
        if not plain or len(rule.sources[0].keys) > 1 or len(rule.targets[0].keys) > 1:
            break
        old = str(rule.sources[0].keys[0])
        if old in renames:
            break
        renames[old] = str(rule.targets[0].keys[0])
    return renames


def _rule(rule: Rule) -> Data:
    data: Data = {}
    if rule.fill is not None:
        data["fill"] = rule.fill.value
    if rule.sources:
        data["from"] = _terms(rule.sources, rule.inputs)
    if rule.targets:
        target = rule.targets[0]
        if len(rule.targets) == 1 and target.label is None and target.sharing in ("copy", "tie"):
            data[target.sharing] = [str(key) for key in target.keys]
        else:
            data["to"] = _terms(rule.targets, rule.inputs)
    if rule.shape:
        data["shape"] = [_expression(size) for size in rule.shape]
    if rule.dtype is not None:
        data["dtype"] = rule.dtype
    data.update(_layout(rule))
    data.update(_blocks(rule))
    if rule.operations:
        data.update(_operations(rule.operations))
    if rule.when is not None:
        data["when"] = _expression(rule.when)
    if rule.optional:
        data["optional"] = True
    return data


def _blocks(rule: Rule) -> Data:
    """What a rule says of single blocks of its layouts, and of the blocks of a grid."""
    data: Data = {}
    if rule.filled:
        data["fill"] = _mapping("fill", ((label, fill.value) for label, fill in rule.filled))
    if rule.dropped:
        data["drop"] = _mapping("drop", rule.dropped)
    if rule.parts:
        blocks = [(name, [_expression(size) for size in block]) for name, block in rule.parts[1:]]
        turned = rule.parts_of == "to"
        data["grid"] = _mapping("grid", ((name, {"to": block} if turned else block) for name, block in blocks))
    return data


def _terms(terms: tuple[Term, ...], inputs: tuple[str, ...] = ()) -> object:
    if len(terms) == 1 and terms[0].label is None:
        return _keys(terms[0], inputs)
    return _mapping("terms", ((term.label or "", _keys(term, inputs)) for term in terms))


def _keys(term: Term, inputs: tuple[str, ...]) -> object:
    if term.sharing == "one":
        return str(term.keys[0])
    if term.sharing == "inputs":
        return _mapping("inputs", zip(inputs, map(str, term.keys), strict=True))
    return {term.sharing: [str(key) for key in term.keys]}


def _layout(rule: Rule) -> Data:
    terms = (*rule.sources, *rule.targets)
    one_to_one = len(rule.sources) == len(rule.targets) == 1
    if one_to_one and all(term.layout == WHOLE for term in terms):
        return {}
    if one_to_one:
        return {"layout": f"{rule.sources[0].layout} -> {rule.targets[0].layout}"}
    if len(terms) == 1 and terms[0].layout == WHOLE:
        return {}  # what `fill` makes is whole
    named = [(term.label or "from", term) for term in rule.sources] + [
        (term.label or "to", term) for term in rule.targets
    ]
    return {"layout": _mapping("layout", ((name, str(term.layout)) for name, term in named))}


def _operations(operations: tuple[Operation, ...]) -> Data:
    only = operations[0]
    if len(operations) == 1 and isinstance(only, Cast):
        return {"cast": only.options() if only.source is not None else only.target.label}
    written = [operation_to_json(operation) for operation in operations]
    return {"apply": written if len(written) > 1 else written[0]}


def _config(config: ConfigMapping) -> Data:
    data: Data = {}
    if config.rename:
        data["rename"] = _mapping("config.rename", config.rename)
    for name, side in (("source", config.source), ("target", config.target)):
        if side != ConfigSide():
            data[name] = _config_side(side)
    return data


def _config_side(side: ConfigSide) -> Data:
    data: Data = {}
    if side.set:
        data["set"] = _plain(side.set)
    for section, expressions in (("derive", side.derive), ("default", side.default)):
        if expressions:
            data[section] = {key: _expression(value) for key, value in expressions.items()}
    if side.delete:
        data["delete"] = dict(side.delete)
    if side.carry_under:
        data["carry_under"] = side.carry_under
    return data


def _plain(value: object) -> object:
    """Mappings as dicts, which is what the YAML writer knows."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _note(note: Note) -> Data:
    return {"say": note.say, **({"when": _expression(note.when)} if note.when is not None else {})}


def _expression(expression: Expression) -> object:
    """A number as a number; anything else as text, which the reader of expressions parses."""
    if isinstance(expression, Literal) and isinstance(expression.value, int) and not isinstance(expression.value, bool):
        return expression.value
    return str(expression)


def _mapping(section: str, pairs: Iterable[tuple[str, object]]) -> Data:
    """A dict of pairs whose keys differ, since YAML takes no key twice."""
    data: Data = {}
    for key, value in pairs:
        if key in data:
            raise SpecError(f"'{section}' would have two entries for {key!r}, which YAML has no spelling for")
        data[key] = value
    return data
