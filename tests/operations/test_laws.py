"""Every operation, those of other packages among them, keeps the laws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from converters.operations import Elementwise, Operation, TensorOperation
from converters.operations.affine import Affine
from converters.operations.cast import Cast
from converters.operations.dequantize import Dequantize
from converters.operations.dequantize_mxfp4 import DequantizeMxfp4
from converters.operations.logarithm import NegativeExponential, NegativeLogarithm
from converters.operations.mean import Mean
from converters.operations.registry import make_operation, operation_names, operation_to_json
from converters.spec_file import parse_spec
from converters.spec_yaml import spec_to_yaml
from converters.tensor_info import DType
from tests.operation_laws import FLOATS, check_data, check_elementwise
from tests.operations.plugins import install_operation
from tests.planning import spec_of

OPERATIONS: list[Operation] = [
    Affine(add=1.0),
    Affine(add=-1.0, dtype=DType.F64),
    Affine(scale=-1.0),
    Affine(scale=0.25),
    Affine(scale=-8.0, dtype=DType.F32),
    Affine(scale=0.3),
    Affine(scale=0.3, add=0.7),
    Affine(scale=0.3, add=0.7, inverted=True, dtype=DType.F32),
    Affine(add=1.0, dtype=DType.BF16),
    Cast(DType.F16),
    Cast(DType.F32, DType.BF16),
    Cast(DType.BF16, DType.F32),
    Dequantize((128, 128)),
    Dequantize((1, None), DType.F32),
    DequantizeMxfp4(DType.F16),
    Mean("r", DType.F64),
    NegativeExponential(),
    NegativeExponential(DType.F64),
    NegativeLogarithm(),
]


def test_no_operation_of_this_package_is_left_out() -> None:
    assert {operation.name for operation in OPERATIONS} == {*operation_names()}


@pytest.mark.parametrize("operation", OPERATIONS, ids=repr)
def test_it_is_data_with_an_inverse_or_a_reason(operation: Operation) -> None:
    check_data(operation)
    assert isinstance(operation, Elementwise) != isinstance(operation, TensorOperation)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("operation", [each for each in OPERATIONS if isinstance(each, Elementwise)], ids=repr)
def test_values_go_there_and_back(operation: Elementwise, dtype: DType) -> None:
    check_elementwise(operation, dtype)


@pytest.mark.parametrize("operation", OPERATIONS, ids=repr)
def test_a_spec_can_say_it(operation: Operation) -> None:
    inputs = operation.inputs if isinstance(operation, TensorOperation) else ()
    source = "{" + ", ".join(f"{name}: a.{name}" for name in inputs) + "}" if inputs else "a"
    layout = "layout: r o -> o" if isinstance(operation, Mean) else ""
    spec = spec_of(f"""
        rules:
          - from: {source}
            to: b
            {layout}
            apply: {json.dumps(operation_to_json(operation))}
    """)
    assert spec.rules[0].operations == (operation,)
    assert spec.rules[0].exactness == operation.exactness
    assert parse_spec(spec_to_yaml(spec)) == spec
    if operation.exactness != "one-way":
        assert parse_spec(spec_to_yaml(spec.inverse())) == spec.inverse()
        assert spec.inverse().inverse() == spec


def test_an_operation_of_another_package_keeps_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_operation(tmp_path, monkeypatch)
    operation = make_operation("test_square_root", {})
    check_data(operation)
    assert isinstance(operation, Elementwise)
    for dtype in FLOATS:
        check_elementwise(operation, dtype)
