"""Loading a converted checkpoint straight into a model that is there already, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.errors import CheckpointError, Problem
from converters.lazy import ConvertedCheckpoint, open_converted
from converters.plan import Plan
from converters.spec import Spec
from converters.state_dict import is_sharded
from converters.text import printable
from converters.torch_dtypes import from_torch

if TYPE_CHECKING:
    from torch import Tensor, nn


def load_into(
    model: nn.Module,
    spec: Spec,
    source: Path | str,
    *,
    reverse: bool = False,
    dtype: str | None = None,
    config: Mapping[str, Any] | None = None,
    dims: Mapping[str, int] | None = None,
) -> Plan:
    """Load a checkpoint of another layout into a model, on the devices that its parameters are on.

    One tensor at a time is in memory beside the model's own. Parameters that are DTensors get this rank's share.

    Args:
        model: of the spec's target layout; on real devices, so one that was made on meta needs `to_empty` first.
        spec: what to convert, from `load_spec`.
        source: the checkpoint.
        reverse: go the other way.
        dtype: the dtype that the weights are cast to on their way, such as "bfloat16"; the model's must be the same.
        config: takes the place of the source's config.json.
        dims: values that take the place of the spec's dims.

    Returns:
        The plan that was carried out.

    Raises:
        CheckpointError: keys, shapes or dtypes of the model differ from the converted checkpoint's; all of them, and
            nothing is loaded then.
        WeightmapError: as `convert`.
    """
    import torch

    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    with open_converted(spec, source, reverse=reverse, dtype=dtype, config=config, dims=dims) as converted:
        shared = _shared(state)
        problems = [
            *_keys_that_differ(converted, state, shared),
            *(problem for name in converted if name in state for problem in _unlike(converted, name, state[name])),
        ]
        if problems:
            raise CheckpointError(problems)
        with torch.no_grad():
            for name in converted:
                _fill(state[name], converted[name])
        return converted.plan


def _shared(state: Mapping[str, Tensor]) -> dict[str, str]:
    """For each name whose tensor another name has as well (tied weights), the first such name."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in state.items()}


def _keys_that_differ(
    converted: ConvertedCheckpoint, state: Mapping[str, Tensor], shared: Mapping[str, str]
) -> list[Problem]:
    filled = {shared[name] for name in converted if name in shared}
    hint = "is the model of the spec's target layout, and made from the same config?"
    found = [
        Problem("the model has this, and the converted checkpoint doesn't", name, hint)
        for name in state
        if shared[name] not in filled
    ]
    return found + [
        Problem("the converted checkpoint has this, and the model doesn't", printable(name), hint)
        for name in converted
        if name not in state
    ]


def _unlike(converted: ConvertedCheckpoint, name: str, tensor: Tensor) -> list[Problem]:
    info, dtype = converted.info(name), from_torch(tensor.dtype)
    found = []
    if tuple(tensor.shape) != info.shape:
        shapes = f"the model's shape is {list(tensor.shape)}, the converted checkpoint's {list(info.shape)}"
        found.append(Problem(shapes, printable(name)))
    if dtype is not info.dtype:
        wanted = str(tensor.dtype).removeprefix("torch.")
        hint = f"cast on the way with dtype='{wanted}', or make the model in the other dtype"
        found.append(Problem(f"the model's dtype is {dtype}, the converted checkpoint's {info.dtype}", name, hint))
    if tensor.is_meta:
        hint = "give it memory first: model.to_empty(device=...)"
        found.append(Problem("the model's tensor is on the meta device", printable(name), hint))
    return found


def _fill(tensor: Any, value: Tensor) -> None:  # noqa: ANN401 - a Tensor or a DTensor
    if not is_sharded(tensor):
        tensor.copy_(value)
        return
    from torch.distributed.tensor import distribute_tensor

    # Every rank has read the same, so nothing needs to be sent: each takes its share.
    share = distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.to_local().copy_(share.to_local())
