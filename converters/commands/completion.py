"""`weightmap completion`: what a shell needs to complete commands, options and the names of specs."""

from __future__ import annotations

import os
from pathlib import Path

import click

from converters.commands.options import CONTEXT_SETTINGS

_SHELLS = ("bash", "zsh", "fish")


@click.command(context_settings=dict(CONTEXT_SETTINGS))
@click.argument("shell", type=click.Choice(_SHELLS), required=False)
@click.option(
    "--program",
    type=click.Choice(("weightmap", "convert")),
    default="weightmap",
    show_default=True,
    help="The program to complete. ImageMagick has a `convert`, too: complete ours only where it comes first in PATH.",
)
@click.pass_context
def completion(ctx: click.Context, *, shell: str | None, program: str) -> None:
    """Print the shell completion script.

    SHELL is bash, zsh or fish; by default your own.

    \b
    bash:  eval "$(weightmap completion bash)"          in ~/.bashrc
    zsh:   eval "$(weightmap completion zsh)"           in ~/.zshrc
    fish:  weightmap completion fish > ~/.config/fish/completions/weightmap.fish
    """  # noqa: D301 - \b tells click to leave the lines as they are
    from click.shell_completion import get_completion_class

    name = shell or Path(os.environ.get("SHELL", "")).name
    found = get_completion_class(name)
    if name not in _SHELLS or found is None:
        raise click.UsageError(f"Your shell isn't one of {', '.join(_SHELLS)}; name one of them.", ctx)
    # Only the names go into the script; the command is asked when the user presses Tab.
    click.echo(found(ctx.command, {}, program, f"_{program.upper()}_COMPLETE").source())
