"""`weightmap convert`: do it, and say what was done."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converters.commands.guard import EXIT_CODES, Guarded
from converters.commands.options import (
    CONTEXT_SETTINGS,
    Request,
    checkpoint_argument,
    conversion_options,
    debug_option,
    json_option,
    make_request,
)
from converters.commands.values import OutputPath

if TYPE_CHECKING:
    from converters.convert import Prepared
    from converters.memory import MemoryEstimate


@click.command(cls=Guarded, context_settings=dict(CONTEXT_SETTINGS), epilog=EXIT_CODES)
@checkpoint_argument("source")
@click.argument("output", type=OutputPath())
@conversion_options
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it is there, once the new one is complete.")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="No progress bar and no summary; warnings and errors only.")
@debug_option
def convert(
    *,
    source: Path,
    output: Path,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,  # noqa: ANN401 - see make_request
) -> None:
    """Convert a checkpoint into another layout.

    SOURCE is a file of safetensors or torch.save, an index, or a directory as on the Hub; or a repository there, such
    as microsoft/phi-2; or the URL of an object store, such as s3://bucket/phi-2. It is never changed. OUTPUT is the
    directory to make, or a URL. It appears whole or not at all: whatever goes wrong, nothing is left behind.

    \b
    weightmap convert --spec phi2_to_tenny phi-2/ tenny/
    weightmap convert --spec phi2_to_tenny --reverse tenny/ phi-2-again/
    """  # noqa: D301 - \b tells click to leave the lines as they are
    from converters.commands.progress import progress_bar, quiet_downloads
    from converters.commands.terminal import print_json, warn
    from converters.convert import prepare_to_run, run
    from converters.memory import predicted_peak

    quiet_downloads(shown=not quiet)
    request = make_request(source=source, **options)
    started = time.monotonic()
    with prepare_to_run(request.spec, request.source, request.options) as prepared:
        estimate = predicted_peak(prepared.plan, request.budget)
        plan = prepared.plan
        with progress_bar(plan.bytes_written + plan.bytes_checked, shown=not quiet) as progress:
            run(
                prepared,
                output,
                request.budget,
                inputs=_inputs(request, options["config_file"]),
                overwrite=overwrite,
                progress=progress,
            )
    seconds = time.monotonic() - started
    if as_json:
        print_json(_as_json(prepared, output, seconds, estimate))
    elif not quiet:
        click.echo("\n".join(_summary(request, prepared, output, seconds)))
    for note in plan.notes:
        warn(note)


def _inputs(request: Request, config_file: Path | None) -> list[Path]:
    """All that is read, none of which may lie in an output that is replaced."""
    files = [Path(request.spec.path), *([config_file] if config_file is not None else [])]
    return [request.source, *(path for path in files if path.exists())]


def _summary(request: Request, prepared: Prepared, output: Path, seconds: float) -> list[str]:
    from converters.commands.plan_text import files_text, heading, off_text, outcome_pairs
    from converters.commands.terminal import bold, counted, labelled
    from converters.memory import measured_peak
    from converters.text import format_nbytes, printable

    plan = prepared.plan
    on = sum(rule.off is None for rule in plan.rules)
    rules = f"{on} applied" + (f", {off}" if (off := off_text(plan)) else "")
    speed = f"{format_nbytes(int(plan.bytes_written / max(seconds, 1e-6)))}/s"
    pairs = [
        ("by", heading(request.spec, request.options.dtype)),
        ("wrote", f"{counted(len(plan.targets), 'tensor')}, {format_nbytes(plan.bytes_written)}, {files_text(plan)}"),
        ("took", f"{duration(seconds)}, {speed}, {format_nbytes(measured_peak())} of memory at the peak"),
        ("rules", rules),
        *outcome_pairs(prepared),
    ]
    title = f"Converted {printable(str(request.source))} to {printable(str(output))}"
    return [bold(title), *labelled(pairs)]


def duration(seconds: float) -> str:
    """A time for people: `0.42 s`, `12.3 s`, `3 min 05 s`."""
    if seconds < 10:  # noqa: PLR2004 - two digits are enough
        return f"{seconds:.2f} s"
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s"


def _as_json(prepared: Prepared, output: Path, seconds: float, estimate: MemoryEstimate) -> dict[str, Any]:
    from converters.commands.plan_data import memory_json, plan_json
    from converters.memory import measured_peak

    return {
        "output": str(output),
        **plan_json(prepared, prepared.spec),
        "seconds": round(seconds, 3),
        "bytes_per_second": int(prepared.plan.bytes_written / max(seconds, 1e-6)),
        "memory": {**memory_json(estimate), "measured_peak": measured_peak()},
    }
