"""Loading a converted checkpoint straight into a model that is there already, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
        CheckpointError: keys, shapes or dtypes of the model differ from the converted checkpoint's, or weights that
            are tied in the model differ there; all of them, and nothing is loaded then.
        WeightmapError: as `convert`.
    """
    import torch

    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    again: dict[str, Tensor] = model.state_dict(keep_vars=True)
    with open_converted(spec, source, reverse=reverse, dtype=dtype, config=config, dims=dims) as converted:
        shared = _shared(state)
        problems = [
            *_keys_that_differ(converted, state, shared),
            *(problem for name in converted if name in state for problem in _unlike(converted, name, state[name])),
            *_made_anew(state, again),
        ]
        problems = problems or list(_torn(converted, shared))
        if problems:
            raise CheckpointError(problems)
        with torch.no_grad():
            for name in converted:
                _fill(state[name], converted[name])
        return converted.plan


def _place(tensor: Any) -> tuple[object, ...]:  # noqa: ANN401 - a Tensor or a DTensor, or what get_extra_state gives
    """Where a tensor lies; itself, where it has no memory of its own."""
    local = tensor.detach().to_local() if is_sharded(tensor) else tensor
    start = local.data_ptr() if hasattr(local, "data_ptr") else 0
    return (start, local.dtype, tuple(local.shape), local.stride()) if start else (id(tensor),)


def _shared(state: Mapping[str, Tensor]) -> dict[str, str]:
    """For each name whose tensor another name has as well (tied weights), the first such name."""
    first: dict[tuple[object, ...], str] = {}
    return {name: first.setdefault(_place(tensor), name) for name, tensor in state.items()}


def _made_anew(state: Mapping[str, Tensor], again: Mapping[str, Tensor]) -> Iterator[Problem]:
    """Tensors that `state_dict()` computes each time: what is loaded into them, the model never sees."""
    places = {name: _place(tensor) for name, tensor in state.items()}
    for name in (name for name, place in places.items() if len(place) > 1 and name in again):
        if _place(again[name]) != places[name]:
            yield Problem("the model's state_dict() makes this anew each time, so it can't be filled", printable(name))


def _torn(converted: ConvertedCheckpoint, shared: Mapping[str, str]) -> Iterator[Problem]:
    """Names that are one tensor in the model, and not the same in the converted checkpoint."""
    import torch

    first: dict[str, str] = {}
    for name in converted:
        other = first.setdefault(shared[name], name)
        if other == name:
            continue
        one, two = (converted[each].reshape(-1).view(torch.uint8) for each in (other, name))
        if not torch.equal(one, two):
            what = f"{printable(other)} is the same tensor in the model, and another one in the converted checkpoint"
            yield Problem(what, printable(name), "give the model one for each: its weights are tied")


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
    if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        found.append(Problem("elements of the model's tensor share memory", printable(name), "clone() it first"))
    return found


def _fill(tensor: Any, value: Tensor) -> None:  # noqa: ANN401 - a Tensor or a DTensor
    if not is_sharded(tensor):
        tensor.copy_(value)
        return
    from torch.distributed.tensor import distribute_tensor

    # Every rank has read the same, so nothing needs to be sent: each takes its share.
    share = distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.to_local().copy_(share.to_local())
