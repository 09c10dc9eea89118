"""The docs are run: every spec in them is read and turned around, every command in them is one that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from converters.spec_file import parse_spec

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    """The code blocks in a language, each with where it stands."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            found.append((f"{page.relative_to(REPOSITORY)}:{line}", match.group(1)))
    return found


@pytest.mark.parametrize(("where", "text"), [block for block in blocks("yaml") if block[1].startswith("weightmap:")])
def test_specs_in_the_docs_are_valid_both_ways(where: str, text: str) -> None:
    spec = parse_spec(text, where)
    assert spec.inverse().inverse() == spec


def test_there_are_specs_in_the_docs() -> None:
    assert len(blocks("yaml")) > 3


def test_every_link_in_the_docs_leads_somewhere() -> None:
    missing = []
    for page in PAGES:
        targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        missing.extend(f"{page.name}: {target}" for target in targets if not (page.parent / target).exists())
    assert missing == []


@pytest.mark.parametrize(("where", "text"), blocks("(?:console|sh|bash)"))
def test_commands_in_the_docs_exist_with_their_options(where: str, text: str) -> None:
    from click import Command, Context, Group

    from converters.commands import main

    for line in text.splitlines():
        words = line.removeprefix("$ ").split("#")[0].split()
        if words[:1] != ["weightmap"]:
            continue
        command: Command = main
        context = Context(command)
        rest = words[1:]
        while isinstance(command, Group) and rest and not rest[0].startswith("-"):
            found = command.get_command(context, rest[0])
            assert found is not None, f"{where}: {line}"
            command, rest = found, rest[1:]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help", "--version"}
        unknown = {word.split("=")[0] for word in rest if word.startswith("--")} - known
        assert not unknown, f"{where}: {line}: {unknown}"
