"""State dicts that are sharded over ranks (DTensor, as FSDP2 has them): converted and saved by all ranks together.

Each rank calls these with its own share; what they do is the same on all of them, in the same order. A tensor is whole
in memory only while a target that is not simply the same tensor is made of it.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from converters.config_map import with_dtype
from converters.errors import OutputError
from converters.operations.cast import parse_cast_dtype
from converters.plan import Plan, Target
from converters.planner import DEFAULT_MAX_SHARD_NBYTES
from converters.publish import publishing
from converters.ranks import everywhere, on_first, world
from converters.sharding import parse_size
from converters.side_files import write_config
from converters.spec import Spec
from converters.state_dict import (
    check_values,
    is_sharded,
    make_source,
    make_target,
    make_targets,
    plan_state_dict,
    raw_elements,
)
from converters.storage.checkpoint import open_checkpoint
from converters.storage.locations import locate_output
from converters.storage.remote_path import RemotePath
from converters.storage.safetensors import SafetensorsWriter
from converters.tensor_info import DType
from converters.text import printable

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

_SHARDS = "sharded"
"""Where torch's writer puts the files of the ranks, before it joins them."""


class _Gathered(Sequence["Tensor"]):
    """A plan's sources, each whole from its first use to its last."""

    def __init__(self, plan: Plan, tensors: Sequence[Tensor]) -> None:
        self._plan = plan
        self._tensors = tensors
        self._whole: dict[int, Tensor] = {}
        self._uses = Counter(number for target in plan.targets for number in _numbers(target))

    def __len__(self) -> int:
        return len(self._tensors) + len(self._plan.made)

    def __getitem__(self, number: Any) -> Any:  # noqa: ANN401 - a sequence's signature has slices, too
        if number not in self._whole:
            made = number - len(self._tensors)
            self._whole[number] = (
                _whole(self._tensors[number])
                if made < 0
                else make_source(self._plan, self._plan.made[made], _Each(self._tensors))
            )
        return self._whole[number]

    def used(self, target: Target) -> None:
        """Let go of what no other target needs."""
        for number in _numbers(target):
            self._uses[number] -= 1
            if self._uses[number] == 0:
                self._whole.pop(number, None)


class _Each(Sequence["Tensor"]):
    """Tensors that are whole only while they are looked at."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, number: Any) -> Any:  # noqa: ANN401 - as above
        return _whole(self._tensors[number])


def _numbers(target: Target) -> set[int]:
    return {move.source for move in target.moves} or {0}


def _whole(tensor: Tensor) -> Tensor:
    whole: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return whole


def make_sharded_targets(plan: Plan, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Make a plan's targets of DTensors; they are DTensors on the same mesh, sharded along their first dimension.

    All ranks must call it. Tensors that are no DTensors must be the same on all of them.
    """
    check_values(plan, _Each(tensors))
    gathered = _Gathered(plan, tensors)
    like = next(tensor for tensor in tensors if is_sharded(tensor))
    made = {}
    for target in plan.targets:
        same = _same(target, tensors)
        made[target.info.name] = same if same is not None else _shard(make_target(target, gathered), like)
        gathered.used(target)
    return made


def _same(target: Target, tensors: Sequence[Tensor]) -> Tensor | None:
    """The source that a target is under another name; None where it is not."""
    if len(target.moves) != 1 or target.operations or target.fills or target.generator is not None:
        return None
    move = target.moves[0]
    if move.source >= len(tensors) or not move.copy.is_range:
        return None
    source = tensors[move.source]
    return source if is_sharded(source) and tuple(source.shape) == target.info.shape else None


