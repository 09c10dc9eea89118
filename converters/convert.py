"""The whole way: open, plan, check, write, publish."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from converters.bind import bind
from converters.config_map import with_dtype
from converters.engine import DEFAULT_MAX_MEMORY, Progress, check_sources, default_threads, execute
from converters.errors import ConfigError
from converters.expressions import Expression
from converters.operations.cast import parse_cast_dtype
from converters.plan import Plan, Source
from converters.planner import DEFAULT_MAX_SHARD_NBYTES, make_plan
from converters.publish import check_free_space, publishing
from converters.schedule import Budget
from converters.sharding import parse_size
from converters.side_files import CONFIG, SideFiles, find_side_files, read_config, write_config
from converters.spec import Spec
from converters.storage.base import CheckpointReader
from converters.storage.checkpoint import open_checkpoint
from converters.storage.safetensors import SafetensorsWriter
from converters.tensor_info import DType
from converters.text import printable


@dataclass(frozen=True, slots=True)
class Options:
    """How to convert; the same for planning, so that a plan says what a conversion will do.

    Attributes:
        max_shard_nbytes: bytes of tensor data in one output file.
        dtype: cast every floating tensor of 16 bits and more to it.
        config: takes the place of the source's config.json.
        dims: values that take the place of the spec's dims.
        set_config: values for the target's config.json, by dotted path.
    """

    max_shard_nbytes: int = DEFAULT_MAX_SHARD_NBYTES
    dtype: DType | None = None
    config: Mapping[str, Any] | None = None
    dims: Mapping[str, int] | None = None
    set_config: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """An opened source, and what will be done with it."""

    plan: Plan
    reader: CheckpointReader
    side_files: SideFiles


@contextmanager
def prepare(spec: Spec, source: Path, options: Options) -> Iterator[Prepared]:
    """Open a checkpoint and plan its conversion, from headers alone.

    Raises:
        CheckpointError, ConfigError, SpecError, CoverageError: source, config, spec and coverage, in this order.
    """
    with open_checkpoint(source) as reader:
        config = options.config if options.config is not None else read_config(source)
        where = printable(str((source if source.is_dir() else source.parent) / CONFIG))
        if config is None and (key := needs_config(spec)):
            raise ConfigError(
                f"there is no config.json beside the weights, and the spec {spec.name} needs it for {key}",
                where,
                "give it with --config FILE",
            )
        bound = bind(spec, config, where=where, dims=options.dims, set_config=options.set_config)
        sources = [Source(info, reader.file_of[name]) for name, info in reader.tensors.items()]
        plan = make_plan(bound, sources, max_shard_nbytes=options.max_shard_nbytes, dtype=options.dtype)
        plan = replace(plan, notes=(*(str(note) for note in reader.notes), *plan.notes))
        if plan.config is not None and options.dtype is not None:
            plan = replace(plan, config=with_dtype(plan.config, options.dtype))
        yield Prepared(plan, reader, find_side_files(source, sorted(set(reader.file_of.values()))))


def needs_config(spec: Spec) -> str | None:
    """What a spec can't decide without the source's config, or None."""
    if spec.source.config:
        return next(iter(spec.source.config))
    conditions: list[Expression] = [rule.when for rule in spec.rules if rule.when is not None]
    return next((str(condition) for condition in conditions if condition.config_keys()), None)


def convert(  # noqa: PLR0913 - each is an option of its own
    spec: Spec,
    source: Path | str,
    output: Path | str,
    *,
    reverse: bool = False,
    overwrite: bool = False,
    max_shard_size: int | str = DEFAULT_MAX_SHARD_NBYTES,
    max_memory: int | str = DEFAULT_MAX_MEMORY,
    threads: int | None = None,
    dtype: str | None = None,
    config: Mapping[str, Any] | None = None,
    dims: Mapping[str, int] | None = None,
    set_config: Mapping[str, Any] | None = None,
    progress: Progress = lambda _: None,
) -> Plan:
    """Convert a checkpoint into a directory, which appears whole or not at all.

    Args:
        spec: what to convert, from `load_spec`.
        source: a safetensors file, or a directory as on the Hub.
        output: the directory to make.
        reverse: go the other way.
        overwrite: replace `output` if it is there, once the new one is complete.
        max_shard_size: bytes of tensor data in one file, or text such as "5GB"; units are decimal.
        max_memory: bytes that may be used beyond Python's own memory, or text such as "512MB".
        threads: threads that copy; by default as many as there are processors, four at the most.
        dtype: cast every floating tensor of 16 bits and more to it, such as "bfloat16"; integers and masks stay.
        config: takes the place of the source's config.json.
        dims: values that take the place of the spec's dims.
        set_config: values for the target's config.json, by dotted path.
        progress: called with the number of bytes just written, from several threads.

    Returns:
        The plan that was carried out.

    Raises:
        WeightmapError: one of its subclasses, by cause; nothing is left at `output` then.
    """
    source, output = Path(source), Path(output)
    options = Options(parse_size(max_shard_size), parse_cast_dtype(dtype), config, dims, set_config)
    budget = Budget.fitting(parse_size(max_memory), threads or default_threads())
    with prepare(spec.inverse() if reverse else spec, source, options) as prepared:
        run(prepared, output, budget, inputs=[source], overwrite=overwrite, progress=progress)
        return prepared.plan


def run(
    prepared: Prepared, output: Path, budget: Budget, *, inputs: list[Path], overwrite: bool, progress: Progress
) -> None:
    """Carry out what was prepared, and publish it.

    Raises:
        CheckpointError, CoverageError: the source can't be read, or holds values that the plan forbids.
        OutputError: the output can't be written.
    """
    plan = prepared.plan
    with publishing(output, overwrite=overwrite, inputs=inputs) as staging:
        check_free_space(staging, plan.bytes_written)
        check_sources(plan, prepared.reader, progress)
        writer = SafetensorsWriter(staging, plan.shards)
        try:
            execute(plan, prepared.reader, writer, budget, progress)
            writer.finish()
        except BaseException:
            writer.abort()
            raise
        if plan.config is not None:
            write_config(staging, plan.config)
        prepared.side_files.copy_to(staging)
        prepared.reader.check_unchanged()
