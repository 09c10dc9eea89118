"""The options that several commands share, and the kinds of values that they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from converters.text import printable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from converters.convert import Options
    from converters.schedule import Budget
    from converters.spec import Spec
    from converters.tensor_info import DType

F = TypeVar("F", bound=Callable[..., Any])

CONTEXT_SETTINGS: Mapping[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class SpecName(click.ParamType):  # type: ignore[type-arg] # generic only since click 8.4
    """A spec: a YAML file, or the name of a shipped one."""

    name = "spec"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Shipped specs, and files."""
        del ctx, param
        from click.shell_completion import CompletionItem

        from converters.library import shipped_specs

        shipped = [CompletionItem(path.stem) for path in shipped_specs() if path.stem.startswith(incomplete)]
        return [*shipped, CompletionItem(incomplete, type="file")]


class Size(click.ParamType):  # type: ignore[type-arg] # generic only since click 8.4
    """A number of bytes in decimal units."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read `5GB`."""
        from converters.errors import WeightmapError
        from converters.sharding import parse_size

        try:
            return parse_size(value)
        except WeightmapError as error:
            problem = error.problems[0]
            self.fail(f"{problem.what}. {problem.hint or ''}".strip(), param, ctx)


class DTypeName(click.ParamType):  # type: ignore[type-arg] # generic only since click 8.4
    """A dtype by its safetensors name or torch's."""

    name = "dtype"

    def convert(self, value: str | DType, param: click.Parameter | None, ctx: click.Context | None) -> DType:
        """Read `bfloat16`."""
        from converters.operations.numeric import ARITHMETIC
        from converters.tensor_info import DType, parse_dtype

        try:
            dtype = value if isinstance(value, DType) else parse_dtype(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if dtype not in ARITHMETIC:
            names = ", ".join(sorted(known.label for known in ARITHMETIC))
            self.fail(f"values can't be cast to {dtype}; there are: {names}", param, ctx)
        return dtype

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The names that torch has."""
        del ctx, param
        from click.shell_completion import CompletionItem

        names = ("bfloat16", "float16", "float32", "float64")
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class DimValue(click.ParamType):  # type: ignore[type-arg] # generic only since click 8.4
    """`NAME=N`."""

    name = "NAME=N"

    def convert(
        self, value: str | tuple[str, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Read `heads=32`."""
        if not isinstance(value, str):
            return value
        name, equals, number = value.partition("=")
        digits = number.strip()
        if not name.strip() or not equals or not (digits.isascii() and digits.isdigit() and len(digits) < 19):  # noqa: PLR2004 - 64 bits
            self.fail(f"'{printable(value)}' is not NAME=N, such as heads=32", param, ctx)
        return name.strip(), int(digits)


class ConfigValue(click.ParamType):  # type: ignore[type-arg] # generic only since click 8.4
    """`KEY=VALUE`, the value as JSON, or else as text."""

    name = "KEY=VALUE"

    def convert(
        self, value: str | tuple[str, Any], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        """Read `block=classic`, `rope.theta=1e6` or `architectures=["Tenny"]`."""
        import json

        if not isinstance(value, str):
            return value
        key, equals, text = value.partition("=")
        if not equals or not all(key.split(".")):
            self.fail(f"'{printable(value)}' is not KEY=VALUE, such as block=classic", param, ctx)
        try:
            return key, json.loads(text, parse_constant=_refuse_constant)
        except ValueError:
            return key, text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked to convert, and how."""

    spec: Spec
    source: Path
    options: Options
    budget: Budget


def make_request(  # noqa: PLR0913 - each is an option of its own
    *,
    spec_name: str,
    source: Path,
    reverse: bool,
    dtype: DType | None,
    max_shard_size: int,
    max_memory: int,
    threads: int | None,
    config_file: Path | None,
    dims: tuple[tuple[str, int], ...],
    config_values: tuple[tuple[str, Any], ...],
) -> Request:
    """Load the spec, and put the options together.

    Raises:
        SpecError, ConfigError: the spec or the file of `--config` can't be read.
        MemoryBudgetError: `--max-memory` is too small for anything.
    """
    from converters.convert import Options
    from converters.engine import default_threads
    from converters.library import load_spec
    from converters.schedule import Budget

    spec = load_spec(spec_name)
    config = read_config_file(config_file) if config_file is not None else None
    budget = Budget.fitting(max_memory, threads or default_threads())
    return Request(
        spec.inverse() if reverse else spec,
        source,
        Options(max_shard_size, dtype, config, dict(dims) or None, dict(config_values) or None),
        budget,
    )


def read_config_file(path: Path) -> dict[str, Any]:
    """Read the config that `--config` names: a JSON file of whatever name, or a directory with a config.json.

    Raises:
        ConfigError: there is none, or it isn't a JSON object.
    """
    from converters.errors import CheckpointError, ConfigError
    from converters.side_files import CONFIG, MAX_CONFIG_NBYTES
    from converters.storage.files import read_small_file
    from converters.storage.strict_json import StrictJsonError, parse_object

    where = printable(str(path))
    try:
        # A link that the user names is followed: a snapshot in a Hub cache is made of links.
        file = (path / CONFIG if path.is_dir() else path).resolve()
        return parse_object(read_small_file(file, MAX_CONFIG_NBYTES, where))
    except CheckpointError as error:
        raise ConfigError(error.problems) from None
    except StrictJsonError as error:
        raise ConfigError(str(error), where, "--config takes a file with one JSON object") from None


_CONVERSION = (
    click.option(
        "--spec",
        "spec_name",
        type=SpecName(),
        required=True,
        metavar="SPEC",
        help="The mapping: a YAML file, or the name of a shipped one (see `weightmap specs`).",
    ),
    click.option("--reverse", is_flag=True, help="Go the other way: from the spec's target to its source."),
    click.option(
        "--dtype",
        type=DTypeName(),
        metavar="DTYPE",
        help="Cast floating tensors of 16 bits and more, e.g. to bfloat16. Without it every dtype is kept.",
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


def json_option(function: F) -> F:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")(function)


def debug_option(function: F) -> F:
    """`--debug`, which the guard looks for itself."""
    return click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")(function)
