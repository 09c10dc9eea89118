"""`weightmap specs`: list, show, check and invert mapping specs."""

from __future__ import annotations

import click

from converters.commands.options import CONTEXT_SETTINGS, debug_option, json_option
from converters.commands.values import SpecName


@click.group(invoke_without_command=True, context_settings=dict(CONTEXT_SETTINGS))
@click.pass_context
def specs(ctx: click.Context) -> None:
    """List, show, check and invert mapping specs.

    Without a command, list the shipped ones.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_specs, as_json=False)


@specs.command("list")
@json_option
@debug_option
def list_specs(*, as_json: bool) -> None:
    """List the shipped specs."""
    from converters.commands.spec_text import list_lines, spec_summary
    from converters.commands.terminal import print_json
    from converters.library import load_spec, shipped_specs

    found = [load_spec(path) for path in shipped_specs()]
    if as_json:
        print_json({"specs": [spec_summary(spec) for spec in found]})
    else:
        click.echo("\n".join(list_lines(found)))


@specs.command()
@click.argument("spec_name", metavar="NAME", type=SpecName())
@click.option("--reverse", is_flag=True, help="Show the way back.")
@json_option
@debug_option
def show(*, spec_name: str, reverse: bool, as_json: bool) -> None:
    """Show a spec: its rules, what each restores on the way back, dims, and how config.json is mapped.

    NAME is a YAML file, or the name of a shipped spec.
    """
    from converters.commands.spec_text import show_lines, spec_json
    from converters.commands.terminal import print_json
    from converters.library import load_spec

    spec = load_spec(spec_name)
    spec = spec.inverse() if reverse else spec
    if as_json:
        print_json(spec_json(spec))
    else:
        click.echo("\n".join(show_lines(spec)))


@specs.command()
@click.argument("spec_name", metavar="FILE", type=SpecName())
@json_option
@debug_option
def lint(*, spec_name: str, as_json: bool) -> None:
    """Check a spec without a checkpoint; all its problems at once, each with its line.

    Exits with 5 if there are any.
    """
    from converters.commands.spec_text import one_way_reasons, spec_summary
    from converters.commands.terminal import counted, print_json
    from converters.library import load_spec
    from converters.text import printable

    spec = load_spec(spec_name)
    if as_json:
        print_json({"ok": True, **spec_summary(spec)})
        return
    ways = "one way only" if one_way_reasons(spec) else "both ways"
    sizes = f"{counted(len(spec.rules), 'rule')}, {counted(len(spec.dims), 'dim')}"
    click.echo(f"{printable(spec.path)}: OK, {sizes}, {ways}, {spec.exactness}")


@specs.command()
@click.argument("spec_name", metavar="FILE", type=SpecName())
@debug_option
def invert(*, spec_name: str) -> None:
    """Print the inverse of a spec as YAML.

    There is no need to: --reverse derives it whenever it is wanted. This shows what it is.
    """
    from converters.library import load_spec
    from converters.spec_yaml import spec_to_yaml

    click.echo(spec_to_yaml(load_spec(spec_name).inverse()), nl=False)
