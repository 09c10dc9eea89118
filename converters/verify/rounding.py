"""Which of the source's tensors a conversion rounds: its model is run with the same rounding, so that it hides nothing.

A model whose weights were cast to bfloat16 on purpose says something else than the original by some percent, and where
it routes tokens to experts by much more. No tolerance tells that from a small mistake. But the target must compute
what the source computes with its weights rounded likewise, to within float32's own rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from converters.plan import Plan
from converters.tensor_info import DType
from converters.torch_dtypes import to_torch


@dataclass(frozen=True, slots=True)
class Rounding:
    """The dtype that each tensor goes through, by key.

    Attributes:
        others: for tensors that a model holds under other names than the checkpoint: what all of them go through;
            None where that isn't the same.
    """

    by_key: Mapping[str, torch.dtype] = field(default_factory=dict)
    others: torch.dtype | None = None

    def apply(self, key: str | None, tensor: Tensor) -> Tensor:
        """The tensor's values after the rounding, in its own dtype."""
        through = self.others if key is None else self.by_key.get(key)
        return tensor if through is None or not tensor.is_floating_point() else tensor.to(through).to(tensor.dtype)

    def __str__(self) -> str:
        return " and ".join(sorted({str(dtype).removeprefix("torch.") for dtype in self.by_key.values()}))


NO_ROUNDING = Rounding()


def rounding_of(plan: Plan) -> Rounding:
    """What the plan casts, tensor by tensor; nothing for a tensor that it casts to two dtypes."""
    found: dict[str, set[DType]] = {}
    for target in plan.targets:
        for move in (move for move in target.moves if not plan.is_made(move.source)):
            found.setdefault(plan.sources[move.source].info.name, set()).add(target.info.dtype)
    stored = {source.info.name: source.info.dtype for source in plan.sources}
    by_key = {
        key: to_torch(next(iter(dtypes)))
        for key, dtypes in found.items()
        if len(dtypes) == 1 and not dtypes & {stored[key]} and all(dtype.is_floating for dtype in dtypes)
    }
    same = set(by_key.values())
    return Rounding(by_key, same.pop() if len(same) == 1 and len(by_key) == len(found) else None)
