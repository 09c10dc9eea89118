"""Converting a state dict in memory, for training code: a view wherever a view will do, on the tensors' own device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from converters.bind import bind
from converters.errors import CheckpointError, CoverageError
from converters.operations.cast import Cast, parse_cast_dtype, widens
from converters.parts import common_label, label_prefix
from converters.plan import MadeSource, Plan, Source, Target
from converters.planner import DEFAULT_MAX_SHARD_NBYTES, make_plan
from converters.schedule import MADE_CHUNK
from converters.spec import Spec
from converters.strided import StridedCopy
from converters.tensor_info import DType, TensorInfo
from converters.text import printable
from converters.torch_dtypes import from_torch, to_torch

if TYPE_CHECKING:
    from torch import Tensor

    from converters.operations import Array, Elementwise


def convert_state_dict(
    spec: Spec,
    state_dict: Mapping[str, Tensor],
    *,
    reverse: bool = False,
    dtype: str | None = None,
    config: Mapping[str, Any] | None = None,
    dims: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Convert a state dict in memory.

    Args:
        spec: what to convert, from `load_spec`.
        state_dict: tensors of one device, or DTensors of one mesh: then all ranks must call this, and get DTensors.
            Where a spec's keys name the file that they are in, as `unet:KEY`, so do these; those of the only file of a
            model in numbered parts may leave it out, and come out without it.
        reverse: go the other way.
        dtype: cast every floating tensor of 16 bits and more to it.
        config: the source model's config, such as `model.config.to_dict()`; needed where the tensors' shapes don't
            tell how to take them apart.
        dims: values that take the place of the spec's dims.

    Returns:
        The target's state dict. Tensors share memory with the source's wherever no element has to move: to change
        one in place is to change the other. Two keys that hold one source tensor are two views of it.

    Raises:
        WeightmapError: as `convert`.
    """
    plan, tensors = plan_state_dict(
        spec.inverse() if reverse else spec, state_dict, dtype=parse_cast_dtype(dtype), config=config, dims=dims
    )
    made = make_targets(plan, tensors)
    label = common_label((spec.source if reverse else spec.target).files, made)
    return {name.removeprefix(label): tensor for name, tensor in made.items()}


