"""The target's config.json against what the spec makes of the source's, and against the target's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from converters.tensor_info import TensorInfo
from converters.verify.names import layer_of
from converters.verify.report import Finding, Severity

_IMMATERIAL: Final = frozenset({"_commit_hash", "_name_or_path", "transformers_version"})
"""Keys that say where a config came from, and nothing of the model."""

_SPELLINGS: Final = {"torch_dtype": "dtype"}
"""Old names of keys, as transformers reads them."""

_TIE: Final = "tie_word_embeddings"
_VOCABULARY: Final = "vocab_size"
PADDING_ROWS: Final = 1024
"""Rows beyond the vocabulary that are taken for padding: transformers and Megatron round up to 64 or 128 a device."""

Config = Mapping[str, Any]


def check_target_config(expected: Config | None, found: Config | None) -> tuple[Finding, ...]:
    """Compare two configs key by key, nested ones by dotted path."""
    if expected is None:
        if found is None:
            return ()
        what = "the target has a config.json, but the source has none to make one of"
        return (Finding("config-unchecked", what, severity=Severity.WARNING),)
    if found is None:
        return (Finding("missing-config", "the target has no config.json, and the spec gives one"),)
    wanted, got = dict(_flatten(expected)), dict(_flatten(found))
    findings = [_difference(path, value, got) for path, value in wanted.items()]
    extra = [
        Finding("config-extra", "the config has a key that the spec doesn't give", f"config.json: {path}", None,
                repr(value), Severity.NOTE)
        for path, value in got.items()
        if path not in wanted and path not in _IMMATERIAL
    ]  # fmt: skip
    return (*(finding for finding in findings if finding is not None), *extra)


def are_identical(first: object, second: object) -> bool:
    """Whether two values of a config, or two whole ones, are the same, as JSON has it: its `1` is not its `true`."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(are_identical(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(are_identical, first, second))
    return type(first) is type(second) and first == second


def check_vocabulary(
    expected: Config | None, planned: Iterable[TensorInfo], found: Config | None, tensors: Iterable[TensorInfo]
) -> tuple[Finding, ...]:
    """Say if no tensor outside the layers has as many rows as the config has tokens.

    It is an error only where what the spec gives would fit; else the source has the same fault.
    """
    tokens = _find(found, _VOCABULARY)
    if tokens is None:
        return ()
    rows = _sizes(tensors)
    padded = _padded(tokens, rows)
    where = f"config.json: {_VOCABULARY}"
    if tokens in rows:
        return ()
    if padded is not None:
        what = f"{padded} rows for {tokens} tokens: the last {padded - tokens} are padding"
        return (Finding("vocabulary-padded", what, where, severity=Severity.NOTE),)
    planned_rows, planned_tokens = _sizes(planned), _find(expected, _VOCABULARY)
    fits = planned_tokens is not None and _padded(planned_tokens, planned_rows) is not None
    what = f"the config has {tokens} tokens, but no tensor outside the layers has so many rows"
    largest = max(rows, default=0)
    got = f"{largest} rows at most" if largest < tokens else f"none between {tokens} and {tokens + PADDING_ROWS}"
    severity = Severity.ERROR if fits else Severity.WARNING
    return (Finding("vocabulary", what, where, f"{tokens} rows", got, severity),)


def _flatten(config: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        path = f"{prefix}{_SPELLINGS.get(key, key)}"
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{path}.")
        else:
            yield path, value


def _difference(path: str, value: Any, got: Config) -> Finding | None:  # noqa: ANN401 - a config holds any JSON value
    if path in _IMMATERIAL or (path in got and _same(value, got[path])):
        return None
    where, found = f"config.json: {path}", repr(got[path]) if path in got else None
    if path.rpartition(".")[2] == _TIE:
        return Finding("tied-config", _tie_text(value, got.get(path)), where, repr(value), found)
    if path not in got:
        return Finding("config-missing", "the config lacks a key that the spec gives", where, repr(value))
    return Finding("config-differs", "the config has another value than the spec gives", where, repr(value), found)


def _tie_text(expected: Any, got: Any) -> str:  # noqa: ANN401 - as above
    if got and not expected:
        return "the config ties the output to the embedding: readers will ignore the output matrix that is stored"
    if expected and got is False:
        return (
            "the config unties the output from the embedding: readers will miss the output matrix, or use a stale one"
        )
    return "the config doesn't say the same of tied embeddings"


def _same(first: Any, second: Any) -> bool:  # noqa: ANN401 - as above
    """Equal, and both or neither of them true or false: JSON's `1` is not its `true`."""
    return bool(first == second) and isinstance(first, bool) == isinstance(second, bool)


def _find(config: Config | None, key: str) -> int | None:
    """A whole number by its key, at the top of a config or one level below."""
    if config is None:
        return None
    for holder in (config, *(value for value in config.values() if isinstance(value, Mapping))):
        value = holder.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _sizes(tensors: Iterable[TensorInfo]) -> set[int]:
    return {size for info in tensors if layer_of(info.name) is None for size in info.shape}


def _padded(tokens: int, rows: Iterable[int]) -> int | None:
    """The fewest rows that take so many tokens, if they aren't too many."""
    return min((size for size in rows if tokens <= size <= tokens + PADDING_ROWS), default=None)