def _shard(tensor: Tensor, like: Any) -> Tensor:  # noqa: ANN401 - a DTensor, whose type is imported below
    """A tensor that all ranks have, as a DTensor on the mesh of another; no rank sends anything."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    replicated = [Replicate()] * like.device_mesh.ndim
    whole = DTensor.from_local(tensor.contiguous(), like.device_mesh, replicated, run_check=False)
    sharded = tensor.ndim > 0
    placements = [Shard(0) if sharded and not one.is_replicate() else Replicate() for one in like.placements]
    return whole.redistribute(like.device_mesh, placements)


def save_converted(  # noqa: PLR0913 - each is an option of its own, as those of `convert`
    spec: Spec,
    state_dict: Mapping[str, Tensor],
    output: Path | str,
    *,
    reverse: bool = False,
    overwrite: bool = False,
    max_shard_size: int | str = DEFAULT_MAX_SHARD_NBYTES,
    dtype: str | None = None,
    config: Mapping[str, Any] | None = None,
    dims: Mapping[str, int] | None = None,
    set_config: Mapping[str, Any] | None = None,
) -> Plan:
    """Convert a model's state dict and save it as safetensors; the directory appears whole or not at all.

    Under torch.distributed all ranks call it, and each writes its own share, by torch's distributed checkpoint; the
    first rank then joins and publishes them. The output must be on a file system that all of them see.

    Args:
        spec: what to convert, from `load_spec`.
        state_dict: the model's, of tensors or DTensors.
        output: the directory to make.
        reverse: go the other way, for instance from a model of one's own to the layout of the Hub.
        overwrite: replace `output` if it is there, once the new one is complete.
        max_shard_size: bytes of tensor data in one file, or text such as "5GB".
        dtype: cast every floating tensor of 16 bits and more to it.
        config: the model's config, which becomes the target's config.json.
        dims: values that take the place of the spec's dims.
        set_config: values for the target's config.json, by dotted path.

    Returns:
        The plan that was carried out.

    Raises:
        WeightmapError: as `convert`, on every rank.
    """
    output = locate_output(output)
    if isinstance(output, RemotePath):
        what = "a state dict is saved to a file system that all ranks see, and this is a URL"
        raise OutputError(what, printable(str(output)), "Save it there, and convert or copy that to the store.")
    direction = spec.inverse() if reverse else spec
    if direction.target.files or direction.target.file:
        raise OutputError(
            f"{direction.target.layout} has files of its own names, and this writes model.safetensors",
            hint="save the model as it is, and convert that with `convert`",
        )
    target_dtype = parse_cast_dtype(dtype)
    plan, tensors = plan_state_dict(
        direction,
        state_dict,
        dtype=target_dtype,
        config=config,
        dims=dims,
        set_config=set_config,
        max_shard_nbytes=parse_size(max_shard_size),
    )
    targets = everywhere(lambda: make_targets(plan, tensors))
    with ExitStack() as stack:
        staging = on_first(lambda: stack.enter_context(publishing(output, overwrite=overwrite)))
        everywhere(lambda: _write(plan, targets, staging))
        scalars = {name: _whole(tensor) for name, tensor in targets.items() if tensor.ndim == 0}
        on_first(lambda: _write_scalars(staging, scalars))
        on_first(lambda: _finish(plan, staging, direction, target_dtype))
        on_first(stack.close)
    return plan


def _write(plan: Plan, targets: Mapping[str, Tensor], staging: Path) -> None:
    """Write the share of this rank; the first one joins them."""
    if world() == 1:
        _write_alone(plan, targets, staging)
        return
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    file_of = {info.name: number for number, shard in enumerate(plan.shards, 1) for info in shard.tensors}
    writer = HuggingFaceStorageWriter(str(staging), file_of, save_distributed=True, enable_consolidation=True)
    save(_apart(targets), storage_writer=writer)


def _apart(targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, of which no two share memory: safetensors' writer refuses those."""
    seen: set[int] = set()
    found = {}
    for name, tensor in targets.items():
        local = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
        place = local.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in seen else tensor.contiguous()
        seen.add(place)
    return found


def _write_scalars(staging: Path, scalars: Mapping[str, Tensor]) -> None:
    """Write tensors without dimensions: torch leaves zeros in their place when it joins the files of the ranks."""
    shutil.rmtree(staging / _SHARDS, ignore_errors=True)
    with open_checkpoint(staging) as reader:
        files = {name: staging / reader.file_of[name] for name in scalars if name in reader.tensors}
    for name, path in files.items():
        with path.open("r+b") as file:
            nbytes = int.from_bytes(file.read(8), "little")
            first, _ = json.loads(file.read(nbytes))[name]["data_offsets"]
            file.seek(8 + nbytes + first)
            file.write(raw_elements(scalars[name]).tobytes())


def _write_alone(plan: Plan, targets: Mapping[str, Tensor], staging: Path) -> None:
    writer = SafetensorsWriter(staging, plan.shards)
    try:
        for number, shard in enumerate(plan.shards):
            writer.start_shard(number)
            for info in (info for info in shard.tensors if info.nbytes):
                writer.write_from(info.name, 0, raw_elements(_whole(targets[info.name])).data)
            writer.finish_shard(number)
        writer.finish()
    except BaseException:
        writer.abort()
        raise


def _finish(plan: Plan, staging: Path, spec: Spec, dtype: DType | None) -> None:
    """Compare what was written with the plan, and write the config."""
    planned = {target.info.name: target.info for target in plan.targets}
    with open_checkpoint(staging) as reader:
        wrong = [name for name in {**planned, **reader.tensors} if reader.tensors.get(name) != planned.get(name)]
    if wrong:
        what = f"{len(wrong)} tensors were not written as planned, such as {printable(wrong[0])}"
        raise OutputError(
            what, printable(str(staging)), "This is a mistake in weightmap or in torch; please report it."
        )
    if plan.config is not None:
        write_config(staging, with_dtype(plan.config, dtype) if dtype else plan.config, spec.target)
