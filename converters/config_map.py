"""The target's config.json from the source's: renamed, checked, set, derived; what nothing names is carried as is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from converters.config_mapping import ConfigMapping
from converters.errors import ConfigError, Problem
from converters.expressions import Expression, Unresolved, Value
from converters.spec import Spec
from converters.tensor_info import DType, torch_name

_MISSING = object()


def check_config(spec: Spec, config: Mapping[str, Any], where: str) -> None:
    """Check that a config.json says what the spec's source side must say.

    Raises:
        ConfigError: with every key that differs.
    """
    problems = []
    for path, expected in spec.source.config.items():
        found = _get(config, path)
        if found is _MISSING or found != expected:
            said = "doesn't say" if found is _MISSING else f"says {found!r}"
            problems.append(
                Problem(
                    f"{path}: {spec.name} wants {expected!r} here ({spec.source.layout}), but the config {said}",
                    where,
                    "is this the checkpoint, and the direction, that you meant?",
                )
            )
    if problems:
        raise ConfigError(problems)


def needs_config(spec: Spec) -> str | None:
    """What a spec can't decide without the source's config, or None."""
    if spec.source.config:
        return next(iter(spec.source.config))
    conditions: list[Expression] = [rule.when for rule in spec.rules if rule.when is not None]
    return next((str(condition) for condition in conditions if condition.config_keys()), None)


def config_value(config: Mapping[str, Any], path: str) -> Any:  # noqa: ANN401 - a config holds any JSON value
    """The value at a dotted path; None where there is none."""
    value = _get(config, path)
    return None if value is _MISSING else value


def map_config(
    spec: Spec, config: Mapping[str, Any], evaluate: Callable[[Any, Mapping[str, Any] | None], Value], where: str
) -> dict[str, Any]:
    """The target's config.

    Args:
        spec: whose `config:` section says how.
        config: the source's.
        evaluate: gives the value of an expression on the way there; with the target's config, on the way back.
        where: what messages call the config.

    Raises:
        ConfigError: a key is to be renamed onto one that is there, or a derived value isn't known, or the way back
            would derive another value than the config has. A null is no value: it asks for the default, and the way
            back may spell that out.
    """
    mapping = spec.config or ConfigMapping()
    problems: list[Problem] = []
    target: dict[str, Any] = copy.deepcopy(dict(config))
    for path in (*mapping.source.delete, *mapping.source.set, *mapping.source.derive, *spec.source.config):
        _remove(target, path)
    # All are taken out before one is put back, so that names can be exchanged.
    renamed = [(old, new, _remove(target, old)) for old, new in mapping.rename]
    _carry(target, mapping, problems, where)
    _put_renamed(target, renamed, problems, where)
    for path, value in (*mapping.target.set.items(), *spec.target.config.items()):
        _put(target, path, copy.deepcopy(value))
    for section, values in (("derive", mapping.target.derive), ("default", mapping.target.default)):
        for path, expression in values.items():
            if section == "default" and _get(target, path) not in (_MISSING, None):
                continue
            value = evaluate(expression, None)
            if isinstance(value, Unresolved) and not expression.names():
                problems.append(Problem(f"config.target.{section}.{path}: {value.reason}", where))
            elif value is not None:
                _put(target, path, value)  # unresolved, where the tensors may still tell
    problems.extend(_not_derived(mapping, config, lambda expression: evaluate(expression, target), where))
    if problems:
        raise ConfigError(problems)
    return target


def check_derived(spec: Spec, config: Mapping[str, Any], evaluate: Callable[[Expression], Value]) -> None:
    """Check the values that only the tensors could tell, once they have; `evaluate` gives those of the way back.

    Raises:
        ConfigError: the config has another value than the way back would derive.
    """
    problems = list(_not_derived(spec.config or ConfigMapping(), config, evaluate, "the config"))
    if problems:
        raise ConfigError(problems)


def _not_derived(
    mapping: ConfigMapping, config: Mapping[str, Any], evaluate: Callable[[Expression], Value], where: str
) -> Iterator[Problem]:
    for path, expression in mapping.source.derive.items():
        present, derived = _get(config, path), evaluate(expression)
        known = present is not _MISSING and present is not None and not isinstance(derived, Unresolved)
        if known and derived != present:
            yield Problem(
                f"{path} is {present!r}, but the way back would derive {derived!r}",
                where,
                "the spec can't express this config; its derivation or the config is wrong",
            )


def complete_config(spec: Spec, target: Mapping[str, Any], evaluate: Callable[[Expression], Value]) -> dict[str, Any]:
    """The target's config with the values that `map_config` left unresolved.

    Raises:
        ConfigError: one of them still is.
    """
    mapping = (spec.config or ConfigMapping()).target
    completed = copy.deepcopy(dict(target))
    problems = []
    for section, values in (("derive", mapping.derive), ("default", mapping.default)):
        for path, expression in values.items():
            if not isinstance(_get(target, path), Unresolved):
                continue
            value = evaluate(expression)
            if isinstance(value, Unresolved):
                problems.append(Problem(f"config.target.{section}.{path}: {value.reason}", spec.path or None))
            elif value is None:
                _remove(completed, path)
            else:
                _put(completed, path, value)
    if problems:
        raise ConfigError(problems)
    return completed


def _carry(target: dict[str, Any], mapping: ConfigMapping, problems: list[Problem], where: str) -> None:
    """Move what nothing names from where the source keeps it to where the target does."""
    holder = mapping.source.carry_under
    held = _remove(target, holder) if holder else _MISSING
    if isinstance(held, Mapping):
        problems.extend(
            Problem(f"{holder}.{key} becomes {key}, but the config has a {key} already", where)
            for key in sorted(held.keys() & target.keys())
        )
        target.update(held)
    elif held is not _MISSING and held is not None:
        problems.append(Problem(f"{holder} is {held!r}, and should hold the keys of the other side's config", where))
    if mapping.target.carry_under and target:
        carried = dict(target)
        target.clear()
        _put(target, mapping.target.carry_under, carried)


def _put_renamed(
    target: dict[str, Any], renamed: Sequence[tuple[str, str, Any]], problems: list[Problem], where: str
) -> None:
    for old, new, value in renamed:
        if value is _MISSING:
            continue
        if _get(target, new) is not _MISSING:
            problems.append(Problem(f"config.rename: {old} becomes {new}, but the config has a {new} already", where))
        for parent, found in ((path, _get(target, path)) for path in _parents(new)):
            if found is not _MISSING and not isinstance(found, Mapping):
                what = f"config.rename: {old} becomes {new}, but {parent} is {found!r} and holds no keys"
                problems.append(Problem(what, where))
        _put(target, new, value)


def with_dtype(config: Mapping[str, Any], dtype: DType) -> dict[str, Any]:
    """The config after a blanket cast: `dtype`, or `torch_dtype` in older files, says the new one, at any depth."""
    changed = {key: with_dtype(value, dtype) if isinstance(value, Mapping) else value for key, value in config.items()}
    for key in ("dtype", "torch_dtype"):
        if key in changed:
            changed[key] = torch_name(dtype)
    return changed


def parse_assignments(assignments: Mapping[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The config with single values put in its place, by dotted path."""
    changed = copy.deepcopy(config)
    for path, value in assignments.items():
        _put(changed, path, value)
    return changed


def _get(config: Mapping[str, Any], path: str) -> Any:  # noqa: ANN401 - a config holds any JSON value
    value: Any = config
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return _MISSING
        value = value[key]
    return value


def _parents(path: str) -> list[str]:
    """`a` and `a.b` for `a.b.c`."""
    keys = path.split(".")
    return [".".join(keys[:count]) for count in range(1, len(keys))]


def _remove(config: dict[str, Any], path: str) -> Any:  # noqa: ANN401 - as above
    """Take a value out, and with it the mappings that this leaves empty."""
    first, _, rest = path.partition(".")
    if first not in config:
        return _MISSING
    if not rest:
        return config.pop(first)
    inner = config[first]
    value = _remove(inner, rest) if isinstance(inner, dict) else _MISSING
    if value is not _MISSING and not inner:
        del config[first]
    return value


def _put(config: dict[str, Any], path: str, value: Any) -> None:  # noqa: ANN401 - as above
    *parents, last = path.split(".")
    holder = config
    for key in parents:
        inner = holder.setdefault(key, {})
        if not isinstance(inner, dict):
            inner = holder[key] = {}
        holder = inner
    holder[last] = value
