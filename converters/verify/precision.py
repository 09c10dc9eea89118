"""What models compute in: device, dtype, and arithmetic that is the same on both sides and from run to run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from converters.errors import WeightmapError
from converters.tensor_info import parse_dtype
from converters.torch_dtypes import to_torch


@dataclass(frozen=True, slots=True)
class Precision:
    """Where and in what both models compute.

    Attributes:
        note: why the dtype isn't the one that was asked for; empty where it is.
    """

    device: torch.device
    dtype: torch.dtype
    note: str = ""

    @property
    def label(self) -> str:
        """The dtype as a report shows it."""
        name = str(self.dtype).removeprefix("torch.")
        return f"{name} ({self.note})" if self.note else name


def choose_precision(device: str | None, dtype: str | None) -> Precision:
    """Decide what to compute on and in.

    Without a dtype that is float32, whatever is stored: every 16-bit value is exact in it, and its rounding hides far
    less than theirs would.

    Raises:
        WeightmapError: there is no such device here, or no such floating dtype.
    """
    chosen = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise WeightmapError("there is no CUDA device here", "--device", "leave it out, or say --device cpu")
    if dtype is None:
        return Precision(chosen, torch.float32)
    try:
        asked = to_torch(parse_dtype(dtype))
    except ValueError as error:
        raise WeightmapError(str(error), "--dtype") from error
    if not asked.is_floating_point or asked.itemsize == 1:
        raise WeightmapError(f"models can't be computed in {asked}", "--dtype", "use float32, bfloat16 or float16")
    if not _runs(chosen, asked):
        return Precision(chosen, torch.float32, f"{asked} doesn't run on this {chosen.type}")
    return Precision(chosen, asked)


def _runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the operations that a transformer is made of have a kernel; found by trying, since versions differ."""
    try:
        x = torch.ones(2, 8, device=device, dtype=dtype)
        x = functional.gelu(functional.layer_norm(functional.linear(x, x.T @ x), (8,)), approximate="tanh")
        functional.scaled_dot_product_attention(x[None], x[None], x[None]).softmax(-1)
    except (RuntimeError, NotImplementedError):
        return False
    return True


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """IEEE float32 without TF32, plain (math) attention, no autotuned kernels, no gradients; restored afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (
        matmul.allow_tf32,
        cudnn.allow_tf32,
        cudnn.deterministic,
        cudnn.benchmark,
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
    )
    highest = torch.get_float32_matmul_precision()
    fastpath = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.set_float32_matmul_precision("highest")
        matmul.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = False
        matmul.allow_fp16_reduced_precision_reduction = matmul.allow_bf16_reduced_precision_reduction = False
        cudnn.deterministic = True
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.set_float32_matmul_precision(highest)
        (
            matmul.allow_tf32,
            cudnn.allow_tf32,
            cudnn.deterministic,
            cudnn.benchmark,
            matmul.allow_fp16_reduced_precision_reduction,
            matmul.allow_bf16_reduced_precision_reduction,
        ) = before
        torch.backends.mha.set_fastpath_enabled(fastpath)
