"""A tensor that is missing never goes unnoticed: each source of each pair without one key, planned from headers."""

from __future__ import annotations

from pathlib import Path

import pytest

import converters
from converters.bind import bind
from converters.plan import Source
from converters.planner import make_plan
from converters.side_files import read_config
from converters.storage.parts import open_side
from tests.models_pairs import PAIRS, Pair

# What the other side makes anew may be absent, since nothing is lost with it.
MADE_ANEW = {"pos_encoder.pe"}
TRIED = 150
"""Keys of one model; of a larger one, evenly spread ones."""


@pytest.mark.parametrize("pair", PAIRS, ids=[f"{pair.name}-{pair.family}" for pair in PAIRS])
def test_no_tensor_can_be_missing_unseen(pair: Pair, tmp_path: Path) -> None:
    pair.save(pair.build(0), tmp_path / "source")
    spec = converters.load_spec(pair.spec)
    spec = spec.inverse() if pair.reverse else spec
    with open_side(tmp_path / "source", spec.source) as reader:
        sources = [Source(info, reader.file_of[name]) for name, info in reader.tensors.items()]
    bound = bind(spec, read_config(tmp_path / "source", spec.source), set_config=pair.set_config or None)
    make_plan(bound, sources)
    unnoticed = []
    for number in range(0, len(sources), -(-len(sources) // TRIED)):
        try:
            make_plan(bound, sources[:number] + sources[number + 1 :])
        except converters.CoverageError:
            continue
        unnoticed.append(sources[number].info.name)
    assert set(unnoticed) <= MADE_ANEW
