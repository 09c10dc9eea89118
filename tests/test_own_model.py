"""docs/own-model.md from top to bottom: its files are written, its commands run, and what they print is compared."""

from __future__ import annotations

import filecmp
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.support import weightmap

PAGE = Path(__file__).parent.parent / "docs" / "own-model.md"
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Reader:
    """Somebody who follows the page, in the current directory."""

    def __init__(self) -> None:
        self.exit_code = 0

    def follow(self, language: str, file: str, text: str) -> None:
        """Do what a block says."""
        if language == "console":
            for command, expected in commands(text):
                said = self.run(shlex.split(command))
                assert matches(expected, said), f"$ {command}\n{said}\n--- the page says:\n{expected}"
        elif language == "diff":
            edit(Path(file), text)
        else:
            assert file, f"a block of {language} without a file"
            Path(file).write_text(text)

    def run(self, words: list[str]) -> str:
        """Run a command, as a shell would; returns what it prints."""
        match words:
            case ["weightmap", *rest]:
                result = weightmap(*rest)
                self.exit_code = result.exit_code
                return result.output
            case ["python", script]:
                runpy.run_path(script, run_name="__main__")
            case ["cmp", first, second]:
                assert filecmp.cmp(first, second, shallow=False)
            case ["export", "PYTHONPATH=."]:
                pass  # the fixture has done it for the scripts already
            case ["echo", "$?"]:
                return f"{self.exit_code}\n"
            case _:
                raise AssertionError(f"the page has a command that this test doesn't know: {shlex.join(words)}")
        return ""


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block, with what is shown below it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown


def matches(expected: str, said: str) -> bool:
    """Whether a command said what the page shows, where `...` stands for any text, and nothing shown for anything."""
    pattern = ".*".join(re.escape(part) for part in expected.strip().split("..."))
    return not expected.strip() or re.fullmatch(pattern, said.strip(), re.DOTALL) is not None


def edit(file: Path, text: str) -> None:
    """Change a file as a block of `diff` says."""
    lines = text.splitlines()
    old = "".join(f"{line[1:]}\n" for line in lines if line[:1] in {" ", "-"})
    new = "".join(f"{line[1:]}\n" for line in lines if line[:1] in {" ", "+"})
    content = file.read_text()
    assert content.count(old) == 1, f"{file} has these lines {content.count(old)} times:\n{old}"
    file.write_text(content.replace(old, new))


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield Reader()
    sys.modules.pop("my_model", None)


def test_the_page_does_what_it_says(reader: Reader) -> None:
    blocks = BLOCK.findall(PAGE.read_text())
    assert {language for language, _, _ in blocks} == {"python", "yaml", "diff", "console"}
    for language, file, text in blocks:
        reader.follow(language, file, text)


@pytest.mark.parametrize(
    ("expected", "said", "same"),
    [
        ("a\n  b\n", "a\n  b\n", True),
        ("a\n...\nd\n", "a\nb\nc\nd\n", True),
        ("took ... s\n", "took 0.3 s\n", True),
        ("", "anything", True),
        ("a\n", "a\nb\n", False),
        ("a\n...\nd\n", "a\nb\n", False),
    ],
)
def test_what_is_shown_is_compared(expected: str, said: str, same: bool) -> None:  # noqa: FBT001
    assert matches(expected, said) is same


def test_an_edit_of_what_is_not_there_fails(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("a\nb\nc\n")
    edit(file, " a\n-b\n+x\n+y\n")
    assert file.read_text() == "a\nx\ny\nc\n"
    with pytest.raises(AssertionError, match="0 times"):
        edit(file, "-b\n+x\n")
