"""One conversion on every way there is: by the engine with large and with tiny panels, and in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from converters import gather, schedule
from converters.bind import bind
from converters.engine import execute
from converters.plan import Plan, Source
from converters.planner import make_plan
from converters.schedule import Budget
from converters.source_checks import check_sources
from converters.state_dict import convert_state_dict
from converters.tensor_info import TensorInfo
from converters.torch_dtypes import from_torch, to_torch
from tests.memory_checkpoint import MemoryReader, MemoryWriter
from tests.planning import spec_of

Tensors = dict[str, Tensor]


class TinyBudget(Budget):
    """Panels of a few bytes, so that small tensors are cut like large ones."""

    @property
    def panel(self) -> int:
        return 24


def to_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def reader_of(tensors: Mapping[str, Tensor]) -> MemoryReader:
    infos = {name: TensorInfo(name, tuple(each.shape), from_torch(each.dtype)) for name, each in tensors.items()}
    return MemoryReader(infos, {name: to_bytes(tensor) for name, tensor in tensors.items()})


def plan_for(body: str, tensors: Mapping[str, Tensor], config: Any = None, *, reverse: bool = False) -> Plan:
    spec = spec_of(body)
    sources = [Source(info, "memory") for info in reader_of(tensors).tensors.values()]
    return make_plan(bind(spec.inverse() if reverse else spec, config), sources)


def convert(
    body: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, *, reverse: bool = False
) -> Tensors:
    """What the rules of `body` make of the tensors, the same in every way."""
    plan = plan_for(body, tensors, config, reverse=reverse)
    assert Plan.from_json(plan.to_json()) == plan
    large = _execute(plan, tensors, Budget(512_000_000, 1))
    with pytest.MonkeyPatch.context() as patch:
        for module in (gather, schedule):
            patch.setattr(module, "LONG_RUN", 12)
        for name, size in (("COPY_BUFFER", 40), ("CHECK_ELEMENTS", 5), ("COMPUTED_CHUNK", 3), ("OPERATION_CHUNK", 3)):
            patch.setattr(schedule, name, size)
        patch.setattr(gather, "SLAB", 32)
        patch.setattr("converters.engine.COPY_BUFFER", 40)
        patch.setattr("converters.source_checks.COPY_BUFFER", 40)
        patch.setattr("converters.source_checks.CHECK_ELEMENTS", 5)
        patch.setattr("converters.made_reader.MADE_CHUNK", 7)
        assert _execute(plan, tensors, TinyBudget(512_000_000, 1)) == large
    made = {
        target.info.name: torch.frombuffer(
            bytearray(large[target.info.name]), dtype=to_torch(target.info.dtype)
        ).reshape(target.info.shape)
        if target.info.size
        else torch.empty(target.info.shape, dtype=to_torch(target.info.dtype))
        for target in plan.targets
    }
    in_memory = convert_state_dict(spec_of(body), tensors, config=config, reverse=reverse)
    assert in_memory.keys() == made.keys()
    for name, tensor in in_memory.items():
        assert (tensor.shape, tensor.dtype) == (made[name].shape, made[name].dtype)
        assert to_bytes(tensor) == large[name], name
    return made


def _execute(plan: Plan, tensors: Mapping[str, Tensor], budget: Budget) -> dict[str, bytes]:
    reader, writer = reader_of(tensors), MemoryWriter(plan.shards)
    check_sources(plan, reader, lambda _: None)
    execute(plan, reader, writer, budget)
    writer.finish()
    return {name: bytes(data) for name, data in writer.data.items()}


def there_and_back(body: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Tensors:
    """What the rules make of the tensors, once the way back is known to give the same bytes again."""
    made = convert(body, tensors, config)
    back = convert(body, made, config, reverse=True)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (back[name].shape, back[name].dtype) == (tensor.shape, tensor.dtype)
        assert to_bytes(back[name]) == to_bytes(tensor), name
    return made
