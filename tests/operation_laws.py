"""The laws that every operation keeps, whoever wrote it; each raises where it is broken."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from converters.errors import CheckpointError, CoverageError
from converters.operations import Elementwise, OneWay, Operation, Reduction, TensorOperation
from converters.operations.numeric import ARITHMETIC, decode, raw_dtype
from converters.operations.registry import make_operation, operation_from_json, operation_text, operation_to_json
from converters.tensor_info import DType, TensorInfo

FLOATS = sorted(ARITHMETIC, key=lambda dtype: dtype.label)


def is_frozen(kind: type) -> bool:
    """Whether it is a frozen `Struct`, or a frozen dataclass."""
    if issubclass(kind, msgspec.Struct):
        return kind.__struct_config__.frozen
    return dataclasses.is_dataclass(kind) and bool(kind.__dataclass_params__.frozen)  # type: ignore[attr-defined]


def check_data(operation: Operation) -> None:
    """It is plain frozen data, which a spec and a plan can hold, and has an inverse or the reason why not."""
    assert is_frozen(type(operation))
    assert hash(operation) == hash(copy.deepcopy(operation))
    written = json.loads(json.dumps(operation_to_json(operation)))
    assert operation_from_json(written) == operation
    assert make_operation(operation.name, operation.options()) == operation
    assert operation_text(operation).startswith(operation.name)
    inverse = operation.inverse()
    assert (operation.exactness == "one-way") == isinstance(inverse, OneWay)
    assert operation.exactness in ("exact", "approximate", "one-way")
    if isinstance(inverse, OneWay):
        assert len(inverse.reason.split()) > 3
    else:
        assert inverse.inverse() == operation


def samples(dtype: DType) -> np.ndarray:
    """Values of all sizes and both signs, infinities and NaNs among them, as raw elements; every pattern of 8 bits."""
    if dtype.bits == 8:
        return np.arange(256, dtype=np.uint8)
    rng = np.random.default_rng(3)
    random = rng.integers(0, 1 << dtype.bits, 3000, dtype=raw_dtype(dtype), endpoint=False)
    return np.concatenate([random, _moderate(dtype, rng)])


def _moderate(dtype: DType, rng: np.random.Generator) -> np.ndarray:
    from converters.operations.numeric import float_dtype

    values = rng.normal(size=3000) * np.exp2(rng.integers(-8, 4, 3000))
    return values.astype(np.float32).astype(float_dtype(dtype)).view(raw_dtype(dtype))


def kept(operation: Elementwise, raw: np.ndarray, dtype: DType) -> np.ndarray:
    """The values that the operation takes: those that aren't refused one by one."""

    def is_taken(one: np.ndarray) -> bool:
        try:
            operation.apply(one, dtype, "w")
        except CheckpointError as error:
            where = error.problems[0].where
        else:
            return True
        assert where == "w", "the error names the tensor"
        return False

    return np.concatenate([raw[:0], *(raw[at : at + 1] for at in range(len(raw)) if is_taken(raw[at : at + 1]))])


def check_elementwise(operation: Elementwise, dtype: DType) -> None:
    """It works on each value alone, makes no infinity or NaN in silence, and comes back as exactly as it says."""
    try:
        out = operation.output_dtype(dtype)
    except CoverageError:
        return
    raw = kept(operation, samples(dtype), dtype)
    before = raw.copy()
    found = operation.apply(raw, dtype, "w")
    assert np.array_equal(raw, before), "the input stays as it is"
    assert found.dtype == raw_dtype(out)
    assert found.shape == raw.shape
    parts = [operation.apply(part, dtype, "w") for part in np.array_split(raw, 7)]
    assert np.array_equal(np.concatenate(parts), found), "a value doesn't depend on its neighbours"
    square = raw[: len(raw) // 2 * 2].reshape(2, -1)
    assert np.array_equal(operation.apply(square, dtype, "w").reshape(-1), found[: square.size])
    with np.errstate(all="ignore"):
        values, result = decode(raw, dtype).astype(np.float64), decode(found, out).astype(np.float64)
    assert np.array_equal(np.isnan(values), np.isnan(result))
    assert np.isfinite(result[np.isfinite(values)]).all(), "an overflow is an error"
    assert np.isfinite(values).sum() > 20, "the samples show something"
    _check_way_back(operation, raw, dtype, out)


def _check_way_back(operation: Elementwise, raw: np.ndarray, dtype: DType, out: DType) -> None:
    inverse = operation.inverse()
    if isinstance(inverse, OneWay):
        return
    assert isinstance(inverse, Elementwise)
    assert inverse.output_dtype(out) is dtype
    found = operation.apply(raw, dtype, "w")
    with np.errstate(all="ignore"):
        is_number = np.isfinite(decode(raw, dtype).astype(np.float64))
    if operation.exactness == "exact":
        again = inverse.apply(found, out, "w")
        assert np.array_equal(again[is_number], raw[is_number]), "exact is bit for bit"
        return
    # Values near one: what is approximate is still near, as near as the narrower of the two dtypes rounds.
    with np.errstate(all="ignore"):
        values = np.abs(decode(raw, dtype).astype(np.float64))
    near = is_number & (values > 0.5) & (values < 2)
    taken = kept(inverse, found[near], out)
    if len(taken) < near.sum():
        return
    back = decode(inverse.apply(found[near], out, "w"), dtype).astype(np.float64)
    digits = {"F64": 23, "F32": 23, "F16": 10, "BF16": 7, "F8_E4M3": 3}
    computed = getattr(operation, "dtype", None) or dtype
    rounding = max(2.0 ** -digits.get(each.label, 2) for each in (dtype, out, computed))
    assert np.abs(back - decode(raw[near], dtype).astype(np.float64)).max() <= 8 * rounding


@dataclass(frozen=True)
class Given:
    """A tensor in memory that an operation takes."""

    info: TensorInfo
    raw: np.ndarray

    def elements(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start < stop <= self.raw.size, "nothing outside of the tensor is read"
        found = self.raw[start:stop].copy()
        found.flags.writeable = False
        return found


def make_all(
    operation: TensorOperation, inputs: Sequence[Given], made: TensorInfo, reduction: Reduction | None = None
) -> np.ndarray:
    return operation.make(inputs, reduction, 0, made.size)


def check_tensor_operation(
    operation: TensorOperation, inputs: Sequence[Given], made: TensorInfo, reduction: Reduction | None = None
) -> None:
    """What it makes doesn't depend on how it is cut, and has the dtype that was promised."""
    assert operation.output([given.info for given in inputs]).dtype is made.dtype
    assert operation.output([given.info for given in inputs]).name == inputs[0].info.name
    whole = make_all(operation, inputs, made, reduction)
    assert whole.dtype == raw_dtype(made.dtype)
    assert whole.shape == (made.size,)
    for step in (1, 2, 3, 7, max(1, made.size // 2)):
        starts = range(0, made.size, step)
        parts = [operation.make(inputs, reduction, start, min(start + step, made.size)) for start in starts]
        assert np.array_equal(np.concatenate(parts), whole), step
