"""The engine against the naive evaluation, there and back, bit for bit, on random layouts, shapes and dtypes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from converters import gather, schedule
from converters.bind import bind
from converters.engine import execute
from converters.plan import Plan, Source
from converters.planner import make_plan
from converters.source_checks import check_sources
from converters.spec import Spec
from converters.spec_file import parse_spec
from converters.state_dict import convert_state_dict
from converters.tensor_info import TensorInfo
from converters.torch_dtypes import to_torch
from tests.memory_checkpoint import MemoryReader, MemoryWriter
from tests.oracle import evaluate, shape_of, tensors_of
from tests.strategies import Case, cases

EXAMPLES = 1000


@dataclass(frozen=True)
class TinyBudget:
    """A budget of a few bytes, so that tensors of a hundred elements are cut like large ones."""

    panel: int
    threads: int = 1


def random_sources(case: Case, seed: int) -> dict[str, torch.Tensor]:
    """Random bits for every source, as integers; NaNs of all kinds among them."""
    width = case.dtype.bits // 8
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for term, key, _, _ in tensors_of(case, case.sources):
        shape = shape_of(term, case.sizes)
        raw = torch.randint(0, 256, (*shape, width), dtype=torch.uint8, generator=generator)
        found[key] = raw.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[width]).reshape(shape)
    return found


def run(spec: Spec, reader: MemoryReader, budget: TinyBudget) -> tuple[Plan, MemoryWriter]:
    sources = [Source(info, "memory") for info in reader.tensors.values()]
    plan = make_plan(bind(spec, None), sources)
    assert Plan.from_json(plan.to_json()) == plan
    writer = MemoryWriter(plan.shards)
    check_sources(plan, reader, lambda _: None)
    execute(plan, reader, writer, budget)  # type: ignore[arg-type]
    writer.finish()
    return plan, writer


def to_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    case=cases(),
    seed=st.integers(0, 2**32),
    panel=st.sampled_from([8, 24, 64, 256, 1 << 20]),
    slab=st.sampled_from([8, 32, 128, 1 << 20]),
)
def test_engine_agrees_with_the_naive_evaluation_there_and_back(case: Case, seed: int, panel: int, slab: int) -> None:
    spec = parse_spec(case.yaml())
    assert spec.inverse().inverse() == spec
    assert [rule.inverse().inverse() for rule in spec.rules] == list(spec.rules)
    sources = random_sources(case, seed)
    infos = {name: TensorInfo(name, tuple(tensor.shape), case.dtype) for name, tensor in sources.items()}
    reader = MemoryReader(infos, {name: to_bytes(tensor) for name, tensor in sources.items()})
    with pytest.MonkeyPatch.context() as patch:
        # Small tensors must take every path that large ones take.
        patch.setattr(gather, "SLAB", slab)
        patch.setattr(gather, "LONG_RUN", panel // 2)
        patch.setattr(schedule, "LONG_RUN", panel // 2)
        patch.setattr(gather, "TILE", 2)
        _, written = run(spec, reader, TinyBudget(panel))
        expected = evaluate(case, sources)
        assert written.data.keys() == expected.keys()
        for name, tensor in expected.items():
            assert written.tensors[name].shape == tuple(tensor.shape), name
            assert written.data[name] == to_bytes(tensor), name
        _, back = run(spec.inverse(), written.reader(), TinyBudget(panel))
    assert back.data == reader.data
    _check_in_memory(spec, case, sources, expected)


def _check_in_memory(
    spec: Spec, case: Case, sources: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> None:
    dtype = to_torch(case.dtype)
    if dtype == torch.bool:
        return  # arbitrary bytes are no booleans to torch
    state_dict = convert_state_dict(spec, {name: tensor.view(dtype) for name, tensor in sources.items()})
    assert state_dict.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tuple(state_dict[name].shape) == tuple(tensor.shape)
        assert to_bytes(state_dict[name]) == to_bytes(tensor), name
