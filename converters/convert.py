"""The whole way: open and plan here, check, write and publish in `run.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from converters.bind import bind
from converters.config_map import needs_config, with_dtype
from converters.digests import ALGORITHMS, DEFAULT_ALGORITHM
from converters.engine import DEFAULT_MAX_MEMORY, Progress, default_threads
from converters.errors import ConfigError
from converters.operations.cast import parse_cast_dtype
from converters.plan import Plan, Source
from converters.planner import DEFAULT_MAX_SHARD_NBYTES, make_plan
from converters.schedule import Budget
from converters.sharding import FORMATS, in_format, parse_size
from converters.side_files import PLAIN, SideFiles, find_side_files, read_adapter_config, read_config
from converters.spec import Side, Spec
from converters.storage.base import CheckpointReader, WriteOptions
from converters.storage.files import raise_unreadable
from converters.storage.locations import locate, locate_output
from converters.storage.open_files import READING
from converters.storage.parts import open_side
from converters.tensor_info import DType
from converters.text import printable


class Options(Struct, frozen=True):
    """How to convert; the same for planning, so that a plan says what a conversion will do.

    Attributes:
        max_shard_nbytes: bytes of tensor data in one output file.
        dtype: cast every floating tensor of 16 bits and more to it.
        config: takes the place of the source's config.json.
        dims: values that take the place of the spec's dims.
        set_config: values for the target's config.json, by dotted path.
        file_format: one of `FORMATS`; by default as the target's layout says, else safetensors.
    """

    max_shard_nbytes: int = DEFAULT_MAX_SHARD_NBYTES
    dtype: DType | None = None
    config: Mapping[str, Any] | None = None
    dims: Mapping[str, int] | None = None
    set_config: Mapping[str, Any] | None = None
    file_format: str | None = None


class Prepared(Struct, frozen=True):
    """An opened source, and what will be done with it.

    Attributes:
        spec: the one that the plan follows; of an adapter, what was made of the one for weights.
        is_adapter: whether the source is a LoRA adapter, and no whole model.
    """

    plan: Plan
    reader: CheckpointReader
    side_files: SideFiles
    spec: Spec
    is_adapter: bool = False

    @property
    def target(self) -> Side:
        """What will be written."""
        return self.spec.target


@contextmanager
def prepare(spec: Spec, source: Path | str, options: Options) -> Iterator[Prepared]:
    """Open a checkpoint and plan its conversion, from headers alone.

    Args:
        spec: in the direction in which it is applied.
        source: a local path; a text may be the URL of an object store, or a repository of the Hub, too.
        options: how to convert.

    Raises:
        CheckpointError, ConfigError, SpecError, CoverageError: source, config, spec and coverage, in this order.
    """
    source = locate(source)
    with ExitStack() as opened:
        try:
            prepared = _prepare(spec, source, options, opened)
        except OSError as error:  # the system won't even say what is there
            raise_unreadable(error, printable(str(error.filename or source)))
        yield prepared


def _prepare(spec: Spec, source: Path, options: Options, opened: ExitStack) -> Prepared:
    adapter = read_adapter_config(source)
    reader = opened.enter_context(open_side(source, spec.source if adapter is None else PLAIN))
    config = options.config if options.config is not None else read_config(source, spec.source)
    name = spec.source.config_file
    where = printable(str((source if source.is_dir() else source.parent) / name))
    if config is None and (key := needs_config(spec)):
        raise ConfigError(
            f"there is no {name} beside the weights, and the spec {spec.name} needs it for {key}",
            where,
            "give it with --config FILE" if adapter is None else "give that of the base model with --config FILE",
        )
    sources = [Source(info, reader.file_of[name]) for name, info in reader.tensors.items()]
    if adapter is not None:
        from converters.adapters.planning import plan_adapter

        spec, plan = plan_adapter(
            spec,
            config,
            adapter,
            sources,
            where=where,
            dims=options.dims,
            set_config=options.set_config,
            dtype=options.dtype,
        )
    else:
        bound = bind(spec, config, where=where, dims=options.dims, set_config=options.set_config)
        plan = make_plan(bound, sources, max_shard_nbytes=options.max_shard_nbytes, dtype=options.dtype)
        if plan.config is not None and options.dtype is not None:
            plan = replace(plan, config=with_dtype(plan.config, options.dtype))
    if options.file_format is not None:
        plan = replace(plan, shards=in_format(plan.shards, options.file_format))
    plan = replace(plan, notes=(*(str(note) for note in reader.notes), *plan.notes))
    side_files = find_side_files(source, sorted(set(reader.file_of.values())), spec.source)
    return Prepared(plan, reader, side_files, spec, is_adapter=adapter is not None)


@contextmanager
def prepare_to_run(spec: Spec, source: Path | str, options: Options) -> Iterator[Prepared]:
    """As `prepare`; what is on the Hub is downloaded, once its headers have shown that it can be converted.

    Raises:
        WeightmapError: as `prepare`.
    """
    from converters.fetch import fetch_opened, is_repository
    from converters.storage.shared_blocks import share_blocks

    source = locate(source)
    if not is_repository(source):
        with prepare(spec, source, options) as prepared:
            yield replace(prepared, plan=share_blocks(prepared.plan, prepared.reader))
        return
    with prepare(spec, source, options) as planned:
        side = PLAIN if planned.is_adapter else spec.source
        local = fetch_opened(source, planned.reader, planned.side_files, side)
    with prepare(spec, local, options) as prepared:
        # What was not downloaded is left, too.
        side_files = replace(prepared.side_files, left=planned.side_files.left)
        yield replace(prepared, plan=share_blocks(prepared.plan, prepared.reader), side_files=side_files)


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
    file_format: str | None = None,
    resume: bool = False,
    sync: bool = True,
    digest: str | None = DEFAULT_ALGORITHM,
    verify: str | None = None,
    io: str = "auto",
    progress: Progress = lambda _: None,
) -> Plan:
    """Convert a checkpoint into a directory, which appears whole or not at all.

    Args:
        spec: what to convert, from `load_spec`.
        source: a file of safetensors or torch.save, or a directory as on the Hub; as text also OWNER/NAME on the
            Hub, or a URL such as "s3://bucket/model".
        output: the directory to make; as text also a URL.
        reverse: go the other way.
        overwrite: replace `output` if it is there, once the new one is complete.
        max_shard_size: bytes of tensor data in one file, or text such as "5GB"; units are decimal.
        max_memory: bytes that may be used beyond Python's own memory, or text such as "512MB".
        threads: threads that copy; by default as many as there are processors, four at the most.
        dtype: cast every floating tensor of 16 bits and more to it, such as "bfloat16"; integers and masks stay.
        config: takes the place of the source's config.json.
        dims: values that take the place of the spec's dims.
        set_config: values for the target's config.json, by dotted path.
        file_format: `safetensors`, `bin`, or `dcp` for a torch distributed checkpoint; by default as the target's
            layout says, else safetensors.
        resume: go on with what a killed run of the same job has finished, and keep what this one has if it fails.
        sync: flush everything to the disk; without it a power cut after success can lose the output.
        digest: `xxh3` or `sha256`, of each file and tensor, in the output's manifest; None for none.
        verify: prove the output up to this level of `converters.verify` before it appears.
        io: how the source's files are read: `read`, by calls, as `auto` does; or `mmap`, through a map.
        progress: called with the number of bytes just written, from several threads.

    Returns:
        The plan that was carried out.

    Raises:
        WeightmapError: one of its subclasses, by cause; nothing is left at `output` then.
    """
    from converters.run import RunOptions, run

    source, output = locate(source), locate_output(output)
    if file_format is not None and file_format not in FORMATS:
        raise ValueError(f"file_format must be one of {', '.join(FORMATS)}, got {file_format!r}")
    if digest is not None and digest not in ALGORITHMS:
        raise ValueError(f"digest must be None or one of {', '.join(ALGORITHMS)}, got {digest!r}")
    if io not in READING:
        raise ValueError(f"io must be one of {', '.join(READING)}, got {io!r}")
    options = Options(parse_size(max_shard_size), parse_cast_dtype(dtype), config, dims, set_config, file_format)
    budget = Budget.fitting(parse_size(max_memory), threads or default_threads())
    with prepare_to_run(spec.inverse() if reverse else spec, source, options) as prepared:
        how = RunOptions(
            budget, overwrite=overwrite, resume=resume, write=WriteOptions(sync, digest), verify=verify, io=io
        )
        run(prepared, output, options, how, inputs=[source], progress=progress)
        return prepared.plan
