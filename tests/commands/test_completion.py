"""The completion scripts."""

from __future__ import annotations

import pytest

from tests.commands.support import weightmap


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell(shell: str) -> None:
    result = weightmap("completion", shell)
    assert result.exit_code == 0
    assert "_WEIGHTMAP_COMPLETE" in result.stdout
    assert "_CONVERT_COMPLETE" in weightmap("completion", shell, "--program", "convert").stdout


def test_the_users_own_shell_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert "function _weightmap_completion" in weightmap("completion").stdout
    monkeypatch.setenv("SHELL", "/usr/bin/tcsh")
    result = weightmap("completion")
    assert result.exit_code == 2
    assert "bash, zsh, fish" in result.stderr
