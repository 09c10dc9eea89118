"""Runs the levels of a verification, from the cheapest to the strongest that was asked for."""

from __future__ import annotations

import importlib
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from converters.convert import Options, prepare
from converters.digests import DEFAULT_ALGORITHM, make_hasher
from converters.engine import DEFAULT_MAX_MEMORY, Progress, default_threads
from converters.errors import CheckpointError, ConfigError, WeightmapError
from converters.fetch import fetch
from converters.plan import Plan
from converters.schedule import Budget
from converters.sharding import parse_size
from converters.side_files import read_config
from converters.spec import Spec
from converters.storage.parts import open_side
from converters.storage.remote_path import RemotePath
from converters.text import printable
from converters.verify.context import DEFAULT_PROMPT_TOKENS, Level, ModelOptions, ModelSource, VerifyContext
from converters.verify.inputs import describing
from converters.verify.report import LEVELS, Input, LevelResult, Report, Skipped, Verdict
from converters.verify.way_back import way_back

_FUNCTIONS: Final[Mapping[str, tuple[str, str]]] = {
    "accounting": ("converters.verify.accounting", "check_accounting"),
    "roundtrip": ("converters.verify.roundtrip", "check_roundtrip"),
    "modules": ("converters.verify.modules", "check_modules"),
    "logits": ("converters.verify.logits", "check_logits"),
}
_WITH_MODELS: Final = ("modules", "logits")


def verify(  # noqa: PLR0913 - each is an option of its own
    spec: Spec,
    source: Path | str,
    target: Path | str,
    *,
    level: str | None = None,
    levels: Sequence[str] | None = None,
    reverse: bool = False,
    converted_with: Options | None = None,
    device: str | None = None,
    dtype: str | None = None,
    source_model: ModelSource | None = None,
    target_model: ModelSource | None = None,
    prompt_file: Path | str | None = None,
    prompt_tokens: int = DEFAULT_PROMPT_TOKENS,
    save_reference: Path | str | None = None,
    reference: Path | str | None = None,
    tolerances: Mapping[str, float] | None = None,
    max_memory: int | str = DEFAULT_MAX_MEMORY,
    threads: int | None = None,
    hash_files: bool | None = None,
    digest: str = DEFAULT_ALGORITHM,
    command: str = "",
    progress: Progress = lambda _: None,
) -> Report:
    """Verify that a checkpoint is what a spec makes of another one.

    Args:
        spec: the spec that the target was made with, from `load_spec`.
        source: the checkpoint that was converted; as text also OWNER/NAME on the Hub, which is downloaded, or a URL.
        target: what came out; likewise.
        level: run the levels up to this one; by default up to the strongest that can run here.
        levels: run these levels and no others, in place of `level`.
        reverse: the spec was applied the other way round.
        converted_with: the options of the conversion, where it had any: a blanket cast, config values, dims.
        device: for the levels that run models, as all up to `tolerances`: see `ModelOptions`.
        dtype: what models compute in.
        source_model: the source's model, where transformers has none.
        target_model: the target's model, likewise.
        prompt_file: prompts to run, in place of the built-in ones.
        prompt_tokens: the length of the longest built-in prompts.
        save_reference: where to store the source model's outputs.
        reference: outputs that were stored so, in place of running the source model.
        tolerances: bounds in place of the built-in ones, by gate.
        max_memory: bytes that may be used beyond Python's own memory, or text such as "512MB".
        threads: threads that read and compare.
        hash_files: whether the report has digests of the whole files, and not of their headers alone; by default when
            their bytes are read anyway, so in all levels but the first.
        digest: `xxh3`, or `sha256` for digests that nobody can forge.
        command: what the report says of how it was made.
        progress: called with the number of bytes just compared, from several threads.

    Returns:
        The report. Whatever is wrong with the target is in it: that raises nothing.

    Raises:
        ValueError: there is no such level, or no such digest.
        WeightmapError: one of its subclasses: the source can't be read, or the spec doesn't fit it.
    """
    wanted, not_run = _wanted(level, levels)
    make_hasher(digest)  # so that a wrong name is told now, and not after hours
    options = converted_with or Options()
    models = ModelOptions(
        device,
        dtype,
        source_model,
        target_model,
        _path(prompt_file),
        prompt_tokens,
        _path(save_reference),
        _path(reference),
        tolerances or {},
    )
    budget = Budget.fitting(parse_size(max_memory), threads or min(2, default_threads()))
    started, clock = datetime.now(UTC), time.perf_counter()
    direction = spec.inverse() if reverse else spec
    source, target = fetch(source, direction.source), fetch(target, direction.target)
    contents = hash_files if hash_files is not None else any(name != LEVELS[0] for name in wanted)
    with prepare(direction, source, options) as prepared, describing(digest, contents=contents) as describe:
        if prepared.is_adapter:
            raise CheckpointError(
                "adapters can't be verified yet",
                printable(str(source)),
                "convert it back and compare, or merge it into its base model and verify the merged models",
            )
        described = [describe("source", source, prepared.reader.file_of.values())]
        results: list[LevelResult] = []
        try:
            config = read_config(target, direction.target)
            reader = open_side(target, direction.target)
        except (CheckpointError, ConfigError) as error:
            if not target.exists():
                raise
            results.extend(_refused(name, target, error, prepared.plan) for name in wanted)
            inputs = [described[0].result(), Input("target", str(target))]
        else:
            with reader:
                described.append(describe("target", target, reader.file_of.values()))
                plan_back, no_way_back = way_back(direction, prepared.plan, options)
                context = VerifyContext(
                    spec=direction,
                    source_path=source,
                    target_path=target,
                    source_reader=prepared.reader,
                    target_reader=reader,
                    source_config=_source_config(direction, source, options),
                    target_config=config,
                    plan=prepared.plan,
                    plan_back=plan_back,
                    no_way_back=no_way_back,
                    asked_dtype=options.dtype.label if options.dtype else None,
                    budget=budget,
                    dims=options.dims,
                    models=models,
                    progress=progress,
                )
                for name in wanted:
                    reason = _why_not(name, context)
                    if reason is None:
                        results.append(_timed(name, context))
                    elif level is None and levels is None:
                        not_run.append(Skipped(name, reason))
                    else:
                        results.append(LevelResult(name, Verdict.NOT_PROVED, reason))
                inputs = [one.result() for one in described]
    return Report(
        tuple(results),
        tuple(not_run),
        spec.name,
        spec.path,
        spec.digest,
        reverse,
        tuple(inputs),
        _versions(results),
        command,
        started.isoformat(timespec="seconds"),
        time.perf_counter() - clock,
    )


