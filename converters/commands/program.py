"""The group `weightmap`, which knows what its commands do without importing them: `--help` answers at once."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, NamedTuple

import click

import converters
from converters.commands.guard import EXIT_CODES, Guarded

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class _Entry(NamedTuple):
    """A command: the module that holds it, under the same name, and the line that the list of commands shows."""

    module: str
    help: str


_COMMANDS = {
    "convert": _Entry("converters.commands.convert", "Convert a checkpoint into another layout."),
    "plan": _Entry("converters.commands.plan", "Show what a conversion would do, from headers alone."),
    "verify": _Entry(
        "converters.commands.verify", "Prove that TARGET is what the spec makes of SOURCE, or find where it isn't."
    ),
    "verify-files": _Entry(
        "converters.commands.verify_files", "Check that a directory is still what `weightmap convert` published."
    ),
    "inspect": _Entry("converters.commands.inspect", "Show what is in a checkpoint."),
    "detect": _Entry("converters.commands.detect", "Say which layout a checkpoint has, and which specs apply."),
    "clean": _Entry("converters.commands.clean", "Show what killed runs left beside outputs, and remove it."),
    "specs": _Entry("converters.commands.specs", "List, show, check and invert mapping specs."),
    "completion": _Entry("converters.commands.completion", "Print the shell completion script."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when one of them is called, and no sooner."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names of all commands that are installed, in the order of the table."""
        return [name for name, entry in _COMMANDS.items() if importlib.util.find_spec(entry.module)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None where there is none of this name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command = getattr(importlib.import_module(_COMMANDS[cmd_name].module), cmd_name.replace("-", "_"))
        if not isinstance(command, click.Command):
            raise TypeError(f"{cmd_name} in {_COMMANDS[cmd_name].module} is no command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, and an unknown command gets the nearest one as a hint."""
        if args[0] not in self.list_commands(ctx) and not args[0].startswith("-"):
            import difflib  # only a mistake needs it

            close = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            hint = f"Did you mean {close[0]!r}?" if close else f"There are: {', '.join(self.list_commands(ctx))}."
            ctx.fail(f"No such command {args[0]!r}. {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name].help) for name in self.list_commands(ctx)])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands that begin like this, from the table, and the group's own options."""
        from click.shell_completion import CompletionItem

        items = [
            CompletionItem(name, help=_COMMANDS[name].help)
            for name in self.list_commands(ctx)
            if name.startswith(incomplete)
        ]
        return items + click.Command.shell_complete(self, ctx, incomplete)


class Program(Guarded, LazyGroup):
    """The whole command line, guarded."""


@click.group(
    cls=Program,
    name="weightmap",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
)
@click.version_option(converters.__version__, prog_name="weightmap")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def main() -> None:
    """Convert model checkpoints between layouts, by mapping specs that run both ways.

    \b
    weightmap plan --spec phi2_to_tenny phi-2/               what would happen
    weightmap convert --spec phi2_to_tenny phi-2/ tenny/     do it
    weightmap convert --spec phi2_to_tenny --reverse tenny/ back/
    """  # noqa: D301 - \b tells click to leave the lines as they are


def convert_main() -> None:
    """Run `convert` as a program of its own."""
    from converters.commands.convert import convert

    convert.main()
