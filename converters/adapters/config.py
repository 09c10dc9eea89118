"""adapter_config.json in the target's names: which modules have an update, of what rank, and how it is scaled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec import Struct

from converters.adapters import ADAPTER_CONFIG
from converters.adapters.keys import PREFIX, Factor, split_key
from converters.adapters.rules import MERGE_FIRST
from converters.errors import ConfigError, CoverageError, Problem
from converters.plan import Plan
from converters.text import printable

# Of PEFT's LoraConfig. What isn't listed is carried, and said where it isn't empty.
_CARRIED = frozenset({
    "alora_invocation_tokens", "base_model_name_or_path", "bias", "inference_mode", "init_lora_weights", "lora_alpha",
    "lora_bias", "lora_dropout", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "revision",
    "task_type", "use_dora", "use_rslora",
})  # fmt: skip
_DERIVED = frozenset({
    "alpha_pattern", "auto_mapping", "exclude_modules", "fan_in_fan_out", "layers_pattern", "layers_to_transform",
    "modules_to_save", "rank_pattern", "target_modules",
})  # fmt: skip
_REFUSED: Final = {
    "arrow_config": "it routes between several adapters",
    "ensure_weight_tying": "it ties the updates of modules that share a weight",
    "kasa_config": "the update has a third factor",
    "layer_replication": "it doubles layers of the base model",
    "megatron_config": "the update is of parallel layers",
    "monteclora_config": "the update has more than two factors",
    "target_parameters": "the update is of parameters that no module of their own has",
    "trainable_token_indices": "it holds single rows of an embedding",
    "use_bdlora": "its factors are block-diagonal",
    "use_qalora": "its in-features are pooled",
}
# These leave the base model's weights alone; others (PiSSA, OLoRA, LoftQ ...) change them when an adapter is loaded.
_INITIAL = frozenset({"true", "gaussian", "eva", "orthogonal"})


class AdapterConfig(Struct, frozen=True):
    """The part of an adapter_config.json that converting needs; `values` has all of it."""

    values: Mapping[str, Any]
    where: str

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether the weights of the linear layers are [in-features, out-features]."""
        return bool(self.values.get("fan_in_fan_out"))

    def alpha(self, module: str) -> Any:  # noqa: ANN401 - a number, as JSON has it
        """What a module's update is scaled with, before the rank divides it."""
        patterns = self.values.get("alpha_pattern") or {}
        return next((value for name, value in patterns.items() if _names(name, module)), self.values["lora_alpha"])


def check_adapter_config(values: Mapping[str, Any], where: str) -> AdapterConfig:
    """Check that an adapter is one whose updates are `B @ A`.

    Raises:
        ConfigError: it isn't; with every key that says so.
    """
    problems = []
    kind = values.get("peft_type")
    if kind != "LORA":
        what = f"peft_type is {printable(repr(kind))}; only LORA adapters can be converted"
        raise ConfigError(what, where, MERGE_FIRST)
    for key, reason in _REFUSED.items():
        if values.get(key):
            problems.append(Problem(f"{key} is set, and can't be converted: {reason}", where, MERGE_FIRST))
    initial = values.get("init_lora_weights", True)
    if initial and str(initial).lower() not in _INITIAL:
        what = f"init_lora_weights is {printable(repr(initial))}, which changes the base model's weights on loading"
        hint = "save it as plain LoRA first: save_pretrained(..., path_initial_model_for_weight_conversion=...) of peft"
        problems.append(Problem(what, where, hint))
    for key in ("r", "lora_alpha"):
        value = values.get(key)
        if isinstance(value, bool) or not isinstance(value, int if key == "r" else int | float) or value <= 0:
            problems.append(Problem(f"{key} is {printable(repr(value))}, and no number above zero", where))
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = values.get(key)
        if patterns and not isinstance(patterns, Mapping):
            problems.append(Problem(f"{key} is {printable(repr(patterns))}, and no mapping", where))
        elif patterns and key == "alpha_pattern":  # ranks are read from the tensors
            problems.extend(
                Problem(
                    f"alpha_pattern: {printable(repr(name))} is a regular expression, whose modules can't be told",
                    where,
                    "write the modules' names in its place, in full or their last segments",
                )
                for name in patterns
                if not _plain_name(name)
            )
    if problems:
        raise ConfigError(problems)
    return AdapterConfig(values, where)


