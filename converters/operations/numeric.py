"""Raw tensor bytes as numbers and back, for every floating dtype; numpy is imported on first use only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
