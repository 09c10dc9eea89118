"""The folder `.bench`, where sources are made on demand and removed again, and outputs are checked."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.jobs import MADE

REPOSITORY = Path(__file__).resolve().parent.parent


class WrongOutputError(RuntimeError):
    """An output does not hold what it must; its time counts for nothing."""


def weightmap(*arguments: str | Path) -> list[str]:
    """The command line that runs weightmap from this checkout."""
    return [sys.executable, str(REPOSITORY / "cli.py"), *map(str, arguments)]


def helper(module: str, *arguments: str | Path) -> str:
    """What one of this folder's modules prints; in a process of its own, so that its memory is not this one's."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    return subprocess.run(command, check=True, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True).stdout


class Workplace:
    """Sources and outputs of one size.

    Attributes:
        root: the folder.
        output: where a run writes; `free_output` removes it.
        log: what the last command printed.
    """

    def __init__(self, root: Path, size: str) -> None:
        self.size = size
        self.root = root / size
        self.root.mkdir(parents=True, exist_ok=True)
        self.output = self.root / "output"
        self.log = self.root / "log"

    def source(self, name: str) -> Path:
        """The directory of a source, which is made if it isn't there."""
        directory = self.root / name
        if directory.exists():
            return directory
        staging = self.root / f"{name}.unfinished"
        shutil.rmtree(staging, ignore_errors=True)
        if (made := MADE.get(name)) is None:
            helper("sources", name, self.size, staging)
        else:
            origin = self.source(made.origin)
            command = weightmap("convert", "--quiet", origin, staging, *made.arguments)
            subprocess.run(command, check=True, cwd=REPOSITORY)
            self.check(staging, (made.expected, made.origin))
        staging.rename(directory)
        return directory

    def files(self, name: str) -> list[Path]:
        """The files of a source."""
        return sorted(path for path in self.source(name).iterdir() if path.is_file())

    def expected(self, function: str, source: str) -> Path:
        """The file that says what a job must give; computed once, without weightmap."""
        kept = self.root / f"expected-{function}-{source}.json"
        if not kept.exists():
            text = helper("expected", function, self.source(source))
            kept.write_text(text)
        return kept

    def check(self, output: Path, expected: tuple[str, str]) -> None:
        """Compare every tensor of an output.

        Raises:
            WrongOutputError: one is missing, too many, or another.
        """
        if text := helper("expected", "--compare", output, self.expected(*expected)):
            raise WrongOutputError(f"{output}: {text}")

    def free_output(self) -> None:
        """Remove what a run wrote."""
        shutil.rmtree(self.output, ignore_errors=True)

    def keep_only(self, names: Iterable[str]) -> None:
        """Remove the sources that no later row needs."""
        needed = set(names)
        for path in self.root.iterdir():
            if path.is_dir() and path.name not in needed:
                shutil.rmtree(path)


def needed(sources: Iterable[str]) -> set[str]:
    """Sources, and those that they are made of."""
    names = set(sources)
    return names | {MADE[name].origin for name in names if name in MADE}


def nbytes_of(directory: Path) -> int:
    """Bytes of the files of a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
