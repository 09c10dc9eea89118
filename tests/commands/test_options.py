"""Values on the command line: what is read from them, and what is a usage error."""

from __future__ import annotations

from pathlib import Path

import pytest

from converters.commands.options import read_config_file
from tests.commands.support import SPEC, weightmap


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
