"""The examples run as the docs say, in small."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, REPOSITORY / "examples" / script, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_fine_tuning_from_phis_weights_and_back_to_the_hub(tmp_path: Path) -> None:
    output = run("finetune_tenny.py", "--epochs", "3", "--output", str(tmp_path / "tuned"))
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", output)]
    assert losses[-1] < losses[0], "nothing was learned"
    assert "saved as PhiForCausalLM, loaded with transformers" in output
    assert sorted(path.name for path in (tmp_path / "tuned").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.slow
def test_a_lora_merged_on_both_sides() -> None:
    pytest.importorskip("peft")
    output = run("merge_lora.py")
    for what in ("the adapter in Tenny", "merged in Tenny", "merged in Phi", "saved as a Phi"):
        assert what in output
