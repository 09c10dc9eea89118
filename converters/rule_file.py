"""One entry of `rename:` or `rules:` in a spec's YAML, to a `Rule`."""

from __future__ import annotations

from msgspec.structs import replace

from converters.dims import Expression, parse_expression
from converters.errors import Location
from converters.layout import Layout, parse_layout
from converters.operations.fill import VALUES, Fill
from converters.pattern import parse_pattern
from converters.rule_operations import inputs_of, read_block_drops, read_block_fills, read_operations, read_parts
from converters.spec import Rule, Sharing, Term
from converters.spec_nodes import Reader
from converters.tensor_info import DType, parse_dtype
from converters.yaml_nodes import ListNode, MappingNode, Node, ScalarNode

RULE = (
    "from",
    "to",
    "layout",
    "copy",
    "tie",
    "cast",
    "apply",
    "fill",
    "drop",
    "grid",
    "shape",
    "dtype",
    "when",
    "optional",
)
SHARING: tuple[Sharing, ...] = ("copy", "tie")


def read_rename(reader: Reader, key: ScalarNode, value: Node) -> Rule | None:
    """`old: new` of the `rename:` section; None where the new key is no text, which the reader notes.

    Raises:
        SpecError: one of the two is no pattern.
    """
    source = Term((parse_pattern(str(key.value), key.location),))
    text = reader.text(value, f"rename.{key.text}")
    if text is None:
        return None
    target = Term((parse_pattern(text, value.location),))
    return Rule((source,), (target,), location=key.location, path=f"rename.{key.text}")


def read_rule(reader: Reader, node: Node, path: str) -> Rule | None:
    """One entry of `rules:`; None where it is no mapping at all. Problems go to the reader."""
    mapping = reader.mapping(node, path)
    if mapping is None:
        return None
    reader.known_keys(mapping, RULE, path)
    problems_before = len(reader.problems)
    operations = read_operations(reader, mapping, path)
    parts, parts_of = read_parts(reader, mapping, path)
    names = tuple(name for name, _ in parts)
    sources = _terms(reader, mapping.get("from"), f"{path}.from", names or inputs_of(operations))
    targets = _terms(reader, mapping.get("to"), f"{path}.to", names)
    for sharing in SHARING:
        shared = mapping.get(sharing)
        if shared is None:
            continue
        if targets:
            reader.problem(f"{path} has both 'to' and '{sharing}'", shared, f"'{sharing}' is a list of all the targets")
        term = _shared_term(reader, shared, sharing, f"{path}.{sharing}")
        targets = (term,) if term else ()
    fill = _fill(reader, mapping, path, sources, targets)
    if fill is None and len(reader.problems) == problems_before:
        for side, terms in (("from", sources), ("to", targets)):
            if not terms:
                reader.problem(f"{path} has no '{side}'", node)
    blocks = mapping.get("fill")
    if blocks is None or isinstance(blocks, MappingNode):
        sources, targets = _layouts(reader, mapping.get("layout"), sources, targets, path, mapping.location)
    when = mapping.get("when")
    dtype = mapping.get("dtype")
    return Rule(
        sources,
        targets,
        operations,
        fill,
        tuple(
            size for item in reader.items(mapping.get("shape"), f"{path}.shape") if (size := _expression(reader, item))
        ),
        parsed.label if dtype is not None and (parsed := _dtype(reader, dtype)) else None,
        _expression(reader, when) if when is not None else None,
        reader.flag(mapping.get("optional"), f"{path}.optional"),
        read_block_fills(reader, blocks, f"{path}.fill") if isinstance(blocks, MappingNode) else (),
        read_block_drops(reader, mapping.get("drop"), f"{path}.drop"),
        parts,
        parts_of,
        node.location,
        path,
    )


def _expression(reader: Reader, node: Node) -> Expression | None:
    if isinstance(node, ScalarNode):
        return reader.attempt(parse_expression, node.text, node.location)
    reader.problem("this must be a number or an expression", node)
    return None


def _terms(reader: Reader, node: Node | None, path: str, inputs: tuple[str, ...] = ()) -> tuple[Term, ...]:
    """The terms of one side; `inputs` are the names of the tensors of which an operation makes each of them."""
    if node is None:
        return ()
    is_one = isinstance(node, MappingNode) and bool(inputs) and {key.value for key, _ in node.entries} == {*inputs}
    if isinstance(node, MappingNode) and not is_one and not any(node.get(sharing) for sharing in SHARING):
        terms = []
        for key, value in node.entries:
            label = str(key.value)
            if not (label.isidentifier() and label.isascii()) or label in ("from", "to", "_"):
                reader.problem(f"{label!r} can't be a label", key, "use a name such as q")
            term = _term(reader, value, f"{path}.{label}", inputs)
            if term is not None:
                terms.append(replace(term, label=label))
        return tuple(terms)
    term = _term(reader, node, path, inputs)
    return (term,) if term is not None else ()


def _term(reader: Reader, node: Node, path: str, inputs: tuple[str, ...] = ()) -> Term | None:
    if inputs:
        return _inputs_term(reader, node, path, inputs)
    if isinstance(node, MappingNode):
        for sharing in SHARING:
            shared = node.get(sharing)
            if shared is not None and len(node.entries) == 1:
                return _shared_term(reader, shared, sharing, path)
        reader.problem(f"{path} must be a key pattern, or a list under 'copy' or 'tie'", node)
        return None
    if isinstance(node, ListNode):
        reader.problem(
            f"{path} is a list", node, "label each key ({q: ..., k: ...}), or write {copy: [...]} for equal tensors"
        )
        return None
    text = reader.text(node, path)
    pattern = reader.attempt(parse_pattern, text, node.location) if text is not None else None
    return Term((pattern,)) if pattern is not None else None


