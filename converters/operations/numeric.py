"""Raw tensor bytes as numbers and back, for every floating dtype; numpy is imported on first use only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from converters.errors import CheckpointError, CoverageError
from converters.tensor_info import DType

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

_ML_DTYPES = {
    DType.BF16: "bfloat16",
    DType.F8_E4M3: "float8_e4m3fn",
    DType.F8_E5M2: "float8_e5m2",
    DType.F8_E4M3FNUZ: "float8_e4m3fnuz",
    DType.F8_E5M2FNUZ: "float8_e5m2fnuz",
}
_NUMPY = {DType.F16: "float16", DType.F32: "float32", DType.F64: "float64"}

_INFINITY = {DType.F16: 0x7C00, DType.BF16: 0x7F80, DType.F32: 0x7F80_0000}
"""The bits of infinity where every larger magnitude is a NaN, and neither ever becomes a finite value."""

ARITHMETIC = frozenset({*_ML_DTYPES, *_NUMPY})
"""The dtypes whose values can be computed with; F4, F6 and E8M0 only mean something together with their scales."""


def raw_dtype(dtype: DType) -> np.dtype[Any]:
    """Unsigned integers as wide as an element; dtypes narrower than a byte travel as bytes."""
    import numpy as np

    return np.dtype(f"u{max(dtype.bits, 8) // 8}")


def float_dtype(dtype: DType) -> np.dtype[Any]:
    """The numpy dtype that gives the bits of a floating dtype their meaning."""
    import numpy as np

    if dtype in _NUMPY:
        return np.dtype(_NUMPY[dtype])
    import ml_dtypes

    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _ML_DTYPES[dtype]))
    return found


def decode(raw: Array, dtype: DType) -> Array:
    """The values of raw elements, as numpy floats of the same width."""
    return raw.view(float_dtype(dtype))


def encode(values: Array, dtype: DType) -> Array:
    """Round values to `dtype`, to nearest and ties to even, as raw elements.

    A float64 goes by way of float32 to anything narrower, as torch does it, so that both give the same bits.
    """
    import numpy as np

    with np.errstate(all="ignore"):
        if values.dtype == np.float64 and dtype is not DType.F64:
            values = values.astype(np.float32)
        return values.astype(float_dtype(dtype)).view(raw_dtype(dtype))


def fit(values: Array, dtype: DType, name: str, finite: Array | None = None) -> Array:
    """Round values to `dtype` as raw elements; what doesn't fit is an error.

    Args:
        values: what was computed.
        dtype: what it is rounded to.
        name: the tensor, for messages.
        finite: where the values were finite that it was computed of; None where nothing was computed.

    Raises:
        CheckpointError: a finite value has only an infinity or a NaN for a counterpart, or an infinity none.
    """
    import numpy as np

    raw = encode(values, dtype)
    if _all_finite(raw, dtype):
        return raw
    lost = are_lost(values, raw, dtype)
    if finite is not None:
        lost |= finite & ~are_finite(raw, dtype)
    if lost.any():
        worst = float(np.abs(values[lost].astype(np.float64)).max())
        raise CheckpointError(
            f"{int(lost.sum())} values don't fit {dtype}: the largest is {worst:.6g}",
            name,
            "cast to a dtype with a wider range, such as BF16 or F32",
        )
    return raw


def _all_finite(raw: Array, dtype: DType) -> bool:
    """Whether all of it is surely finite, asked in two passes over integers; false where that doesn't tell."""
    import numpy as np

    if dtype not in _INFINITY or not raw.size:
        return False
    largest = _INFINITY[dtype]
    # Without a sign the larger integer is the larger magnitude; signed, the largest is the largest positive value.
    return int(raw.view(f"i{raw.itemsize}").max()) < largest and int(np.max(raw)) < largest + (1 << (dtype.bits - 1))


def are_lost(values: Array, raw: Array, dtype: DType) -> Array:
    """Where rounding made an infinity or a NaN of something else, or something else of them."""
    import numpy as np

    with np.errstate(all="ignore"):
        rounded = decode(raw, dtype)
        # Some formats have no infinity; neither an overflow nor an infinity may become a NaN in silence.
        lost: Array = (np.isinf(values) != np.isinf(rounded)) | (np.isnan(values) != np.isnan(rounded))
    return lost


def check_arithmetic(dtype: DType, what: str) -> None:
    """Refuse a dtype whose values can't be computed with.

    Raises:
        CoverageError: it is one of those; `what` says what was going to compute.
    """
    if dtype not in ARITHMETIC:
        raise CoverageError(f"{what} takes floating numbers, but the tensor is {dtype}")


def working_dtype(asked: DType | None, dtype: DType) -> DType:
    """What is computed in: what is asked for, or else float32, or float64 where the values are float64."""
    return asked or (DType.F64 if dtype is DType.F64 else DType.F32)


def working_values(raw: Array, dtype: DType, asked: DType | None) -> Array:
    """The values in what is computed in; see `working_dtype`."""
    import numpy as np

    with np.errstate(all="ignore"):  # a signalling NaN becomes a quiet one
        found: Array = decode(raw, dtype).astype(float_dtype(working_dtype(asked, dtype)))
    return found


def are_finite(raw: Array, dtype: DType) -> Array:
    """Where the values of raw elements are finite."""
    import numpy as np

    with np.errstate(all="ignore"):
        found: Array = np.isfinite(decode(raw, dtype))
    return found
