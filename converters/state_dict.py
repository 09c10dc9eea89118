"""Converting a state dict in memory, for training code: a view wherever a view will do, on the tensors' own device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from converters.bind import bind
from converters.errors import CheckpointError, CoverageError
from converters.operations.cast import Cast, parse_cast_dtype, widens
from converters.plan import Plan, Source, Target
from converters.planner import make_plan
from converters.spec import Spec
from converters.tensor_info import TensorInfo
from converters.text import printable
from converters.torch_dtypes import from_torch, to_torch

if TYPE_CHECKING:
    from torch import Tensor

    from converters.operations import Elementwise


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
        state_dict: tensors of one device.
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
    import torch

    bound = bind(spec.inverse() if reverse else spec, config, dims=dims, where="the config")
    values: Mapping[str, object] = state_dict
    strange = [name for name, value in values.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise CheckpointError(f"{printable(strange[0])} is no tensor", hint="leave it out of the state dict")
    odd = [name for name, tensor in state_dict.items() if tensor.layout is not torch.strided]
    if odd:
        raise CheckpointError(f"{printable(odd[0])} is sparse, and a layout speaks of dense tensors", hint="densify it")
    # A conjugate or negated view would carry its mark along, and not its values.
    tensors = {name: tensor.detach().resolve_conj().resolve_neg() for name, tensor in state_dict.items()}
    sources = [
        Source(TensorInfo(name, tuple(tensor.shape), from_torch(tensor.dtype)), "state dict")
        for name, tensor in tensors.items()
    ]
    plan = make_plan(bound, sources, dtype=parse_cast_dtype(dtype))
    inputs = [tensors[source.info.name] for source in sources]
    _check(plan, inputs)
    device = inputs[0].device if inputs else torch.device("cpu")
    return {target.info.name: _make(target, inputs, device) for target in plan.targets}


def _check(plan: Plan, inputs: list[Tensor]) -> None:
    import torch

    for check in plan.equality_checks:
        pair = (inputs[number].contiguous().reshape(-1) for number in (check.first, check.second))
        first, second = (tensor.view(torch.uint8) for tensor in pair)
        if not torch.equal(first, second):
            names = " and ".join(printable(plan.sources[number].info.name) for number in (check.first, check.second))
            raise CoverageError(f"{names} must be equal to become one tensor", plan.rules[check.rule].where)
    for generated in plan.generated_checks:
        info = plan.sources[generated.source].info
        raw = (
            inputs[generated.source]
            .cpu()
            .contiguous()
            .view(_integers(inputs[generated.source].itemsize))
            .numpy()
            .reshape(-1)
        )
        position = generated.generator.differs(raw.view(f"u{raw.itemsize}"), info, 0)
        if position is not None:
            what = f"{printable(info.name)} doesn't hold what the rule fills it with, from element {position} on"
            raise CoverageError(what, plan.rules[generated.rule].where)


def _integers(nbytes: int) -> Any:  # noqa: ANN401 - a torch.dtype, which is not imported here
    import torch

    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[nbytes]


def _make(target: Target, inputs: list[Tensor], device: object) -> Tensor:
    import torch

    info = target.info
    if target.generator is not None:
        raw = target.generator.generate(info, 0, info.size)
        made = torch.from_numpy(raw.view(f"i{raw.itemsize}")).view(to_torch(info.dtype))
        return made.reshape(info.shape).to(device=device)  # type: ignore[call-overload,no-any-return]
    if len(target.moves) == 1:
        move = target.moves[0]
        source = inputs[move.source]
        if move.copy.is_range and tuple(source.shape) == info.shape:
            return _operate(source, target.operations, info.name)
        box = (
            source.contiguous()
            .view(-1)
            .as_strided(
                move.copy.shape, move.copy.source_strides, source.contiguous().storage_offset() + move.copy.source_start
            )
        )
        return _operate(box.reshape(info.shape), target.operations, info.name)
    like = inputs[target.moves[0].source] if target.moves else None
    made = torch.empty(info.size, dtype=like.dtype if like is not None else to_torch(info.dtype), device=device)  # type: ignore[call-overload]
    for move in target.moves:
        source = inputs[move.source].contiguous()
        copy = move.copy
        box = source.as_strided(copy.shape, copy.source_strides, source.storage_offset() + copy.source_start)
        made.as_strided(copy.shape, copy.target_strides, copy.target_start).copy_(box)
    return _operate(made.view(info.shape), target.operations, info.name)


def _operate(tensor: Tensor, operations: tuple[Elementwise, ...], name: str) -> Tensor:
    for operation in operations:
        if not isinstance(operation, Cast):
            raise AssertionError(f"{operation} has no way in torch")  # noqa: TRY004 - a bug, not a wrong type
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
