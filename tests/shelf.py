"""`python -m tests.shelf [SPEC ...]`: measure how closely both sides of shipped specs agree, and write it down.

The numbers go to `mappings/measured.json`, which `weightmap specs list` reads, and into the table of docs/specs.md.
The tests measure the same pairs in the same way, and hold them against the tolerance that each spec states.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import converters
from converters.commands.spec_text import one_way_reasons
from converters.library import MEASURED, load_spec, shipped_directory, shipped_specs
from tests.answers import difference
from tests.mappings.proof import assert_same_bytes, load_strictly, read_tensors
from tests.models_pairs import PAIRS, Pair
from tests.shelf_page import specs_page

PAGE = Path(__file__).parent.parent / "docs" / "specs.md"
SEED = 11


def load(path: str, directory: Path) -> nn.Module:
    """A model of a class, by its import path, from a checkpoint; every key must find its place."""
    module, _, name = path.partition(":")
    cls: Any = getattr(importlib.import_module(module), name)
    model = load_strictly(cls, directory) if module == "transformers" else cls.from_pretrained(directory)
    assert isinstance(model, nn.Module)
    return model


def measure(pair: Pair, scratch: Path, seed: int = SEED) -> float:
    """The largest absolute difference between what a pair's two models answer, in float32.

    The source is converted there and back; the way back must restore it in bytes.

    Args:
        pair: the models.
        scratch: an empty directory.
        seed: of the weights.
    """
    spec = load_spec(pair.spec)
    source, there, back = (scratch / name for name in ("source", "there", "back"))
    pair.save(pair.build(seed), source)
    converters.convert(spec, source, there, reverse=pair.reverse, set_config=pair.set_config)
    plan = converters.convert(spec, there, back, reverse=not pair.reverse)
    made_anew = {target.info.name for target in plan.targets if target.generator is not None}
    restored, before = read_tensors(back), _without_prefixes(pair, read_tensors(source))
    assert restored.keys() == before.keys()
    # What is made anew was compared when it was left out: a table of sines may differ in its last bits.
    kept = before.keys() - made_anew
    assert_same_bytes({key: restored[key] for key in kept}, {key: before[key] for key in kept})
    return difference(pair.ask(load(pair.source_class, source)), pair.ask(load(pair.target_class, there)))


def _without_prefixes(pair: Pair, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the way back should give: a prefix that training added isn't restored."""
    spec = load_spec(pair.spec)
    found = {}
    for key, tensor in state.items():
        for prefix in (spec.target if pair.reverse else spec.source).strip_prefix:
            key = key.removeprefix(prefix)  # noqa: PLW2901 -- one after the other
        found[key] = tensor
    return found


def measure_spec(name: str) -> dict[str, float]:
    """The largest differences of all of a spec's pairs, by direction: from its source to its target, and back."""
    worst: dict[str, float] = {}
    for pair in pairs_of(name):
        way = "back" if pair.reverse else "there"
        with tempfile.TemporaryDirectory() as scratch:
            worst[way] = max(worst.get(way, 0.0), measure(pair, Path(scratch)))
    return {way: float(f"{worst[way]:.1e}") for way in ("there", "back") if way in worst}


def pairs_of(name: str) -> list[Pair]:
    """The pairs of a spec, of which there must be one for each direction that it has."""
    found = [pair for pair in PAIRS if pair.spec == name]
    for reverse in (False,) if one_way_reasons(load_spec(name)) else (False, True):
        if not any(pair.reverse is reverse for pair in found):
            raise LookupError(f"{name} has no Pair with reverse={reverse} in tests/models_pairs.py: add one")
    return found


def page() -> str:
    """docs/specs.md, from the shipped specs and from what was measured."""
    return specs_page([load_spec(path) for path in shipped_specs()])


def main(names: list[str]) -> int:
    """Measure the specs of these names, or all of them; returns the exit status."""
    shipped = [path.stem for path in shipped_specs()]
    file = shipped_directory() / MEASURED
    failed = 0
    for name in names or shipped:
        try:
            numbers = measure_spec(name)
        except Exception as error:  # noqa: BLE001 -- whatever is wrong with one pair, the others are measured
            failed = 1
            sys.stderr.write(f"{name}: {type(error).__name__}: {error}\n")
            continue
        sys.stdout.write(f"{name}: {', '.join(f'{way} {value}' for way, value in numbers.items())}\n")
        # Read anew each time, since somebody else may measure another spec meanwhile.
        known = json.loads(file.read_text())["specs"] if file.exists() else {}
        known[name] = numbers
        kept = {each: known[each] for each in shipped if each in known}
        versions = {"torch": str(torch.__version__), "transformers": transformers.__version__}
        file.write_text(json.dumps({"measured_with": versions, "specs": kept}, indent=2) + "\n")
    PAGE.write_text(page())
    return failed


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    sys.exit(main(sys.argv[1:]))
