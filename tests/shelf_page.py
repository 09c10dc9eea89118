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

_END = """\
## What stands in for a package

Of some layouts no package can be installed, or none computes on a CPU: Meta's Llama, Mistral AI's consolidated files,
google/gemma_pytorch, nanoGPT, metaseq, Phi-2's first release, Google's BERT in TensorFlow, Llama's names for GPT-NeoX
and Falcon, the single file of Stable Diffusion. A plain forward in the tests stands in for each, written from its
documentation; the other side is the package named above. Megatron-Core runs with its own layers: those of Transformer
Engine need CUDA, and their key names come from the package's own table.

## What isn't there

GPT-2 for LitGPT: its model has no learned positions, so for one token repeated its logits are the same at every
position, whatever its weights, and GPT-2's are not. A test shows it (`tests/mappings/test_litgpt.py`).
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
    return "\n".join([_INTRODUCTION, _row(_COLUMNS), _row(["---"] * len(_COLUMNS)), *map(_spec_row, specs), "", _END])


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
