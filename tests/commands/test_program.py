"""The group: it answers at once, it lists what there is, and it knows each command's line by heart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

import converters
from converters.commands import main, program
from converters.commands.guard import EXIT_CODES
from tests.commands.support import REPOSITORY, SPEC, environment, run_weightmap, weightmap, write_checkpoint

HEAVY = ("torch", "numpy", "rich", "transformers", "huggingface_hub", "safetensors")


def modules_after(*words: str | Path) -> set[str]:
    """The modules that a command has imported when it is done."""
    code = (
        "import sys\nfrom converters.commands import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n"
        "print('\\n' + ' '.join(sys.modules))"
    )
    line = [sys.executable, "-c", code, *map(str, words)]
    output = subprocess.run(line, capture_output=True, text=True, check=True, env=environment()).stdout
    return set(output.splitlines()[-1].split())


def test_looking_at_things_imports_no_heavy_library(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "phi", shards=2)
    for words in (
        ("--help",),
        ("convert", "--help"),
        ("inspect", source),
        ("detect", source),
        ("plan", "--to", "tenny", source),
        ("plan", "--spec", SPEC, source),
        ("plan", "--spec", SPEC, source, "--dtype", "bfloat16", "--json"),
        ("specs",),
        ("specs", "show", SPEC),
    ):
        assert not {name.partition(".")[0] for name in modules_after(*words)} & set(HEAVY), words


def test_help_imports_nothing_of_the_engine() -> None:
    assert {name for name in modules_after("--help") if name.startswith("converters")} == {
        "converters",
        "converters.commands",
        "converters.commands.guard",
        "converters.commands.program",
        "converters.text",
    }


def test_a_conversion_imports_nothing_of_what_it_does_not_touch(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "phi")
    names = modules_after("convert", "--spec", "phi2_to_litgpt", "--format", "safetensors", source, tmp_path / "out")
    others = (
        "adapters.",
        "in_place",
        "storage.dcp_",
        "storage.hub",
        "storage.npz_",
        "storage.object_store",
        "storage.torch_",
        "uploads",
        "verify",
    )
    assert "converters.storage.safetensors_writer" in names
    assert not [name for name in names if name.startswith(tuple(f"converters.{other}" for other in others))]
    assert not {name.partition(".")[0] for name in names} & set(HEAVY)


def test_the_list_of_commands_says_what_the_commands_say() -> None:
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        assert command.help is not None
        assert command.help.splitlines()[0] == program._COMMANDS[name].help


def test_a_command_whose_module_is_not_installed_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(program._COMMANDS, "verify", program._Entry("converters.commands.no_such_module", "Help."))
    assert "verify" not in main.list_commands(click.Context(main))
    assert weightmap("--help").exit_code == 0
    assert "No such command 'verify'" in weightmap("verify").stderr


def test_an_unknown_command_gets_the_nearest_one_as_a_hint() -> None:
    result = weightmap("convrt")
    assert result.exit_code == 2
    assert "Did you mean 'convert'?" in result.stderr


def test_help_is_shown_without_a_command_and_for_each_of_them() -> None:
    assert "Commands:" in weightmap().output
    for name in main.list_commands(click.Context(main)):
        result = weightmap(name, "-h")
        assert result.exit_code == 0
        assert result.output.startswith(f"Usage: weightmap {name}")


def test_version() -> None:
    assert weightmap("--version").output == f"weightmap, version {converters.__version__}\n"


def test_exit_codes_are_in_the_help_and_in_the_docs() -> None:
    codes = [line.split(None, 1) for line in EXIT_CODES.splitlines()[2:]]
    assert len(codes) == 11
    page = (REPOSITORY / "docs" / "cli.md").read_text()
    for output in (weightmap("--help").output, weightmap("convert", "--help").output):
        for code, meaning in codes:
            assert f" {code}  {meaning.split('(')[0].strip()[:40]}" in output
    for code, _ in codes:
        assert f"| {code} |" in page


def test_convert_is_a_program_of_its_own() -> None:
    line = [sys.executable, "-c", "from converters.commands import convert_main; convert_main()", "--help"]
    result = subprocess.run(line, capture_output=True, text=True, check=True, env=environment())
    assert "[OPTIONS] SOURCE OUTPUT" in result.stdout
    missing = subprocess.run(
        [*line[:-1], "--spec", SPEC, "nowhere", "out"], capture_output=True, text=True, check=False, env=environment()
    )
    assert missing.returncode == 7
    assert missing.stderr.startswith("Error: nowhere: ")


def test_piped_output_has_no_colours(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "phi")
    for words in (
        ("plan", "--spec", SPEC, source),
        ("inspect", source),
        ("specs", "show", SPEC),
        ("inspect", "nowhere"),
    ):
        result = run_weightmap(*words, FORCE_COLOR="1")
        assert "\x1b" not in result.stdout + result.stderr


def test_the_shell_completes_commands_options_and_shipped_specs() -> None:
    def complete(line: str) -> str:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split())), "_CLI_PY_COMPLETE": "bash_complete"}
        return run_weightmap(**words).stdout

    assert "plain,convert" in complete("weightmap ").splitlines()
    assert "plain,detect" in complete("weightmap ").splitlines()
    assert f"plain,{SPEC}" in complete("weightmap convert --spec ").splitlines()
    for command in ("convert", "plan", "verify"):
        assert {"plain,tenny", "plain,hf/phi"} <= set(complete(f"weightmap {command} --to ").splitlines())
