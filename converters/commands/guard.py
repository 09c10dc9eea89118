"""What stands between a command and its user: errors become one message and an exit code, signals an orderly end."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from converters.text import printable

if TYPE_CHECKING:
    from converters.errors import Problem

EXIT_CODES = """\
\b
Exit codes:
   0  success
   1  failure of any other kind
   2  usage: a wrong option or argument
   3  coverage: spec and checkpoint don't fit each other
   4  verification: the output is not what the spec says
   5  spec: not valid, or without an inverse
   6  config: config.json is missing, or isn't what the spec expects
   7  checkpoint: the input can't be read, or contradicts itself
   8  output: it exists already, or can't be written
   9  verification: nothing is wrong, but not everything could be proved
 130  stopped by Ctrl-C (143: by SIGTERM, 129: by SIGHUP, 141: output closed)
"""

_OBJECTS_BETWEEN_COLLECTIONS = 50_000
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SIGNAL_BASE = 128
_AGAIN_AFTER = 0.01
_LONGEST_LINE = 10_000
_MOST_SHOWN = 100


class Stopped(BaseException):
    """A signal asked the program to end; no `except Exception` on the way up takes it for an error."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.exit_code = _SIGNAL_BASE + number


class Guarded(click.Command):
    """A command that ends in a message and an exit code, whatever happens."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: FBT001, FBT002 - click's signature
        **extra: Any,  # noqa: ANN401 - as above
    ) -> Any:  # noqa: ANN401 - as above
        """Run the command; exits, unless `standalone_mode` is off."""
        words = list(sys.argv[1:] if args is None else args)
        if os.environ.get("NO_COLOR"):
            extra.setdefault("color", False)

        def run() -> object:
            return super(Guarded, self).main(words, prog_name, complete_var, standalone_mode=False, **extra)

        if not standalone_mode:
            return run()
        # What is imported and planned stays to the end: looking for cycles in it is in vain, on the way and at exit.
        gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
        atexit.register(gc.freeze)
        # Looked for in the words themselves, since a wrong option is an error before any option is known.
        sys.exit(guard(run, as_json="--json" in words, debug="--debug" in words))

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        """Run the command's own code; click would take a closed output for a failure, and end the program itself."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise Stopped(signal.SIGPIPE) from None


def guard(run: Callable[[], object], *, as_json: bool = False, debug: bool = False) -> int:
    """Run a command; returns the exit code, after the message if there was an error.

    Args:
        run: the command; what it returns is the exit code if it is a number.
        as_json: print an error as JSON on standard output, too.
        debug: show the traceback of an error.
    """
    try:
        with _signals_stop():
            code = run()
            sys.stdout.flush()
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - this is where all of them end
        if isinstance(error, BrokenPipeError) or (isinstance(error, Stopped) and error.number == signal.SIGPIPE):
            _forget_output()
            return _SIGNAL_BASE + signal.SIGPIPE
        if debug:
            _show_traceback(error)
        code = _report(error, as_json=as_json)
        with suppress(OSError):  # who reads it has gone
            sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _report(error: BaseException, *, as_json: bool) -> int:
    """Say what went wrong; returns the exit code."""
    from converters.errors import Problem, WeightmapError

    match error:
        case click.ClickException():
            error.show()
            problems: tuple[Problem, ...] = (Problem(error.format_message()),)
            code, kind = error.exit_code, type(error).__name__
        case WeightmapError():
            problems, code, kind = error.problems, error.exit_code, type(error).__name__
            show_problems(problems)
        case Stopped() | KeyboardInterrupt() | click.Abort():
            code = error.exit_code if isinstance(error, Stopped) else _SIGNAL_BASE + signal.SIGINT
            problems, kind = (Problem(f"stopped by {signal.Signals(code - _SIGNAL_BASE).name}"),), "Stopped"
            # A terminal shows ^C where the cursor is; the message begins on a line of its own.
            _error(("\n" if sys.stderr.isatty() else "") + _labelled(f"{problems[0].what}"))
        case _:
            problems, code, kind = (_unexpected(error),), 1, type(error).__name__
            show_problems(problems)
    for note in (notes := [printable(note, _LONGEST_LINE) for note in getattr(error, "__notes__", ())]):
        _error(note)
    if as_json:
        from converters.commands.terminal import print_json

        found = {"kind": kind, "exit_code": code, "problems": problems_json(problems)}
        print_json({"error": found | ({"notes": notes} if notes else {})})
    return code