def _inputs_term(reader: Reader, node: Node, path: str, inputs: tuple[str, ...]) -> Term | None:
    if not isinstance(node, MappingNode) or {key.value for key, _ in node.entries} != {*inputs}:
        hint = f"write {{{', '.join(f'{name}: ...' for name in inputs)}}}"
        reader.problem(f"{path} must give the key of {' and of '.join(inputs)}", node, hint)
        return None
    texts = [(name, node.get(name)) for name in inputs]
    found = []
    for name, value in texts:
        text = reader.text(value, f"{path}.{name}")
        pattern = reader.attempt(parse_pattern, text, value.location if value else None) if text is not None else None
        if pattern is not None:
            found.append(pattern)
    return Term(tuple(found), sharing="inputs") if len(found) == len(inputs) else None


def _shared_term(reader: Reader, node: Node, sharing: Sharing, path: str) -> Term | None:
    patterns = []
    for item in reader.items(node, path):
        text = reader.text(item, path)
        if text is not None:
            pattern = reader.attempt(parse_pattern, text, item.location)
            if pattern is not None:
                patterns.append(pattern)
    if len(patterns) == 1 and (sharing == "tie" or not patterns[0].names()):
        reader.problem(f"{path} has a single key", node, "write it without the list")
    return Term(tuple(patterns), sharing=sharing) if patterns else None


def _layouts(
    reader: Reader, node: Node | None, sources: tuple[Term, ...], targets: tuple[Term, ...], path: str, where: Location
) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
    if node is None:
        if (len(sources) > 1 or len(targets) > 1) and not reader.problems:
            reader.problem(
                f"{path} joins or splits tensors and has no 'layout'",
                where,
                "give each term its layout, as in q: '(H D) ...'",
            )
        return sources, targets
    if isinstance(node, ScalarNode):
        left, arrow, right = node.text.partition("->")
        if not arrow or len(sources) > 1 or len(targets) > 1:
            reader.problem(f"{path}.layout must say both sides", node, "write 'i o -> o i', or a layout for each label")
            return sources, targets
        before = reader.attempt(parse_layout, left, node.location)
        after = reader.attempt(parse_layout, right, node.location)
        return (
            tuple(replace(term, layout=before) for term in sources) if before else sources,
            tuple(replace(term, layout=after) for term in targets) if after else targets,
        )
    entries = dict[str, Layout]()
    names = {_name(term, "from") for term in sources} | {_name(term, "to") for term in targets}
    for key, value in reader.entries(node, f"{path}.layout"):
        if key.value not in names:
            reader.problem(
                f"{path}.layout.{key.text}: there is no such term", key, f"the terms are: {', '.join(sorted(names))}"
            )
        text = reader.text(value, f"{path}.layout.{key.text}")
        layout = reader.attempt(parse_layout, text or "", value.location)
        if layout is not None:
            entries[str(key.value)] = layout
    for name in sorted(names - entries.keys()):
        if not reader.problems:
            reader.problem(f"{path}.layout says nothing of '{name}'", node, "'...' keeps all of its dimensions")
    return (
        tuple(replace(term, layout=entries.get(_name(term, "from"), term.layout)) for term in sources),
        tuple(replace(term, layout=entries.get(_name(term, "to"), term.layout)) for term in targets),
    )


def _name(term: Term, side: str) -> str:
    return term.label or side


def _dtype(reader: Reader, node: Node) -> DType | None:
    if not isinstance(node, ScalarNode):
        reader.problem("a dtype must be a name such as BF16", node)
        return None
    try:
        return parse_dtype(node.text)
    except ValueError as error:
        reader.problem(str(error), node)
        return None


def _fill(
    reader: Reader, mapping: MappingNode, path: str, sources: tuple[Term, ...], targets: tuple[Term, ...]
) -> Fill | None:
    node = mapping.get("fill")
    if node is None or isinstance(node, MappingNode):
        for key in ("shape", "dtype"):
            if (extra := mapping.get(key)) is not None:
                reader.problem(f"{path}.{key} belongs to 'fill'" + (" of a whole tensor" if node else ""), extra)
        return None
    value = reader.text(node, f"{path}.fill")
    if value is not None and value not in VALUES:
        reader.problem(f"{path}.fill: {value!r} is no filling", node, f"there are: {', '.join(VALUES)}")
    for key in ("layout", "cast", "apply", "drop"):
        if (extra := mapping.get(key)) is not None:
            reader.problem(f"{path}.{key} has no meaning beside 'fill'", extra, "give the 'shape' and 'dtype' to make")
    if bool(sources) == bool(targets):
        reader.problem(
            f"{path}: 'fill' makes the tensor 'to', or checks the tensor 'from' on a way back",
            node,
            "give one of the two",
        )
    if mapping.get("shape") is None:
        reader.problem(f"{path}: 'fill' needs the tensor's 'shape'", node, "write shape: [5000, 1, E]")
    return Fill(value) if value in VALUES else None
