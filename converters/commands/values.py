"""The kinds of values that options take: how each is read, and how a shell completes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converters.text import printable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from converters.tensor_info import DType


class CheckpointPath(click.Path):
    """Where a checkpoint is: a local path, a repository of the Hub, or a URL of an object store."""

    def convert(  # type: ignore[override] # click's own gives what `path_type` says
        self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Read `phi-2/`, `microsoft/phi-2` or `s3://bucket/phi-2`; what is here goes first."""
        from converters.storage.locations import parse_location

        del param, ctx
        return parse_location(value) if isinstance(value, str) else value


class OutputPath(CheckpointPath):
    """Where an output goes: a local path, or a URL of an object store."""

    def convert(  # type: ignore[override] # as above
        self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Read `tenny/` or `s3://bucket/tenny`."""
        from converters.storage.locations import locate_output

        del param, ctx
        return locate_output(value)


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


class LayoutName(click.ParamType):  # type: ignore[type-arg] # generic only since click 8.4
    """A layout that a shipped spec goes to."""

    name = "layout"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The layouts on either side of the shipped specs."""
        del ctx, param
        from click.shell_completion import CompletionItem

        from converters.library import load_spec, shipped_specs

        specs = [load_spec(path) for path in shipped_specs()]
        layouts = {side.layout for spec in specs for side in (spec.source, spec.target)}
        return [CompletionItem(layout) for layout in sorted(layouts) if layout.startswith(incomplete)]


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
