"""`weightmap verify`: say what is proved of a converted checkpoint, and end in an exit code that a gate can use."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converters.commands.guard import EXIT_CODES, Guarded
from converters.commands.options import (
    CONTEXT_SETTINGS,
    checkpoint_argument,
    chosen_spec,
    debug_option,
    json_option,
    revision_option,
)
from converters.commands.values import ConfigValue, DimValue, DTypeName, LayoutName, Size, SpecName

if TYPE_CHECKING:
    from converters.convert import Options
    from converters.verify.report import Report

# As in converters.verify.report, which --help doesn't wait for; a test holds them equal.
LEVELS = ("accounting", "roundtrip", "modules", "logits")
_PATH = click.Path(path_type=Path)


@click.command(cls=Guarded, context_settings=dict(CONTEXT_SETTINGS), epilog=EXIT_CODES)
@checkpoint_argument("source")
@checkpoint_argument("target")
@revision_option
@click.option(
    "--spec",
    "spec_name",
    type=SpecName(),
    metavar="SPEC",
    help="The mapping that TARGET was made with: a YAML file, or the name of a shipped one.",
)
@click.option(
    "--to",
    type=LayoutName(),
    metavar="LAYOUT",
    help="In place of --spec: the shipped mapping that carries SOURCE to this layout, such as hf/phi.",
)
@click.option("--reverse", is_flag=True, help="The mapping was used the other way: from its target to its source.")
@click.option(
    "--level",
    type=click.Choice(LEVELS),
    help="Go up to this level. [default: the strongest that can be run here]",
)
@click.option("--only", "only", type=click.Choice(LEVELS), multiple=True, help="Run this level alone. May be repeated.")
@click.option(
    "--device", metavar="DEVICE", help="Run models on it: cpu, cuda, cuda:1. [default: a GPU if there is one]"
)
@click.option("--dtype", metavar="DTYPE", help="Run models in it, such as float32. [default: the checkpoint's own]")
@click.option("--source-model", metavar="PKG:CLASS", help="The source's model. [default: transformers', by its config]")
@click.option("--target-model", metavar="PKG:CLASS", help="The target's model. [default: transformers', by its config]")
@click.option("--prompt-file", type=_PATH, metavar="FILE", help="Prompts to run, in place of the built-in ones.")
@click.option("--prompt-tokens", type=click.IntRange(1), metavar="N", help="Length of the longest built-in prompts.")
@click.option("--save-reference", type=_PATH, metavar="FILE", help="Store the source model's outputs, for --reference.")
@click.option("--reference", type=_PATH, metavar="FILE", help="Compare with stored outputs, without the source model.")
@click.option("--cast", type=DTypeName(), metavar="DTYPE", help="TARGET was made with `convert --dtype DTYPE`.")
@click.option("--config", "config_file", type=_PATH, metavar="FILE", help="TARGET was made with this `--config`.")
@click.option("--dim", "dims", type=DimValue(), multiple=True, metavar="NAME=N", help="... with this `--dim`.")
@click.option(
    "--set", "config_values", type=ConfigValue(), multiple=True, metavar="KEY=VALUE", help="... with this `--set`."
)
@click.option(
    "--max-memory",
    type=Size(),
    default="512MB",
    show_default=True,
    metavar="SIZE",
    help="Most memory that comparing bytes may use; models take what they need.",
)
@click.option("--threads", type=click.IntRange(1, 64), metavar="N", help="Threads that compare. [default: 2]")
@click.option("--no-hash", is_flag=True, help="Leave the digests of whole files out of the report; it saves a reading.")
@click.option(
    "--digest",
    type=click.Choice(["xxh3", "sha256"]),
    default="xxh3",
    show_default=True,
    help="What the report tells files apart by; sha256 takes longer, and can't be forged.",
)
@click.option("--report", "report_file", type=_PATH, metavar="FILE", help="Write the report as one HTML file.")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing; the exit code says it.")
@debug_option
def verify(  # noqa: PLR0913 - each is an option of its own
    *,
    source: Path,
    target: Path,
    revision: str | None,
    spec_name: str | None,
    to: str | None,
    reverse: bool,
    level: str | None,
    only: tuple[str, ...],
    report_file: Path | None,
    no_hash: bool,
    digest: str,
    as_json: bool,
    quiet: bool,
    **options: Any,  # noqa: ANN401 - handed on to _call and _converted_with
) -> int:
    """Prove that TARGET is what the spec makes of SOURCE, or find where it isn't.

    \b
    accounting   names, shapes, dtypes, files and config, from headers alone
    roundtrip    every byte of TARGET, and SOURCE again from it
    modules      each module of both models on the same input
    logits       the outputs of both models on long prompts

    Exits with 0 if all that was asked for is proved, 4 if TARGET is wrong, 9 if something could not be proved.

    \b
    weightmap verify --spec phi2_to_tenny phi-2/ tenny/ --report report.html
    weightmap verify --spec phi2_to_tenny phi-2/ tenny/ --level roundtrip
    """  # noqa: D301 - \b tells click to leave the lines as they are
    from converters.commands.libraries import one_blas_thread
    from converters.commands.progress import progress_bar, quiet_downloads
    from converters.storage.locations import locate
    from converters.verify import run

    if level is not None and only:
        raise click.UsageError("--level goes up to a level, --only runs single ones: give one of the two")
    if report_file is not None:
        from converters.verify.html import check_plotting

        check_plotting()
        if not report_file.parent.is_dir():
            raise click.UsageError(f"--report: the directory of {report_file} doesn't exist")
    quiet_downloads(shown=not quiet)
    asked: set[str | None] = {*only} or {level}
    if asked <= {"accounting", "roundtrip"}:
        one_blas_thread()
    source, target = locate(source, revision), locate(target)
    converted_with = _converted_with(options)
    spec = chosen_spec(spec_name, to, source, reverse=reverse, config=converted_with.config, dims=converted_with.dims)
    with progress_bar(_nbytes(source) + _nbytes(target), shown=not quiet, doing="Comparing", ending="") as progress:
        report = run.verify(
            spec.inverse() if spec.reverse else spec,
            source,
            target,
            level=level,
            levels=only or None,
            reverse=spec.reverse,
            converted_with=converted_with,
            hash_files=False if no_hash else None,
            digest=digest,
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            progress=progress,
            **_models(options),
        )
    if report_file is not None:
        _write(report_file, report)
    if as_json:
        click.echo(report.to_json())
    elif not quiet:
        from converters.commands.verify_text import report_lines

        click.echo("\n".join(report_lines(report)))
    return report.exit_code


def _models(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that `verify` takes under their own names."""
    names = ("device", "dtype", "source_model", "target_model", "prompt_file", "save_reference", "reference")
    found = {name: options[name] for name in (*names, "max_memory", "threads")}
    if options["prompt_tokens"] is not None:
        found["prompt_tokens"] = options["prompt_tokens"]
    return found


