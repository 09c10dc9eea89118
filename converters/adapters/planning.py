"""The plan of an adapter, by a spec for the weights of its base model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from converters.adapters import ADAPTER_CONFIG, ADAPTER_NAME
from converters.adapters.config import check_adapter_config, convert_adapter_config
from converters.adapters.keys import PREFIX
from converters.adapters.labels import without_labels
from converters.adapters.rules import adapter_spec
from converters.bind import bind
from converters.config_map import parse_assignments
from converters.matching import strip_prefixes
from converters.plan import Plan, Source
from converters.planner import make_plan
from converters.sharding import DEFAULT_SUFFIX, Shard
from converters.spec import Spec
from converters.tensor_info import DType
from converters.text import printable

_WRAPPERS = frozenset({"module.", "_orig_mod."})
"""Prefixes of torch's own wrappers, which PEFT's keys don't have."""


def plan_adapter(  # noqa: PLR0913 - each is an option of its own
    spec: Spec,
    config: Mapping[str, Any] | None,
    adapter_config: Mapping[str, Any],
    sources: Sequence[Source],
    *,
    where: str = "config.json",
    adapter_where: str = ADAPTER_CONFIG,
    dims: Mapping[str, int] | None = None,
    set_config: Mapping[str, Any] | None = None,
    dtype: DType | None = None,
) -> tuple[Spec, Plan]:
    """Plan the conversion of a PEFT adapter by a spec for the weights of its base model.

    Args:
        spec: for the weights.
        config: the base model's config.json.
        adapter_config: the adapter's adapter_config.json.
        sources: every tensor of the adapter.
        where: what messages call the config.
        adapter_where: what they call the adapter's.
        dims: values that take the place of the spec's dims.
        set_config: values for the target's adapter_config.json, by dotted path.
        dtype: cast every floating tensor of 16 bits and more to it.

    Returns:
        The adapter's spec, and the plan; its config is the target's adapter_config.json.

    Raises:
        ConfigError: a config isn't what is expected, or the adapter is no plain LoRA.
        CoverageError: a rule doesn't commute with the product of the factors, or keys and shapes don't fit.
    """
    checked = check_adapter_config(adapter_config, adapter_where)
    bound = bind(without_labels(spec), config, where=where, dims=dims)
    infos = [source.info for source in sources]
    made = adapter_spec(bound, infos, fan_in_fan_out=checked.fan_in_fan_out)
    plan = make_plan(bind(made.spec, config, where=where, dims=dims), sources, dtype=dtype)
    prefixes = made.spec.source.strip_prefix
    values, notes = convert_adapter_config(
        checked, plan, transposed=made.transposed, strip=lambda name: strip_prefixes(name, prefixes)
    )
    if "base_model_name_or_path" in (set_config or {}):
        notes = notes[1:]
    notes.extend(_prefix_notes(spec, (target.info.name for target in plan.targets)))
    values = parse_assignments(set_config or {}, values)
    shards = (
        (Shard(ADAPTER_NAME + DEFAULT_SUFFIX, tuple(target.info for target in plan.targets)),) if plan.targets else ()
    )
    about = f"the source is a LoRA adapter ({ADAPTER_CONFIG}), so {spec.name} is applied to its factors"
    return made.spec, replace(plan, config=values, notes=(about, *plan.notes, *notes), shards=shards)


def _prefix_notes(spec: Spec, names: Iterable[str]) -> list[str]:
    """A model with a head may have its keys under a prefix that the layout leaves out, and PEFT wants it."""
    prefixes = [prefix for prefix in spec.target.strip_prefix if prefix not in _WRAPPERS]
    if not prefixes:
        return []
    shown = " or ".join(map(printable, prefixes))
    tops = "|".join(sorted({name.removeprefix(PREFIX).partition(".")[0] for name in names}))
    mapping = f"{{r'^({printable(tops)})\\.': r'{printable(prefixes[0])}\\1.'}}"
    note = (
        f"the keys are those of {spec.target.layout} without the prefix that some of its models add ({shown}): load it "
        f"into these with PeftModel.from_pretrained(model, DIR, key_mapping={mapping}), less the names of their head"
    )
    return [note]
