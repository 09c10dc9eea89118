"""torch's dtypes by ours; the only place that pairs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from converters.errors import CheckpointError
from converters.tensor_info import DType, parse_dtype, torch_name

if TYPE_CHECKING:
    import torch


def to_torch(dtype: DType) -> torch.dtype:
    """Torch's dtype.

    Raises:
        CheckpointError: this torch has none.
    """
    import torch

    found = getattr(torch, torch_name(dtype), None)
    if not isinstance(found, torch.dtype):
        raise CheckpointError(f"this torch ({torch.__version__}) has no dtype for {dtype}")
    return found


def from_torch(dtype: torch.dtype) -> DType:
    """Our dtype.

    Raises:
        CheckpointError: safetensors has none.
    """
    try:
        return parse_dtype(str(dtype))
    except ValueError as error:
        raise CheckpointError(f"safetensors has no dtype for {dtype}") from error
