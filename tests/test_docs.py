"""The docs are run: every spec in them is read and turned around, every command in them is one that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from converters.errors import SpecError
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
    if spec.exactness != "one-way":
        assert spec.inverse().inverse() == spec
        return
    with pytest.raises(SpecError) as caught:
        spec.inverse()
    assert all(problem.hint for problem in caught.value.problems), "each rule says why it has no way back"


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


def test_the_python_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    import converters
    from mappings.tenny import Tenny
    from tests.models import tiny_phi

    monkeypatch.chdir(tmp_path)
    model = tiny_phi(seed=3)
    model.save_pretrained("phi-2")
    with converters.open_converted(converters.load_spec("phi2_to_tenny"), "phi-2") as lazy:
        converters.convert(converters.load_spec("phi2_to_tenny"), "phi-2", "first")
        assert lazy.config is not None
    tenny = Tenny.from_pretrained("first")
    for parameter in tenny.parameters():
        parameter.data.zero_()
    (example,) = [text for where, text in blocks("python") if where.startswith("README.md")]
    variables = {"model": model, "tenny": tenny}
    exec(compile(example, "README.md", "exec"), variables)  # noqa: S102 - our own page
    prompt = torch.arange(20).reshape(1, 20)
    with torch.no_grad():
        assert torch.allclose(tenny(prompt), model(prompt).logits, atol=1e-5)
    assert Path("tenny/model.safetensors").exists()
    assert isinstance(variables["state_dict"], dict)
