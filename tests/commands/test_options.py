"""Values on the command line: what is read from them, and what is a usage error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from converters.commands.options import ConfigValue, DimValue, DTypeName, Size, read_config_file
from converters.tensor_info import DType
from tests.commands.support import SPEC, weightmap


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


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--max-shard-size", "5GiB"), "Binary units"),
        (("--max-shard-size", "0"), "above zero"),
        (("--max-memory", "lots"), "is not a size"),
        (("--dtype", "int8"), "can't be cast to I8"),
        (("--dtype", "real"), "no dtype"),
        (("--dim", "heads"), "NAME=N"),
        (("--dim", "heads=-1"), "NAME=N"),
        (("--dim", "heads=1.5"), "NAME=N"),
        (("--dim", "heads=99999999999999999999"), "NAME=N"),
        (("--set", "block"), "KEY=VALUE"),
        (("--set", "a..b=1"), "KEY=VALUE"),
        (("--set", "=1"), "KEY=VALUE"),
        (("--threads", "0"), "1<=x<=64"),
        (("--nonsense",), "--nonsense"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(words: tuple[str, ...], says: str) -> None:
    result = weightmap("plan", "--spec", SPEC, "nowhere", *words)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.startswith("Usage: weightmap plan ")


def test_a_config_may_have_any_name_and_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "given.txt").write_text('{"a": 1}')
    (tmp_path / "link").symlink_to(tmp_path / "given.txt")
    (tmp_path / "config.json").write_text('{"b": 2}')
    assert read_config_file(tmp_path / "given.txt") == {"a": 1}
    assert read_config_file(tmp_path / "link") == {"a": 1}
    assert read_config_file(tmp_path) == {"b": 2}


@pytest.mark.parametrize("content", [None, "[]", "{", '{"a": 1, "a": 2}'])
def test_a_config_that_is_none_is_a_config_error(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "given.json"
    if content is not None:
        file.write_text(content)
    result = weightmap("plan", "--spec", SPEC, "nowhere", "--config", file)
    assert result.exit_code == 6
    assert "given.json" in result.stderr


def test_a_spec_must_be_named() -> None:
    result = weightmap("plan", "nowhere")
    assert result.exit_code == 2
    assert "--spec" in result.stderr
