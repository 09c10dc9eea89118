"""docs/specs.md: the table of the shipped specs as Markdown, from the data of `weightmap specs list --json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from converters.commands.spec_text import number, spec_summary
from converters.spec import Spec

_INTRODUCTION = """\
# Shipped specs

<!-- Written by `make shelf` (python -m tests.shelf); changes by hand are lost. -->

Each spec carries a checkpoint from one layout to another, and back where the table has a way back. *With* names the
implementations that both sides run on in the tests: small random models, whose answers differ by no more than the
tolerance, as an absolute difference in float32. *Measured* is the largest difference when `make shelf` last ran. The
way back is compared in bytes, too.

`weightmap detect DIR` says which of them fit a checkpoint, `weightmap specs show NAME` what one does.
"""

_COLUMNS = (
    "spec",
    "models",
    "from",
    "to",
    "there",
    "back",
    "what is compared",
    "with",
    "tolerance",
    "measured there",
    "measured back",
)


def specs_page(specs: Sequence[Spec]) -> str:
    """The whole page."""
    return "\n".join([_INTRODUCTION, _row(_COLUMNS), _row(["---"] * len(_COLUMNS)), *map(_spec_row, specs), ""])


def _spec_row(spec: Spec) -> str:
    return _row(_cells(spec_summary(spec)))


def _cells(data: Mapping[str, Any]) -> Iterator[str]:
    there, back = data["there"], data["back"]
    proof = data["proof"] or {"compares": "nothing yet", "oracles": [], "tolerance": None}
    yield f"[`{data['name']}`](../mappings/{data['name']}.yaml)"
    yield ", ".join(data["models"])
    yield f"`{data['from']}`"
    yield f"`{data['to']}`"
    yield there["exactness"]
    yield back["exactness"] if back is not None else "no way back"
    yield proof["compares"]
    yield ", ".join(proof["oracles"])
    yield number(proof["tolerance"])
    yield number(there["measured"])
    yield number(back["measured"]) if back is not None else "-"


def _row(cells: Sequence[str] | Iterator[str]) -> str:
    return f"| {' | '.join(cells)} |"
