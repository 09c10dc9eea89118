"""A converted checkpoint as a lazy state dict: each tensor is made when it is asked for, and nothing is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.convert import Options, prepare
from converters.engine import DEFAULT_MAX_MEMORY, materialize
from converters.operations.cast import parse_cast_dtype
from converters.run import check
from converters.schedule import Budget
from converters.spec import Spec
from converters.storage.base import Closing
from converters.tensor_info import TensorInfo
from converters.torch_dtypes import to_torch

if TYPE_CHECKING:
    from torch import Tensor

    from converters.plan import Plan


class ConvertedCheckpoint(Mapping[str, "Tensor"], Closing):
    """See the module; `open_converted` makes one. Close it, or use it in a `with` statement."""

    def __init__(self, spec: Spec, source: Path | str, options: Options) -> None:
        self._stack = ExitStack()
        try:
            prepared = self._stack.enter_context(prepare(spec, source, options))
            check(prepared, lambda _: None)
        except BaseException:
            self._stack.close()
            raise
        self.plan: Plan = prepared.plan
        self._reader = prepared.reader
        self._numbers = {target.info.name: number for number, target in enumerate(self.plan.targets)}

    def __getitem__(self, name: str) -> Tensor:
        import torch

        number = self._numbers[name]
        info = self.plan.targets[number].info
        dtype = to_torch(info.dtype)
        if info.size == 0:
            return torch.empty(info.shape, dtype=dtype)
        data = materialize(self.plan, number, self._reader, Budget(DEFAULT_MAX_MEMORY, 1))
        return torch.frombuffer(data, dtype=dtype).reshape(info.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype of a tensor, without reading it."""
        return self.plan.targets[self._numbers[name]].info

    @property
    def config(self) -> Mapping[str, Any] | None:
        """The target's config.json, as it would be written; None when the source has none."""
        return self.plan.config

    def close(self) -> None:
        """Close the source's files."""
        self._stack.close()


def open_converted(
    spec: Spec,
    source: Path | str,
    *,
    reverse: bool = False,
    dtype: str | None = None,
    config: Mapping[str, Any] | None = None,
    dims: Mapping[str, int] | None = None,
) -> ConvertedCheckpoint:
    """Open a checkpoint as what it would be after conversion; the arguments are those of `convert`.

    Raises:
        WeightmapError: as `convert`, when opening; `CheckpointError` also when a tensor is read.
    """
    options = Options(dtype=parse_cast_dtype(dtype), config=config, dims=dims)
    return ConvertedCheckpoint(spec.inverse() if reverse else spec, source, options)
