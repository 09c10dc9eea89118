"""`weightmap plan`: what a conversion would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from converters.collector import paused
from converters.commands.options import (
    CONTEXT_SETTINGS,
    checkpoint_argument,
    conversion_options,
    debug_option,
    json_option,
    make_request,
)


@click.command(context_settings=dict(CONTEXT_SETTINGS))
@checkpoint_argument("source")
@conversion_options
@click.option(
    "--output",
    "plan_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Save the whole plan, each copy of it, as JSON; the file must be new.",
)
@json_option
@debug_option
@paused()
def plan(*, source: Path, plan_file: Path | None, as_json: bool, **options: Any) -> None:  # noqa: ANN401 - see make_request
    """Show what a conversion would do, from headers alone.

    No tensor data is read. What is shown has been proved: every element of SOURCE is used or dropped by name, and
    every element of the output is written once. Takes the options of `convert`. Of a checkpoint on the Hub, or in an
    object store, only headers and configs are fetched.
    """
    from converters.commands.plan_data import memory_json, plan_json, targets_json
    from converters.commands.plan_text import heading, memory_text, outcome_pairs, rule_lines, section, total_pairs
    from converters.commands.terminal import bold, dim, labelled, print_json, warn
    from converters.convert import prepare
    from converters.memory import predicted_peak
    from converters.storage.files import write_new_file
    from converters.text import printable

    request = make_request(source=source, **options)
    with prepare(request.spec, request.source, request.options) as prepared:
        estimate = predicted_peak(prepared.plan, request.budget)
        if plan_file is not None:
            write_new_file(plan_file, prepared.plan.to_json().encode())
        if as_json:
            data = plan_json(prepared, prepared.spec)
            print_json({**data, "targets": targets_json(prepared.plan), "memory": memory_json(estimate)})
            return
        spec = prepared.spec
        pairs = [*total_pairs(prepared), *outcome_pairs(prepared), ("memory", memory_text(estimate, request.budget))]
        lines = [
            bold(heading(spec, request.options.dtype)),
            dim(f"  {printable(spec.path)}"),
            *section("Rules", list(rule_lines(prepared.plan, spec))),
            *section("In all", labelled(pairs)),
        ]
        click.echo("\n".join(lines))
        for note in prepared.plan.notes:
            warn(note)
        if plan_file is not None:
            click.echo(f"\nSaved the plan in {printable(str(plan_file))}.")
