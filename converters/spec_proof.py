"""The `proof:` of a spec: what its two sides were compared with, and how closely they must agree."""

from __future__ import annotations

import math

from converters.spec import Proof
from converters.spec_nodes import Reader
from converters.yaml_nodes import MappingNode, Node, ScalarNode

_KEYS = ("oracles", "compares", "tolerance")
_EXAMPLE = "write {oracles: [transformers], compares: logits, tolerance: 1.0e-4}"


def read_proof(reader: Reader, node: Node | None) -> Proof | None:
    """The proof; None where there is none, or where the reader has noted what is wrong with it."""
    mapping = reader.mapping(node, "'proof'") if node is not None else None
    if mapping is None:
        return None
    before = len(reader.problems)
    reader.known_keys(mapping, _KEYS, "proof")
    for key in _KEYS:
        if mapping.get(key) is None:
            reader.problem(f"'proof.{key}' is missing", mapping, _EXAMPLE)
    oracles = reader.texts(mapping.get("oracles"), "proof.oracles")
    compares = reader.text(mapping.get("compares"), "proof.compares")
    tolerance = _tolerance(reader, mapping)
    if len(reader.problems) > before or compares is None or tolerance is None:
        return None
    return Proof(oracles, compares, tolerance)


def _tolerance(reader: Reader, mapping: MappingNode) -> float | None:
    node = mapping.get("tolerance")
    if node is None:
        return None
    value = node.value if isinstance(node, ScalarNode) else None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    reader.problem("'proof.tolerance' must be a number of at least 0", node, "such as 1.0e-4")
    return None
