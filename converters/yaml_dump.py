"""Plain values to YAML text that reads back as the same values."""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar

import yaml

from converters.yaml_scalars import MAX_WHOLE_NUMBER, AmbiguousScalarError, read_plain

_NO_FOLDING = 1_000_000
_LONGEST_FLOW_LIST = 100
_ONE_LINE_OF_PRINTABLE = "[\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]*"


def dump_yaml(value: object) -> str:
    """YAML text for dicts with text as keys, lists or tuples, and str, int, float, bool and None.

    Mappings are written in their own order, one entry a line; a short list of single values stays on one line.
    Text is quoted wherever it would read back as something else.

    Raises:
        ValueError: something in `value` has no spelling: another type, a key that isn't text, a number that isn't
            finite or doesn't fit in 64 bits.
    """
    try:
        text = str(
            yaml.dump(value, Dumper=_SpecDumper, sort_keys=False, width=_NO_FOLDING, allow_unicode=True, indent=2)
        )
    except yaml.YAMLError as error:
        raise ValueError(f"can't be written as YAML: {error}") from error
    except RecursionError as error:
        raise ValueError("can't be written as YAML: nested too deeply, or inside itself") from error
    # PyYAML ends a document that is a single word with a line of dots; a last value may end in dots of its own.
    return text[: -len("...\n")] if text.endswith("\n...\n") else text


class _SpecDumper(yaml.SafeDumper):
    """SafeDumper, made to agree with `read_plain`, and without its spellings for other types, which need tags."""

    yaml_representers: ClassVar[dict[Any, Any]] = {None: yaml.SafeDumper.represent_undefined}
    yaml_multi_representers: ClassVar[dict[Any, Any]] = {}

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        """No anchors: a value that occurs twice is written twice."""
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        """Indents the items of a list below its key, as people do."""
        super().increase_indent(flow, indentless=False)


def _text(dumper: _SpecDumper, text: str) -> yaml.ScalarNode:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("can't be written as YAML: half of a surrogate pair is not a character")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, None if _reads_back(text) else '"')


def _reads_back(text: str) -> bool:
    try:
        return read_plain(text) == text and re.fullmatch(_ONE_LINE_OF_PRINTABLE, text) is not None
    except AmbiguousScalarError:
        return False


def _whole_number(dumper: _SpecDumper, number: int) -> yaml.ScalarNode:
    if abs(number) > MAX_WHOLE_NUMBER:
        raise ValueError("can't be written as YAML: a number that does not fit in 64 bits")
    return dumper.represent_scalar("tag:yaml.org,2002:int", str(number))


def _fraction(dumper: _SpecDumper, number: float) -> yaml.ScalarNode:
    if not math.isfinite(number):
        raise ValueError("can't be written as YAML: a number that is not finite")
    mantissa, _, exponent = repr(number).partition("e")
    spelling = mantissa if "." in mantissa else mantissa + ".0"
    return dumper.represent_scalar("tag:yaml.org,2002:float", f"{spelling}e{exponent}" if exponent else spelling)


def _list(dumper: _SpecDumper, items: list[object] | tuple[object, ...]) -> yaml.SequenceNode:
    is_short = (
        all(not isinstance(item, dict | list | tuple) for item in items)
        and sum(len(str(item)) + 2 for item in items) <= _LONGEST_FLOW_LIST
    )
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=is_short)


def _mapping(dumper: _SpecDumper, entries: dict[object, object]) -> yaml.MappingNode:
    for key in entries:
        if not isinstance(key, str):
            raise ValueError(f"can't be written as YAML: the key {key!r} is not text")  # noqa: TRY004
    return dumper.represent_mapping("tag:yaml.org,2002:map", entries, flow_style=False)


_SpecDumper.add_multi_representer(str, _text)
_SpecDumper.add_multi_representer(int, _whole_number)
_SpecDumper.add_multi_representer(bool, yaml.SafeDumper.represent_bool)
_SpecDumper.add_multi_representer(float, _fraction)
_SpecDumper.add_multi_representer(type(None), yaml.SafeDumper.represent_none)
_SpecDumper.add_multi_representer(list, _list)
_SpecDumper.add_multi_representer(tuple, _list)
_SpecDumper.add_multi_representer(dict, _mapping)
