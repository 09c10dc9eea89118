"""One config from a file and into one; its name tells whether it is JSON or YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.errors import ConfigError, SpecError
from converters.storage.files import read_small_file
from converters.storage.strict_json import StrictJsonError, parse_object
from converters.text import printable

MAX_CONFIG_NBYTES = 16_000_000
_YAML_SUFFIXES = (".yaml", ".yml")
CONFIG_SUFFIXES = (".json", *_YAML_SUFFIXES)


def load_config(path: Path, name: str = "") -> dict[str, Any]:
    """The mapping that a file holds.

    Args:
        path: the file.
        name: what it is called, where `path` is what a link points to.

    Raises:
        ConfigError: it isn't one JSON or YAML mapping, or can't be read.
    """
    where = printable(str(path))
    data = read_small_file(path, MAX_CONFIG_NBYTES, where)
    name = name or path.name
    if name.endswith(_YAML_SUFFIXES):
        return _parse_yaml(data, where)
    try:
        # Published configs hold Infinity where a bound is open, as Python's json writes it.
        return parse_object(data, infinite=True)
    except StrictJsonError as error:
        raise ConfigError(str(error), where, f"{printable(name)} must be one JSON object") from None


def _parse_yaml(data: bytes, where: str) -> dict[str, Any]:
    from converters.yaml_nodes import load_yaml, to_plain

    try:
        found = to_plain(load_yaml(data, where))
    except SpecError as error:
        raise ConfigError(error.problems) from None
    if not isinstance(found, dict):
        raise ConfigError("it isn't a mapping of keys to values", where, "write each as 'key: value'")
    return found


def config_text(name: str, config: Mapping[str, Any]) -> str:
    """What a file of this name should hold, its keys sorted: JSON with two spaces, as transformers writes it, or YAML.

    Raises:
        ConfigError: a value has no spelling in YAML.
    """
    if not name.endswith(_YAML_SUFFIXES):
        return json.dumps(config, indent=2, sort_keys=True) + "\n"
    from converters.yaml_dump import dump_yaml

    try:
        return dump_yaml(_sorted(config))
    except ValueError as error:
        raise ConfigError(f"the config {error}", printable(name), "give another value with --set") from None


def _sorted(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list | tuple) else value
