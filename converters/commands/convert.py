"""`weightmap convert`: do it, and say what was done."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converters.commands.guard import EXIT_CODES, Guarded
from converters.commands.in_place import run_in_place
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
    from converters.run import Outcome


@click.command(cls=Guarded, context_settings=dict(CONTEXT_SETTINGS), epilog=EXIT_CODES)
@checkpoint_argument("source")
@click.argument("output", type=OutputPath(), required=False, metavar="OUTPUT")
@conversion_options
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it is there, once the new one is complete.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with what a killed run of the same job has finished; if this one fails, keep what it has.",
)
@click.option(
    "--digest",
    type=click.Choice(["xxh3", "sha256", "none"]),
    default="xxh3",
    show_default=True,
    help="Of each file and tensor, in the output's manifest; with one, every file is read back before it counts.",
)
@click.option(
    "--verify",
    "verify_level",
    type=click.Choice(["accounting", "roundtrip", "modules", "logits"]),
    help="Prove OUTPUT up to this level before it appears; if that fails, it doesn't. See `weightmap verify`.",
)
@click.option(
    "--no-sync", is_flag=True, help="Don't flush OUTPUT to the disk: faster, and a power cut after success can lose it."
)
@click.option(
    "--io",
    type=click.Choice(["auto", "read", "mmap"]),
    default="auto",
    show_default=True,
    help="How SOURCE is read: by calls, as auto does everywhere; or through a map, which a truncation can crash.",
)
@click.option("--in-place", is_flag=True, help="Rename the tensors of SOURCE where they are, and give no OUTPUT.")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="No progress bar and no summary; warnings and errors only.")
@debug_option
def convert(  # noqa: PLR0913 - each is an option of its own
    *,
    source: Path,
    output: Path | None,
    overwrite: bool,
    resume: bool,
    digest: str,
    verify_level: str | None,
    no_sync: bool,
    io: str,
    in_place: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,  # noqa: ANN401 - see make_request
) -> None:
    """Convert a checkpoint into another layout.

    SOURCE is a file of safetensors or torch.save, an index, or a directory as on the Hub; or a repository there, such
    as microsoft/phi-2; or the URL of an object store, such as s3://bucket/phi-2. It is never changed, except by
    --in-place. OUTPUT is the directory to make, or a URL. It appears whole or not at all: whatever goes wrong, nothing
    is left behind.

    \b
    weightmap convert --spec phi2_to_tenny phi-2/ tenny/
    weightmap convert --spec phi2_to_tenny --reverse tenny/ phi-2-again/
    """  # noqa: D301 - \b tells click to leave the lines as they are
    from converters.commands.libraries import one_blas_thread
    from converters.commands.progress import progress_bar, quiet_downloads
    from converters.commands.terminal import print_json, warn
    from converters.convert import prepare_to_run
    from converters.run import RunOptions, run
    from converters.storage.base import WriteOptions

    if in_place:
        run_in_place(
            source,
            output,
            options,
            others={
                "--overwrite": overwrite,
                "--resume": resume,
                "--digest": digest != "xxh3",
                "--verify": verify_level is not None,
                "--no-sync": no_sync,
                "--io": io != "auto",
            },
            as_json=as_json,
            quiet=quiet,
        )
        return
    if output is None:
        raise click.UsageError("Missing argument 'OUTPUT': the directory to make. (Only --in-place takes none.)")
    if resume and digest == "none":
        raise click.UsageError("--resume needs digests, which tell whether what is there is right: leave out --digest.")
    quiet_downloads(shown=not quiet)
    if verify_level in (None, "accounting", "roundtrip"):
        one_blas_thread()
    request = make_request(source=source, **options)
    started = time.monotonic()
    with prepare_to_run(request.spec, request.source, request.options) as prepared:
        gc.freeze()  # the plan stays to the end, so looking through it for garbage is in vain
        estimate = _estimate(prepared, request) if as_json else None
        plan = prepared.plan
        with progress_bar(plan.bytes_written + plan.bytes_checked, shown=not quiet) as progress:
            write = WriteOptions(sync=not no_sync, digest=None if digest == "none" else digest)
            outcome = run(
                prepared,
                output,
                request.options,
                RunOptions(request.budget, overwrite=overwrite, resume=resume, write=write, verify=verify_level, io=io),
                inputs=_inputs(request, options["config_file"]),
                progress=progress,
            )
    seconds = time.monotonic() - started
    if as_json:
        print_json(_as_json(prepared, output, seconds, estimate) | {"kept": list(outcome.kept)})
    elif not quiet:
        click.echo("\n".join(_summary(request, prepared, output, seconds, outcome, verify_level)))
    if outcome.afresh is not None:
        warn(f"what an earlier run had finished was of no use, since {outcome.afresh}; all of it was written anew")
    for note in plan.notes:
        warn(note)


def _estimate(prepared: Prepared, request: Request) -> MemoryEstimate:
    from converters.memory import predicted_peak

    return predicted_peak(prepared.plan, request.budget)


def _inputs(request: Request, config_file: Path | None) -> list[Path]:
    """All that is read, none of which may lie in an output that is replaced."""
    files = [Path(request.spec.path), *([config_file] if config_file is not None else [])]
    return [request.source, *(path for path in files if path.exists())]


def _summary(
    request: Request, prepared: Prepared, output: Path, seconds: float, outcome: Outcome, verified: str | None
) -> list[str]:
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
        *([("kept", f"{counted(len(outcome.kept), 'file')} that an earlier run had finished")] if outcome.kept else []),
        *([("proved", f"by verify --level {verified}, before it appeared")] if verified is not None else []),
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


def _as_json(prepared: Prepared, output: Path, seconds: float, estimate: MemoryEstimate | None) -> dict[str, Any]:
    from converters.commands.plan_data import memory_json, plan_json
    from converters.memory import measured_peak

    return {
        "output": str(output),
        **plan_json(prepared, prepared.spec),
        "seconds": round(seconds, 3),
        "bytes_per_second": int(prepared.plan.bytes_written / max(seconds, 1e-6)),
        "memory": {**(memory_json(estimate) if estimate else {}), "measured_peak": measured_peak()},
    }
