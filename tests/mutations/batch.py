"""What one process does of `python -m tests.mutations`; cases go by name, since their models are made by functions."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from tests.models_pairs import PAIRS
from tests.mutations.cases import CASES, Case
from tests.mutations.layouts import LayoutResult, layout_result
from tests.mutations.mutants import MUTANTS
from tests.mutations.trial import Correct, Trial, name_of, try_correct, try_mutant

PRECISIONS: tuple[tuple[torch.dtype, str | None], ...] = (
    (torch.float32, None),
    (torch.float16, None),
    (torch.bfloat16, None),
    (torch.float32, "float16"),
    (torch.float32, "bfloat16"),
)


def mutants_of(name: str, seed: int, device: str) -> list[Trial]:
    """Every mutant that a case can have."""
    case = _case(name)
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        case.write(scratch / "correct", seed)
        mutants = [mutant for mutant in MUTANTS if mutant.applies(case)]
        return [try_mutant(case, each, scratch / "correct", scratch / "mutant", device=device) for each in mutants]


def correct_of(name: str, seed: int, device: str) -> list[Correct]:
    """A case's correct conversions in every precision."""
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory) / "correct"
        return [
            try_correct(_case(name), seed, scratch, stored=stored, cast=cast, device=device)
            for stored, cast in PRECISIONS
        ]


def layout_of(name: str) -> LayoutResult:
    """Every kind of wrong conversion of a pair."""
    pair = next(pair for pair in PAIRS if pair.name == name)
    with tempfile.TemporaryDirectory() as directory:
        return layout_result(pair, Path(directory))


def _case(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


__all__ = ["PRECISIONS", "correct_of", "layout_of", "mutants_of", "name_of"]
