"""The options that several commands share, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from msgspec import Struct

from converters.commands.values import CheckpointPath, ConfigValue, DimValue, DTypeName, LayoutName, Size, SpecName

if TYPE_CHECKING:
    from converters.convert import Options
    from converters.schedule import Budget
    from converters.spec import Spec
    from converters.tensor_info import DType

F = TypeVar("F", bound=Callable[..., Any])

CONTEXT_SETTINGS: Mapping[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Request(Struct, frozen=True):
    """What the user asked to convert, and how."""

    spec: Spec
    source: Path
    options: Options
    budget: Budget


def make_request(  # noqa: PLR0913 - each is an option of its own
    *,
    spec_name: str | None,
    to: str | None,
    source: Path,
    revision: str | None,
    reverse: bool,
    dtype: DType | None,
    max_shard_size: int,
    max_memory: int,
    threads: int | None,
    config_file: Path | None,
    dims: tuple[tuple[str, int], ...],
    config_values: tuple[tuple[str, Any], ...],
    tensor_parallel: int | None = None,
    file_format: str | None = None,
) -> Request:
    """Load the spec, and put the options together.

    Raises:
        SpecError, ConfigError: the spec or the file of `--config` can't be read.
        MemoryBudgetError: `--max-memory` is too small for anything.
    """
    from converters.convert import Options
    from converters.engine import default_threads
    from converters.schedule import Budget
    from converters.storage.locations import locate

    source = locate(source, revision)
    config = read_config_file(config_file) if config_file is not None else None
    spec = chosen_spec(spec_name, to, source, reverse=reverse, config=config, dims=dict(dims) or None)
    if tensor_parallel is not None:
        dims = (*dims, (parts_dim(spec), tensor_parallel))
    budget = Budget.fitting(max_memory, threads or default_threads())
    return Request(
        spec,
        source,
        Options(max_shard_size, dtype, config, dict(dims) or None, dict(config_values) or None, file_format),
        budget,
    )


def chosen_spec(
    spec_name: str | None,
    to: str | None,
    source: Path,
    *,
    reverse: bool,
    config: Mapping[str, Any] | None = None,
    dims: Mapping[str, int] | None = None,
) -> Spec:
    """The spec that `--spec` names, or the one that carries the source to the layout of `--to`; in its direction.

    Raises:
        click.UsageError: neither is given, or both; or the layout names no single spec.
        WeightmapError: the spec, or for `--to` the source, can't be read; or no spec fits.
    """
    from converters.library import load_spec

    if (spec_name is None) == (to is None):
        raise click.UsageError(
            "Give the mapping by --spec SPEC, or the layout to convert to by --to LAYOUT: one of them."
        )
    if spec_name is not None:
        spec = load_spec(spec_name)
        return spec.inverse() if reverse else spec
    if reverse:
        raise click.UsageError("--to finds the direction itself: leave out --reverse.")
    from converters.commands.finding import find_spec

    return find_spec(source, to or "", config=config, dims=dims)


def parts_dim(spec: Spec) -> str:
    """The dim that says in how many parts the target is."""
    from converters.bind import counted_by

    numbered = {part.label for part in spec.target.files if part.numbered}
    found = next((counted_by(kind) for name, kind in spec.placeholders if name in numbered), "")
    if not found:
        what = f"{spec.target.layout} isn't in numbered parts"
        raise click.BadParameter(what, param_hint="'--tensor-parallel'")
    return found


def read_config_file(path: Path) -> dict[str, Any]:
    """Read the config that `--config` names: a file in YAML by its name, else in JSON, or a directory's config.json.

    Raises:
        ConfigError: there is none, or it isn't one mapping.
    """
    from converters.config_file import load_config
    from converters.errors import CheckpointError, ConfigError
    from converters.spec import CONFIG_FILE

    file = path / CONFIG_FILE if path.is_dir() else path
    try:
        # A link that the user names is followed: a snapshot in a Hub cache is made of links.
        return load_config(file.resolve(), file.name)
    except CheckpointError as error:
        raise ConfigError(error.problems) from None


_REVISION = click.option(
    "--revision",
    metavar="REV",
    help="The branch, tag or commit, where SOURCE is a repository of the Hub. [default: main]",
)

_CONVERSION = (
    _REVISION,
    click.option(
        "--spec",
        "spec_name",
        type=SpecName(),
        metavar="SPEC",
        help="The mapping: a YAML file, or the name of a shipped one (see `weightmap specs`).",
    ),
    click.option(
        "--to",
        type=LayoutName(),
        metavar="LAYOUT",
        help="In place of --spec: find the shipped mapping that carries SOURCE to this layout, such as hf/phi.",
    ),
    click.option("--reverse", is_flag=True, help="Go the other way: from the spec's target to its source."),
    click.option(
        "--dtype",
        type=DTypeName(),
        metavar="DTYPE",
        help="Cast floating tensors of 16 bits and more, e.g. to bfloat16. Without it every dtype is kept.",
    ),
    click.option(
        "--format",
        "file_format",
        type=click.Choice(["safetensors", "bin", "dcp"]),
        help="What to write. [default: what the target's layout says, else safetensors]",
    ),
    click.option(
        "--max-shard-size",
        type=Size(),
        default="5GB",
        show_default=True,
        metavar="SIZE",
        help="Most bytes of tensors in one file; units are decimal.",
    ),
    click.option(
        "--max-memory",
        type=Size(),
        default="512MB",
        show_default=True,
        metavar="SIZE",
        help="Most memory to use beyond Python's own, for whatever checkpoint.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1, 64),
        metavar="N",
        help="Threads that copy. [default: the number of processors, 4 at the most]",
    ),
    click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Take this in place of the source's config.json.",
    ),
    click.option(
        "--dim",
        "dims",
        type=DimValue(),
        multiple=True,
        metavar="NAME=N",
        help="Give one of the spec's dims a value of its own. May be repeated.",
    ),
    click.option(
        "--tensor-parallel",
        type=click.IntRange(1, 1024),
        metavar="N",
        help="Split the target into so many parts, where its layout has them. [default: 1]",
    ),
    click.option(
        "--set",
        "config_values",
        type=ConfigValue(),
        multiple=True,
        metavar="KEY=VALUE",
        help="Set a key of the target's config.json; the value is read as JSON, else as text. May be repeated.",
    ),
)


def conversion_options(function: F) -> F:
    """The options that say what to convert and how; the same for all commands, so that `plan` tells of `convert`."""
    for option in reversed(_CONVERSION):
        function = option(function)
    return function


def checkpoint_argument(name: str) -> Callable[[F], F]:
    """A checkpoint that is read."""
    return click.argument(name, type=CheckpointPath())


def revision_option(function: F) -> F:
    """`--revision`."""
    return _REVISION(function)


def json_option(function: F) -> F:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")(function)


def debug_option(function: F) -> F:
    """`--debug`, which the guard looks for itself."""
    return click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")(function)