def plan_state_dict(
    spec: Spec,
    state_dict: Mapping[str, Tensor],
    *,
    dtype: DType | None = None,
    config: Mapping[str, Any] | None = None,
    dims: Mapping[str, int] | None = None,
    set_config: Mapping[str, Any] | None = None,
    max_shard_nbytes: int = DEFAULT_MAX_SHARD_NBYTES,
) -> tuple[Plan, list[Tensor]]:
    """Plan the conversion of a state dict, by the shapes that its tensors have as a whole.

    Returns:
        The plan, and the tensors in the order of its sources.

    Raises:
        WeightmapError: as `convert_state_dict`.
    """
    import torch

    bound = bind(spec, config, dims=dims, set_config=set_config, where="the config")
    values: Mapping[str, object] = state_dict
    strange = [name for name, value in values.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise CheckpointError(f"{printable(strange[0])} is no tensor", hint="leave it out of the state dict")
    odd = [name for name, tensor in state_dict.items() if tensor.layout is not torch.strided]
    if odd:
        raise CheckpointError(f"{printable(odd[0])} is sparse, and a layout speaks of dense tensors", hint="densify it")
    label = label_prefix(spec.source.files, state_dict)
    sources = [
        Source(TensorInfo(label + name, tuple(tensor.shape), from_torch(tensor.dtype)), "state dict")
        for name, tensor in state_dict.items()
    ]
    plan = make_plan(bound, sources, dtype=dtype, max_shard_nbytes=max_shard_nbytes)
    # A conjugate or negated view would carry its mark along, and not its values.
    return plan, [tensor.detach().resolve_conj().resolve_neg() for tensor in state_dict.values()]


def make_targets(plan: Plan, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Make a plan's targets of the tensors that it was made for; sharded ones of sharded ones.

    Raises:
        CoverageError: values that the plan forbids.
        CheckpointError: a value doesn't fit the dtype that it is cast to.
    """
    if any(is_sharded(tensor) for tensor in tensors):
        from converters.sharded import make_sharded_targets

        return make_sharded_targets(plan, tensors)
    check_values(plan, tensors)
    inputs = [*tensors]
    inputs.extend(make_source(plan, made, tensors) for made in plan.made)
    return {target.info.name: make_target(target, inputs) for target in plan.targets}


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, of which each rank holds a share."""
    return hasattr(tensor, "full_tensor")


def check_values(plan: Plan, inputs: Sequence[Tensor]) -> None:
    """Compare what must be equal, and what the other side makes anew.

    Raises:
        CoverageError: it isn't.
    """
    import torch

    for check in plan.equality_checks:
        pair = (inputs[number].contiguous().reshape(-1) for number in (check.first, check.second))
        first, second = (tensor.view(torch.uint8) for tensor in pair)
        if not torch.equal(first, second):
            names = " and ".join(printable(plan.sources[number].info.name) for number in (check.first, check.second))
            raise CoverageError(f"{names} must be equal to become one tensor", plan.rules[check.rule].where)
    for generated in plan.generated_checks:
        info = plan.sources[generated.source].info
        raw = raw_elements(_box(inputs[generated.source], generated.copy))
        position = generated.generator.differs(raw, info, 0)
        if position is not None:
            block = "" if generated.copy.size == info.size else "in a block of its own, "
            what = f"{printable(info.name)} doesn't hold what the rule fills it with, {block}from element {position} on"
            raise CoverageError(what, plan.rules[generated.rule].where)


def _box(source: Tensor, copy: StridedCopy) -> Tensor:
    """The elements that a copy reads, in its shape; a view where the tensor is contiguous."""
    source = source.contiguous()
    return source.as_strided(copy.shape, copy.source_strides, source.storage_offset() + copy.source_start)


def raw_elements(tensor: Tensor) -> Array:
    """A tensor's elements, flat, as unsigned integers of their width."""
    flat = tensor.contiguous().cpu().view(_integers(tensor.itemsize)).numpy().reshape(-1)
    found: Array = flat.view(f"u{flat.itemsize}")
    return found


def _from_raw(raw: Array, dtype: DType) -> Tensor:
    import torch

    signed = raw if raw.itemsize == 1 else raw.view(f"i{raw.itemsize}")
    return torch.from_numpy(signed).view(to_torch(dtype))


class _Input(Struct, frozen=True):
    """A tensor that an operation takes; see `TensorInput`."""

    info: TensorInfo
    raw: Array

    def elements(self, start: int, stop: int) -> Array:
        """See `TensorInput.elements`."""
        return self.raw[start:stop]


def make_source(plan: Plan, made: MadeSource, tensors: Sequence[Tensor]) -> Tensor:
    """What an operation makes of tensors, computed on the CPU."""
    import numpy as np

    inputs = [_Input(plan.sources[number].info, raw_elements(tensors[number])) for number in made.inputs]
    size = made.info.size
    parts = [
        made.operation.make(inputs, made.reduction, start, min(start + MADE_CHUNK, size))
        for start in range(0, size, MADE_CHUNK)
    ]
    raw = np.concatenate(parts) if parts else np.empty(0, dtype=f"u{made.info.dtype.bits // 8}")
    return _from_raw(raw, made.info.dtype).reshape(made.info.shape).to(device=tensors[made.inputs[0]].device)


def _integers(nbytes: int) -> Any:  # noqa: ANN401 - a torch.dtype, which is not imported here
    import torch

    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[nbytes]


def make_target(target: Target, inputs: Sequence[Tensor]) -> Tensor:
    """Make one target; `inputs` are the plan's sources, and after them what operations made of several."""
    import torch

    info = target.info
    device = inputs[target.moves[0].source if target.moves else 0].device if len(inputs) else torch.device("cpu")
    if target.generator is not None:
        raw = target.generator.generate(info, 0, info.size)
        return _from_raw(raw, info.dtype).reshape(info.shape).to(device=device)
    if len(target.moves) == 1 and not target.fills:
        move = target.moves[0]
        source = inputs[move.source]
        if move.copy.is_range and tuple(source.shape) == info.shape:
            return _operate(source, target.operations, info.name)
        return _operate(_box(source, move.copy).reshape(info.shape), target.operations, info.name)
    made = torch.empty(info.size, dtype=to_torch(info.dtype), device=device)
    for move in target.moves:
        copy = move.copy
        box = _operate(_box(inputs[move.source], copy), target.operations, info.name)
        made.as_strided(copy.shape, copy.target_strides, copy.target_start).copy_(box)
    for fill in target.fills:
        copy = fill.copy
        value = _from_raw(fill.generator.generate(info, 0, 1), info.dtype).to(device=device)
        made.as_strided(copy.shape, copy.target_strides, copy.target_start).copy_(value[0])
    return made.view(info.shape)


def _operate(tensor: Tensor, operations: tuple[Elementwise, ...], name: str) -> Tensor:
    """Casts are torch's own, on the tensor's device; other operations are computed on the CPU."""
    for operation in operations:
        if not isinstance(operation, Cast):
            dtype = from_torch(tensor.dtype)
            raw = operation.apply(raw_elements(tensor), dtype, printable(name))
            shape, device = tensor.shape, tensor.device
            tensor = _from_raw(raw, operation.output_dtype(dtype)).reshape(shape).to(device=device)
            continue
        cast = tensor.to(to_torch(operation.target))
        if not widens(from_torch(tensor.dtype), operation.target):
            lost = _lost(tensor, cast)
            if bool(lost.any()):
                raise CheckpointError(f"{int(lost.sum())} values don't fit {operation.target}", printable(name))
        tensor = cast
    return tensor


def _lost(values: Tensor, cast: Tensor) -> Tensor:
    """Which values have no counterpart after a cast, as `Cast.apply` has it."""
    import torch

    largest = torch.tensor(torch.finfo(cast.dtype).max, dtype=torch.float64).to(cast.dtype)
    below = (largest.view(_integers(largest.itemsize)) - 1).view(cast.dtype)
    # Where a format has no infinity torch may saturate: what lies beyond the last number that rounds to the largest
    # one is lost.
    reach = 1.5 * largest.item() - 0.5 * below.item()
    # Torch can't ask 8-bit floats themselves.
    before, after = (one.float() if one.dtype.itemsize == 1 else one for one in (values, cast))
    return (
        (before.isinf() != after.isinf())
        | (before.isnan() != after.isnan())
        | (before.isfinite() & (before.abs() > reach))
    )