def _converted_with(options: Mapping[str, Any]) -> Options:
    """What `convert` was told.

    Raises:
        ConfigError: the file of `--config` can't be read.
    """
    from converters.convert import Options
    from converters.errors import ConfigError
    from converters.side_files import read_config
    from converters.text import printable

    config = None
    if options["config_file"] is not None:
        config = read_config(options["config_file"])
        if config is None:
            raise ConfigError("there is no config.json", printable(str(options["config_file"])), "give a JSON file")
    return Options(
        dtype=options["cast"],
        config=config,
        dims=dict(options["dims"]) or None,
        set_config=dict(options["config_values"]) or None,
    )


def _nbytes(path: Path) -> int:
    """About the bytes that will be compared on one side; for the progress bar alone."""
    try:
        return sum(file.stat().st_size for file in path.glob("*.safetensors")) if path.is_dir() else path.stat().st_size
    except OSError:
        return 0


def _write(path: Path, report: Report) -> None:
    """Write the page beside its place and move it there, so that a page is there whole or not at all.

    Raises:
        OutputError: it can't be written.
    """
    import os

    from converters.errors import OutputError
    from converters.text import printable
    from converters.verify.html import to_html

    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        staging.write_text(to_html(report), encoding="utf-8")
        staging.replace(path)
    except OSError as error:
        staging.unlink(missing_ok=True)
        raise OutputError(f"the report can't be written: {error.strerror}", printable(str(path))) from error
