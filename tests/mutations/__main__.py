"""`python -m tests.mutations`: every mutant and every correct conversion; prints the table and writes the page."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import transformers

from tests.models_pairs import PAIRS
from tests.mutations.batch import PRECISIONS, correct_of, layout_of, mutants_of, name_of
from tests.mutations.cases import CASES
from tests.mutations.mutants import MUTANTS
from tests.mutations.table import render, render_layouts

PAGE = Path(__file__).parent.parent.parent / "docs" / "mutations.md"


def main() -> int:
    """Run all of it; the exit status is 1 if anything isn't as it should be."""
    parser = argparse.ArgumentParser(description="Mutation testing of the verifier.")
    parser.add_argument("--seeds", type=int, default=20, help="seeds of the correct conversions (default: 20)")
    parser.add_argument("--seed", type=int, default=7, help="seed of the models that mutants are made from")
    parser.add_argument("--device", default="cpu", help="what models run on")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, help="where to write the page (default: docs/mutations.md)")
    arguments = parser.parse_args()
    started = time.perf_counter()
    # One thread each: with more, small models wait for each other.
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        jobs = [pool.submit(mutants_of, case.name, arguments.seed, arguments.device) for case in CASES]
        others = [
            pool.submit(correct_of, case.name, seed, arguments.device)
            for seed in range(arguments.seeds)
            for case in CASES
        ]
        layouts = [pool.submit(layout_of, pair.name) for pair in PAIRS]
        trials = [trial for job in jobs for trial in job.result()]
        correct = [each for job in others for each in job.result()]
        shelf = [job.result() for job in layouts]
    order = {mutant.name: number for number, mutant in enumerate(MUTANTS)}
    trials.sort(key=lambda trial: order[trial.mutant])
    names = {case.name: number for number, case in enumerate(CASES)}
    correct.sort(key=lambda each: (names[each.case], [name_of(*some) for some in PRECISIONS].index(each.precision)))
    device = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else platform.machine()
    where = f"{arguments.device} ({device}), torch {torch.__version__}, transformers {transformers.__version__}"
    page = render(trials, correct, where, arguments.seed) + render_layouts(shelf)
    sys.stdout.write(page)
    (arguments.output or PAGE).write_text(page)
    sys.stderr.write(f"{time.perf_counter() - started:.0f} seconds\n")
    return int(
        any(trial.problem for trial in trials)
        or any(each.alarms for each in correct)
        or not all(each.right for each in shelf)
    )


if __name__ == "__main__":
    sys.exit(main())