def _wanted(level: str | None, levels: Sequence[str] | None) -> tuple[list[str], list[Skipped]]:
    for name in (*(levels or ()), *([level] if level is not None else ())):
        if name not in LEVELS:
            raise ValueError(f"there is no level {name!r}; there are: {', '.join(LEVELS)}")
    if levels is not None:
        wanted = [name for name in LEVELS if name in levels]
    else:
        wanted = list(LEVELS if level is None else LEVELS[: LEVELS.index(level) + 1])
    return wanted, [Skipped(name, "it was not asked for") for name in LEVELS if name not in wanted]


def _path(given: Path | str | None) -> Path | None:
    return Path(given) if given is not None else None


def _source_config(spec: Spec, source: Path, options: Options) -> Mapping[str, object] | None:
    return options.config if options.config is not None else read_config(source, spec.source)


def _refused(level: str, target: Path, error: WeightmapError, plan: Plan) -> LevelResult:
    """The result of any level where the target can't even be opened."""
    from converters.verify.refused import examine_refused

    reason = "the target can't be opened: its parts are damaged or contradict each other"
    return LevelResult(level, Verdict.FAIL, reason, findings=examine_refused(target, error, plan))


def _why_not(level: str, context: VerifyContext) -> str | None:
    """Why a level can't be run at all; None where it can.

    For the levels that run models, `converters.verify.models.why_not(context)` knows: it says what is missing (a
    library, a class for one of the models) and loads nothing.
    """
    if level not in _WITH_MODELS:
        return None
    if isinstance(context.source_path, RemotePath) or isinstance(context.target_path, RemotePath):
        return "models are run from local files, and one side is in an object store"
    module, _ = _FUNCTIONS[level]
    try:
        importlib.import_module(module)
        models = importlib.import_module("converters.verify.models")
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("converters."):
            return "this version of weightmap doesn't have this level"
        return f"it needs {error.name}, which isn't installed: pip install 'weightmap[verify]'"
    reason: str | None = models.why_not(context)
    return reason


def _timed(level: str, context: VerifyContext) -> LevelResult:
    module, name = _FUNCTIONS[level]
    check: Level = getattr(importlib.import_module(module), name)
    clock = time.perf_counter()
    result = check(context)
    return replace(result, seconds=time.perf_counter() - clock)


def _versions(results: Iterable[LevelResult]) -> dict[str, str]:
    """Of what had a part in the results; a library that wasn't used is not imported to ask it."""
    import converters

    system = platform.uname()
    libc = "".join(platform.libc_ver())
    versions = {
        "weightmap": converters.__version__,
        "python": platform.python_version(),
        # platform.platform() starts a process of its own, to ask for the processor.
        "platform": "-".join((system.system, system.release, system.machine, *(("with", libc) if libc else ()))),
    }
    if (numpy := sys.modules.get("numpy")) is not None:
        versions["numpy"] = numpy.__version__
    for result in results:
        versions.update(result.versions)
    return versions
