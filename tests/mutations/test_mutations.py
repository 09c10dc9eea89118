"""The short version of `python -m tests.mutations`: every mutant, on shorter prompts, and correct ones on one seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.mutations.cases import CASES, PHI, Case
from tests.mutations.mutants import MUTANTS, Mutant
from tests.mutations.table import render
from tests.mutations.trial import Correct, Trial, try_correct, try_mutant

# The long prompt then has as many tokens as the smallest of the models has positions.
TOKENS = 256
PAIRS = [(case, mutant) for case in CASES for mutant in MUTANTS if mutant.applies(case)]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {case.name: tmp_path_factory.mktemp("correct") for case in CASES}


def correct_output(outputs: dict[str, Path], case: Case) -> Path:
    directory = outputs[case.name]
    if not (directory / "target").exists():
        case.write(directory, seed=7)
    return directory


@pytest.mark.parametrize(("case", "mutant"), PAIRS, ids=[f"{case.name}: {mutant.name}" for case, mutant in PAIRS])
def test_mutant(case: Case, mutant: Mutant, outputs: dict[str, Path], tmp_path: Path) -> None:
    trial = try_mutant(case, mutant, correct_output(outputs, case), tmp_path / "mutant", tokens=TOKENS)
    assert not trial.problem, trial.problem


@pytest.mark.parametrize("cast", [None, "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_false_alarm(case: Case, cast: str | None, tmp_path: Path) -> None:
    assert not try_correct(case, 31, tmp_path / "correct", cast=cast, tokens=TOKENS).alarms


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_false_alarm_in_16_bits(case: Case, stored: torch.dtype, tmp_path: Path) -> None:
    assert not try_correct(case, 32, tmp_path / "correct", stored=stored, tokens=TOKENS).alarms


def test_every_kind_is_used_and_there_are_enough() -> None:
    used = {mutant.name for _, mutant in PAIRS}
    assert used == {mutant.name for mutant in MUTANTS}
    assert len({mutant.name for mutant in MUTANTS if mutant.equivalent is None}) >= 25


def test_the_page_names_what_is_wrong() -> None:
    verdicts = {"accounting": "pass", "roundtrip": "fail", "modules": "fail", "logits": "pass"}
    located = {"roundtrip": True, "modules": None}
    trial = Trial("Phi", "a mutant", "somewhere", "roundtrip", None, verdicts, located, "KL", "not caught by logits")
    page = render([trial], [Correct("Phi", "float32", 3, ("logits: NaN",), {"logits: KL": 1.0})], "cpu", 7)
    assert "| a mutant: somewhere | roundtrip | 0/1 | 1/1 | 1/1 | 0/1 | 1/1 | - | 0/1 |" in page
    assert "- Phi: a mutant: not caught by logits" in page
    assert "- Phi, float32, seed 3: logits: NaN" in page


@pytest.fixture(scope="module")
def on_gpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gpu")
    PHI.write(directory, seed=7)
    return directory


@pytest.mark.gpu
@pytest.mark.parametrize(
    "mutant", [mutant for mutant in MUTANTS if mutant.applies(PHI)], ids=lambda mutant: mutant.name
)
def test_mutant_on_a_gpu(mutant: Mutant, on_gpu: Path, tmp_path: Path) -> None:
    trial = try_mutant(PHI, mutant, on_gpu, tmp_path / "mutant", device="cuda")
    assert not trial.problem, trial.problem


@pytest.mark.gpu
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_no_false_alarm_on_a_gpu(stored: torch.dtype, tmp_path: Path) -> None:
    assert not try_correct(PHI, 33, tmp_path / "correct", stored=stored, device="cuda").alarms
