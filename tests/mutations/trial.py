"""Runs the verifier on a mutant, or on a correct conversion, and says what each level made of it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from converters.convert import Options
from converters.tensor_info import parse_dtype
from converters.verify.report import LEVELS, LevelResult, Report
from converters.verify.run import verify
from tests.mutations.cases import Case
from tests.mutations.changes import of_layer
from tests.mutations.files import Checkpoint, changed_keys
from tests.mutations.mutants import Mutant


@dataclass(frozen=True, slots=True)
class Trial:
    """One mutant of one architecture.

    Attributes:
        verdicts: by level: `pass`, `fail` or `not proved`.
        located: for each level that can say where, whether it named the right place and no other; None where the
            mutant isn't local, or the level didn't fail.
        gate: the gate of the logits that decided.
        problem: what is wrong with the verifier here; empty where it did what it should.
    """

    case: str
    mutant: str
    what: str
    level: str
    equivalent: str | None
    verdicts: Mapping[str, str]
    located: Mapping[str, bool | None]
    gate: str
    problem: str


@dataclass(frozen=True, slots=True)
class Correct:
    """One correct conversion: which levels raised a false alarm, and the largest values that gates measured."""

    case: str
    precision: str
    seed: int
    alarms: tuple[str, ...]
    measured: Mapping[str, float]


def run_levels(
    case: Case,
    directory: Path,
    levels: tuple[str, ...] = LEVELS,
    *,
    device: str = "cpu",
    tokens: int = 512,
    cast: str | None = None,
) -> Report:
    """Verify `directory/target` against `directory/source`."""
    return verify(
        case.load_spec(),
        directory / "source",
        directory / "target",
        levels=levels,
        source_model=case.source_model,
        target_model=case.target_model,
        device=device,
        prompt_tokens=tokens,
        converted_with=Options(dtype=parse_dtype(cast)) if cast else None,
        threads=1,
    )


def try_mutant(
    case: Case, mutant: Mutant, correct: Path, scratch: Path, *, device: str = "cpu", tokens: int = 512
) -> Trial:
    """Change a copy of a correct conversion, and verify it.

    Args:
        correct: holds `source` and `target`.
        scratch: an empty or absent directory, which is removed at the end.
    """
    shutil.copytree(correct, scratch)
    checkpoint = Checkpoint.read(scratch / "target")
    before = {key: tensor.clone() for key, tensor in checkpoint.tensors.items()}
    if mutant.change is not None:
        mutant.change(checkpoint, case)
        checkpoint.write()
    if mutant.damage is not None:
        mutant.damage(checkpoint, case)
    changed = changed_keys(before, checkpoint.tensors)
    report = run_levels(case, scratch, device=device, tokens=tokens)
    shutil.rmtree(scratch)
    results = {result.level: result for result in report.levels}
    verdicts = {level: str(result.verdict) for level, result in results.items()}
    located = {level: _located(results[level], changed, case) if mutant.local else None for level in LEVELS[1:3]}
    gate = results["logits"].gate
    said = gate.name if gate is not None else results["logits"].reason
    if not changed and mutant.damage is None and mutant.level != "—":
        problem = "the mutant changes nothing"
    else:
        problem = _problem(mutant, verdicts, located, results)
    return Trial(case.name, mutant.name, mutant.what, mutant.level, mutant.equivalent, verdicts, located, said, problem)


def _located(result: LevelResult, changed: set[str], case: Case) -> bool | None:
    if str(result.verdict) != "fail":
        return None
    expected = {key.rpartition(".")[0] for key in changed} if result.level == "modules" else changed
    layers = {of_layer(key, case) for key in changed}
    # The way back names the source's tensors, too: those are the same places by their other names.
    named = [each for each in result.errors if each.kind != "source-not-restored"]
    return {each.where for each in named} == expected and {each.layer for each in named} == layers


def _problem(
    mutant: Mutant, verdicts: Mapping[str, str], located: Mapping[str, bool | None], results: Mapping[str, LevelResult]
) -> str:
    wrong = []
    if mutant.level != "—" and verdicts[mutant.level] != "fail":
        wrong.append(f"not caught by {mutant.level}: {results[mutant.level].reason}")
    if mutant.equivalent is None:
        needs_function = mutant.name not in UNCHANGED_FUNCTION
        if needs_function and verdicts["logits"] != "fail":
            wrong.append(f"not caught by logits: {results['logits'].reason}")
    else:
        wrong.extend(f"false alarm of {level}" for level in ("logits",) if verdicts[level] != "pass")
    wrong.extend(f"not located by {level}" for level, found in located.items() if found is False)
    return "; ".join(wrong)


UNCHANGED_FUNCTION = frozenset({"an index that names a ghost"})
"""Mutants that are wrong as files, while what can be loaded from them computes the same."""


def try_correct(
    case: Case, seed: int, scratch: Path, *, stored: torch.dtype = torch.float32, cast: str | None = None,
    device: str = "cpu", tokens: int = 512,
) -> Correct:  # fmt: skip
    """Convert a model correctly, and verify it; any level that doesn't pass raises a false alarm."""
    case.write(scratch, seed, stored, cast)
    report = run_levels(case, scratch, device=device, tokens=tokens, cast=cast)
    shutil.rmtree(scratch)
    alarms = tuple(f"{result.level}: {result.reason}" for result in report.levels if str(result.verdict) != "pass")
    measured = {
        f"{result.level}: {gate.name}": 1 - gate.measured if gate.at_least else gate.measured
        for result in report.levels
        for gate in result.gates
        if result.level in LEVELS[2:]
    }
    return Correct(case.name, name_of(stored, cast), seed, alarms, measured)


def name_of(stored: torch.dtype, cast: str | None) -> str:
    """A conversion's precision, as in `float32 → bfloat16`."""
    name = str(stored).removeprefix("torch.")
    return f"{name} → {cast}" if cast else name
