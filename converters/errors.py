"""The error tree. One class for each cause that a caller would handle differently.

    WeightmapError                  exit code 1
    ├── SpecError                   5   the mapping spec is not valid, or not invertible
    ├── CoverageError               3   spec and checkpoint don't fit: keys, shapes, blocks
    ├── ConfigError                 6   config.json is missing, or isn't what the spec expects
    ├── CheckpointError             7   the input can't be read, or contradicts itself
    ├── OutputError                 8   the output can't be written or published
    │   └── OutputExistsError       8   ... because something is already there
    ├── MemoryBudgetError           1   the budget is too small for this plan
    └── VerificationError           4   the output is not what the spec says

Every error holds one or more `Problem`s, so that all of them are reported at once. An error never shows a
traceback on the command line; its text alone says what is wrong, where, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from msgspec import Struct


class Location(Struct, frozen=True):
    """A place in a text file; `line` and `column` count from one."""

    path: str
    line: int
    column: int = 1

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}"


class Problem(Struct, frozen=True):
    """One thing that is wrong: what, where (a file position or a key), and the next step."""

    what: str
    where: Location | str | None = None
    hint: str | None = None

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where is not None else self.what
        return f"{text}\n    {self.hint}" if self.hint else text


class WeightmapError(Exception):
    """Base of every error that this package raises on purpose.

    Args:
        problems: one message, one `Problem`, or several of them.
        where: the place, when `problems` is a plain message.
        hint: what to do about it, when `problems` is a plain message.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        problems: str | Problem | Iterable[Problem],
        where: Location | str | None = None,
        hint: str | None = None,
    ) -> None:
        if isinstance(problems, str):
            problems = Problem(problems, where, hint)
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class SpecError(WeightmapError):
    """The mapping spec is not valid, or has no inverse where one is asked for."""

    exit_code = 5


class CoverageError(WeightmapError):
    """Spec and checkpoint don't fit: a key left over, a rule without keys, two rules for one key, a size off."""

    exit_code = 3


class ConfigError(WeightmapError):
    """config.json is missing, unreadable, or not what the spec expects."""

    exit_code = 6


class CheckpointError(WeightmapError):
    """The input checkpoint can't be read, or its parts contradict each other."""

    exit_code = 7


class OutputError(WeightmapError):
    """The output can't be written or published; nothing that looks complete is left behind."""

    exit_code = 8


class OutputExistsError(OutputError):
    """Something is already at the output path, and overwriting was not asked for."""


class MemoryBudgetError(WeightmapError):
    """The memory budget is too small to run the plan at all."""


class VerificationError(WeightmapError):
    """Source and target were compared, and they differ."""

    exit_code = 4