def _unexpected(error: BaseException) -> Problem:
    from converters.errors import Problem

    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, MemoryError):
        return Problem("there is not enough memory", None, "close other programs, or choose a smaller --max-memory")
    if isinstance(error, OSError) and error.errno is not None:
        where = printable(str(error.filename)) if error.filename is not None else None
        return Problem(f"the system refused: {error.strerror}", where, "--debug shows where in weightmap this happened")
    return Problem(
        f"this is a mistake in weightmap, not in what you gave it: {said}",
        None,
        "run it again with --debug for the traceback, and please report it",
    )


def show_problems(problems: Sequence[Problem]) -> None:
    """All problems of one error on standard error, one after the other, each with its place and hint."""
    if len(problems) == 1:
        _error(_labelled(_shown(problems[0], len("Error: "))))
        return
    _error(_labelled(f"{len(problems)} problems"))
    for problem in problems[:_MOST_SHOWN]:
        _error(f"  {_shown(problem, 2, '  ')}")
    if len(problems) > _MOST_SHOWN:
        _error(f"  ... and {len(problems) - _MOST_SHOWN:,} more")


def _shown(problem: Problem, first: int, indent: str = "") -> str:
    """A problem in lines that fit the terminal.

    Args:
        problem: what to show.
        first: columns before its first line.
        indent: what stands before each of the others.
    """
    from converters.commands.terminal import dim, fitted

    top, *hints = (printable(line, _LONGEST_LINE) for line in str(problem).split("\n"))
    lines = fitted(top, sys.stderr, first, f"{indent}    ")
    lines += [dim(part) for hint in hints for part in fitted(indent + hint, sys.stderr)]
    return "\n".join(lines)


def _labelled(text: str) -> str:
    return f"{click.style('Error:', fg='red', bold=True)} {text}"


def _error(text: str) -> None:
    with suppress(OSError):  # a closed standard error must not hide the exit code
        click.echo(text, err=True)


def problems_json(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """Problems as plain data; `file`, `line` and `column` where the place is one in a text file."""
    from converters.errors import Location

    found = []
    for problem in problems:
        data: dict[str, Any] = {
            "what": problem.what,
            "where": None if problem.where is None else str(problem.where),
            "hint": problem.hint,
        }
        if isinstance(problem.where, Location):
            data |= {"file": problem.where.path, "line": problem.where.line, "column": problem.where.column}
        found.append(data)
    return found


def _show_traceback(error: BaseException) -> None:
    import traceback

    for part in traceback.format_exception(error):
        for line in part.rstrip("\n").split("\n"):
            _error(printable(line, _LONGEST_LINE))


@contextmanager
def _signals_stop() -> Iterator[None]:
    """Within the block, SIGINT, SIGTERM and SIGHUP raise `Stopped`, so that whatever was begun is cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        for other in taken:
            signal.signal(other, signal.SIG_IGN)  # an impatient second Ctrl-C must not stop the cleaning up
        raise Stopped(number)

    def swallowed(unraisable: sys.UnraisableHookArgs) -> None:
        """Python drops what is raised within a destructor; so the signal is sent again, to come somewhere else."""
        if not isinstance(unraisable.exc_value, Stopped):
            usual_hook(unraisable)
            return
        for number in taken:
            signal.signal(number, stop)
        again = threading.Timer(_AGAIN_AFTER, os.kill, (os.getpid(), unraisable.exc_value.number))
        again.daemon = True
        again.start()

    # One that is ignored stays ignored: nohup does that, and shells do it for what runs in the background.
    usual = (signal.SIG_DFL, signal.default_int_handler)
    taken = {number: handler for number in _STOPPING if (handler := signal.getsignal(number)) in usual}
    usual_hook, sys.unraisablehook = sys.unraisablehook, swallowed
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        sys.unraisablehook = usual_hook
        for number, handler in taken.items():
            signal.signal(number, handler)


def _forget_output() -> None:
    """Point standard output elsewhere, or Python would try to flush it once more at exit, and say that it can't."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
