"""Each kind of value is read as its help says."""

from __future__ import annotations

from typing import Any

import click
import pytest

from converters.commands.values import ConfigValue, DimValue, DTypeName, LayoutName, Size
from converters.tensor_info import DType


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Size(), "5GB", 5_000_000_000),
        (Size(), "17", 17),
        (Size(), 17, 17),
        (DTypeName(), "bfloat16", DType.BF16),
        (DTypeName(), "F32", DType.F32),
        (DTypeName(), DType.F32, DType.F32),
        (DimValue(), "heads=32", ("heads", 32)),
        (DimValue(), " heads = 0 ", ("heads", 0)),
        (DimValue(), ("heads", 1), ("heads", 1)),
        (ConfigValue(), "block=classic", ("block", "classic")),
        (ConfigValue(), "n=1", ("n", 1)),
        (ConfigValue(), "n=1e-5", ("n", 1e-5)),
        (ConfigValue(), 'a.b=["x", null]', ("a.b", ["x", None])),
        (ConfigValue(), "t=true", ("t", True)),
        (ConfigValue(), "t=True", ("t", "True")),
        (ConfigValue(), "t=", ("t", "")),
        (ConfigValue(), "t=NaN", ("t", "NaN")),
        (ConfigValue(), "t=a=b", ("t", "a=b")),
        (ConfigValue(), 't="1"', ("t", "1")),
    ],
)
def test_values(kind: click.ParamType[Any], text: Any, value: object) -> None:
    assert kind.convert(text, None, None) == value


def test_layouts_are_completed() -> None:
    context = click.Context(click.Command("convert"))
    names = [item.value for item in LayoutName().shell_complete(context, click.Option(["--to"]), "hf/p")]
    assert names == ["hf/phi"]
