"""Reports as strict JSON: structs field by field, enums by value, and the floats that JSON lacks as text."""

from __future__ import annotations

import enum
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import fields

from converters.errors import WeightmapError

REPORT_VERSION: Final = 2
"""Of the JSON; it grows when a field changes its meaning or goes away, not when one is added."""

_NOT_FINITE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def dump(report: Any) -> str:  # noqa: ANN401 - a Report, which imports this module
    """The report as JSON; beside its fields `weightmap_report` says the version, and `verdict` what it came to."""
    document = {
        "weightmap_report": REPORT_VERSION,
        "verdict": report.verdict.value,
        "exit_code": report.exit_code,
        **_encode(report),
    }
    return json.dumps(document, indent=2, allow_nan=False)


def load(text: str) -> Any:  # noqa: ANN401 - as above
    """Read what `dump` wrote; fields that are not known are left out.

    Raises:
        WeightmapError: the text is no report, or one of another version.
    """
    from converters.verify.report import Report

    try:
        document = json.loads(text)
        version = document["weightmap_report"]
        if version != REPORT_VERSION:
            raise WeightmapError(f"this report has version {version}, and this weightmap reads {REPORT_VERSION}")
        return _decode(Report, document)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightmapError(f"this is not a report that weightmap wrote: {error}") from error


def _encode(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Struct):
        return {name: _encode(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_encode(item) for item in value]
    return value


def _decode(kind: Any, value: Any) -> Any:  # noqa: ANN401 - types are values here
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in {types.UnionType, typing.Union}:
        return None if value is None else _decode_union(arguments, value)
    if origin is tuple:
        return tuple(_decode(arguments[0], item) for item in value)
    if origin is Mapping:
        return {key: _decode(arguments[1], item) for key, item in value.items()}
    if isinstance(kind, type) and issubclass(kind, Struct):
        known = [one for one in fields(kind) if one.name in value]
        return kind(**{one.name: _decode(one.type, value[one.name]) for one in known})
    if kind is float:
        return _NOT_FINITE[value] if isinstance(value, str) else float(value)
    return kind(value)


def _decode_union(arguments: tuple[Any, ...], value: Any) -> Any:  # noqa: ANN401 - as above
    kinds = [kind for kind in arguments if kind is not type(None)]
    if isinstance(value, str) and value in _NOT_FINITE and float in kinds:
        return _NOT_FINITE[value]
    return _decode(kinds[0], value) if len(kinds) == 1 else value
