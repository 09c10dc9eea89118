"""What a rule does to values, from its YAML: `cast`, `apply`, and the blocks under `fill` and `drop`."""

from __future__ import annotations

from typing import Literal

from converters.dims import parse_expression
from converters.errors import Problem, SpecError
from converters.expressions import Expression
from converters.operations import Elementwise, Operation, TensorOperation
from converters.operations.fill import BLOCK_VALUES, Fill
from converters.operations.registry import make_operation
from converters.spec_nodes import Reader
from converters.yaml_nodes import ListNode, MappingNode, Node, ScalarNode, to_plain


def read_operations(reader: Reader, mapping: MappingNode, path: str) -> tuple[Operation, ...]:
    """The operations of a rule, in the order in which they are written; `cast` is short for one of them."""
    cast, apply = mapping.get("cast"), mapping.get("apply")
    if cast is not None and apply is not None:
        hint = "write the cast where it belongs in the list, as {op: cast, to: F32}"
        reader.problem(f"{path} has both 'cast' and 'apply': nothing tells which comes first", cast, hint)
        return ()
    if cast is not None:
        return _cast(reader, cast, f"{path}.cast")
    if apply is None:
        return ()
    nodes = apply.items if isinstance(apply, ListNode) else (apply,)
    if not nodes:
        reader.problem(f"{path}.apply is empty", apply)
    found = [made for node in nodes if (made := _operation(reader, node, f"{path}.apply")) is not None]
    for made in found[1:]:
        if not isinstance(made, Elementwise):
            hint = "it needs whole tensors as they are stored"
            reader.problem(f"{path}.apply: '{made.name}' can only be the first operation", apply, hint)
    return tuple(found)


def _operation(reader: Reader, node: Node, path: str) -> Operation | None:
    if isinstance(node, ScalarNode):
        name, options = node.text, dict[str, object]()
    elif isinstance(node, MappingNode) and isinstance(op := node.get("op"), ScalarNode):
        name = op.text
        options = {str(key.value): to_plain(value) for key, value in node.entries if key.value != "op"}
    else:
        hint = "write {op: affine, add: 1}, or a list of them"
        reader.problem(f"{path} must be the name of an operation, or a mapping with 'op'", node, hint)
        return None
    return _made(reader, name, options, node, path)


def _made(reader: Reader, name: str, options: dict[str, object], node: Node, path: str) -> Operation | None:
    try:
        return make_operation(name, options)
    except SpecError as error:
        reader.problems.extend(
            Problem(f"{path}: {problem.what.removeprefix('cast: ')}", node.location, problem.hint)
            for problem in error.problems
        )
        return None


def _cast(reader: Reader, node: Node, path: str) -> tuple[Operation, ...]:
    if isinstance(node, ScalarNode):
        made = _made(reader, "cast", {"to": node.text}, node, path)
        return () if made is None else (made,)
    plain = to_plain(node)
    if not isinstance(plain, dict) or plain.get("from") is None or plain.get("to") is None:
        reader.problem(f"{path} needs 'from' and 'to'", node, "write {from: F16, to: F32}")
        return ()
    made = _made(reader, "cast", plain, node, path)
    return () if made is None else (made,)


def read_block_fills(reader: Reader, node: MappingNode, path: str) -> tuple[tuple[str, Fill], ...]:
    """Blocks that only one side has, and what they hold."""
    found = []
    for key, value in node.entries:
        text = reader.text(value, f"{path}.{key.text}")
        if text is not None and text not in BLOCK_VALUES:
            hint = f"there are: {', '.join(BLOCK_VALUES)}"
            reader.problem(f"{path}.{key.text}: {text!r} is no filling of a block", value, hint)
        elif text is not None:
            found.append((str(key.value), Fill(text)))
    return tuple(found)


def read_block_drops(reader: Reader, node: Node | None, path: str) -> tuple[tuple[str, str], ...]:
    """Blocks that only the source has, and why they can be left out."""
    found = []
    for key, value in reader.entries(node, path):
        reason = reader.text(value, f"{path}.{key.text}")
        if reason is not None and not reason.strip():
            reader.problem(f"dropping block {key.text!r} needs a reason", key)
        elif reason is not None:
            found.append((str(key.value), reason))
    return tuple(found)


Parts = tuple[tuple[str, tuple[Expression, ...]], ...]


def read_parts(reader: Reader, mapping: MappingNode, path: str) -> tuple[Parts, Literal["from", "to"]]:
    """See `Rule.parts` and `Rule.parts_of`; empty where the rule has no `grid`."""
    node = mapping.get("grid")
    if node is None:
        return (), "from"
    grids, sides = [], set[str]()
    for key, value in reader.entries(node, f"{path}.grid"):
        sizes = []
        turned = value.get("to") if isinstance(value, MappingNode) and len(value.entries) == 1 else None
        sides.add("from" if turned is None else "to")
        for item in reader.items(turned or value, f"{path}.grid.{key.text}"):
            text = item.text if isinstance(item, ScalarNode) else ""
            size = reader.attempt(parse_expression, text, item.location)
            sizes += [size] if size is not None else []
        grids.append((str(key.value), tuple(sizes)))
    for other in ("apply", "cast", "fill", "drop"):
        if (extra := mapping.get(other)) is not None:
            hint = "dequantize in a rule without 'grid', or move all values unchanged"
            reader.problem(
                f"{path}.{other} has no meaning beside 'grid': scales only fit unchanged values", extra, hint
            )
    if len(sides) > 1:
        reader.problem(f"{path}.grid: give all block sizes along the dimensions of one side", node)
    side: Literal["from", "to"] = "to" if "to" in sides else "from"
    names = {name for name, _ in grids}
    source = mapping.get("from")
    terms = [source, *(value for _, value in source.entries)] if isinstance(source, MappingNode) else []
    for term in terms:
        keys = [str(key.value) for key, _ in term.entries] if isinstance(term, MappingNode) else []
        others = [key for key in keys if key not in names]
        if names <= {*keys} and len(others) == 1:
            return ((others[0], ()), *grids), side
    hint = f"write from: {{weight: ..., {', '.join(f'{name}: ...' for name, _ in grids)}}}, and 'to' alike"
    reader.problem(f"{path}.grid: each term must give the tensor that the grid lies over, and the grid", node, hint)
    return (), side


def inputs_of(operations: tuple[Operation, ...]) -> tuple[str, ...]:
    """The names of the tensors of which a rule's operation makes each of its source terms; empty for a single one."""
    first = operations[0] if operations else None
    return first.inputs if first is not None and isinstance(first, TensorOperation) else ()