def convert_adapter_config(
    config: AdapterConfig, plan: Plan, *, transposed: frozenset[bool], strip: Callable[[str], str]
) -> tuple[dict[str, Any], list[str]]:
    """The target's adapter_config.json, and what to say of it.

    Args:
        config: the source's.
        plan: how the adapter's tensors are converted.
        transposed: for each kind of linear layer with an update, whether the target's weights are [in, out].
        strip: takes the prefixes off a source's key.

    Raises:
        CoverageError: modules that become one are scaled differently.
    """
    values = dict(config.values)
    modules = _updated_modules(plan)
    ranks = {module: rank for module, (rank, _) in modules.items()}
    alphas = _alphas(config, modules)
    saved = _saved_modules(config, plan, strip)
    values["target_modules"] = sorted(modules)
    values["rank_pattern"] = {name: rank for name, rank in sorted(ranks.items()) if rank != values["r"]}
    values["alpha_pattern"] = {name: alpha for name, alpha in sorted(alphas.items()) if alpha != values["lora_alpha"]}
    values["modules_to_save"] = saved or None
    # PEFT itself corrects the flag for the classes that it knows, so one for all is enough.
    values["fan_in_fan_out"] = True in transposed if transposed else config.fan_in_fan_out
    for key in ("exclude_modules", "layers_to_transform", "layers_pattern", "auto_mapping"):
        if key in values:
            values[key] = None
    base = values.get("base_model_name_or_path")
    still = (
        f"{ADAPTER_CONFIG}: base_model_name_or_path is still {printable(repr(base))}, the source's base model; "
        "give the converted one with --set base_model_name_or_path=NAME"
    )
    notes = [still]
    unknown = sorted(key for key in values.keys() - _CARRIED - _DERIVED - _REFUSED.keys() if values[key])
    if unknown:
        notes.append(f"{ADAPTER_CONFIG}: carried as it is: {', '.join(map(printable, unknown))}")
    return values, notes


def _updated_modules(plan: Plan) -> dict[str, tuple[int, set[str]]]:
    """For each module of the target with an update: its rank, and the modules that the update comes from."""
    found: dict[str, tuple[int, set[str]]] = {}
    for target in plan.targets:
        update = split_key(target.info.name.removeprefix(PREFIX))
        if update is None:
            continue
        module, suffix = update
        rank, sources = found.get(module, (0, set()))
        if suffix.factor is Factor.A:
            rank = target.info.shape[0]
        for move in target.moves:
            name = plan.sources[move.source].info.name.removeprefix(PREFIX)
            if (source := split_key(name)) is not None:
                sources.add(source[0])
        found[module] = (rank, sources)
    return found


def _alphas(config: AdapterConfig, modules: Mapping[str, tuple[int, set[str]]]) -> dict[str, Any]:
    found, problems = {}, []
    for module, (_, sources) in modules.items():
        alphas = {source: config.alpha(source) for source in sorted(sources)}
        if len(set(alphas.values())) > 1:
            shown = ", ".join(f"{printable(source)} with {alpha}" for source, alpha in alphas.items())
            what = f"{printable(module)} is made of modules that lora_alpha scales differently: {shown}"
            problems.append(Problem(what, config.where, MERGE_FIRST))
        found[module] = next(iter(alphas.values()), config.values["lora_alpha"])
    if problems:
        raise CoverageError(problems)
    return found


def _saved_modules(config: AdapterConfig, plan: Plan, strip: Callable[[str], str]) -> list[str]:
    """The target's modules that the adapter holds whole."""
    wanted = [str(name) for name in config.values.get("modules_to_save") or ()]
    found = set()
    for target in plan.targets:
        key = target.info.name.removeprefix(PREFIX)
        if split_key(key) is not None:
            continue
        sources = [strip(plan.sources[move.source].info.name) for move in target.moves]
        if any(_is_in(name, source) for source in sources for name in wanted):
            found.add(key.rpartition(".")[0])
    return sorted(found)


def _is_in(module: str, key: str) -> bool:
    """Whether a parameter is one of a module that `modules_to_save` names, by its path or by the end of it."""
    return f".{module}." in f".{key}"


def _plain_name(pattern: str) -> str | None:
    """The name that a key of `alpha_pattern` stands for; None where it is more than a name."""
    name = pattern.removeprefix("^").replace("\\.", ".")
    return name if all(part.replace("-", "_").isidentifier() or part.isdigit() for part in name.split(".")) else None


def _names(pattern: str, module: str) -> bool:
    """Whether a key of `alpha_pattern` stands for this module, as PEFT reads it."""
    name = _plain_name(pattern) or ""
    return module == name or (not pattern.startswith("^") and module.endswith(f".{name}"))


def explain_unequal(error: CoverageError) -> CoverageError:
    """The error of tensors that should be equal, as what it means for an adapter."""
    return CoverageError(
        [
            Problem(f"{problem.what}: modules that become one must have A in common", problem.where, MERGE_FIRST)
            if ".lora_" in problem.what
            else problem
            for problem in error.problems
        ]
    )
