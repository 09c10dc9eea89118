"""Convert a random model of Phi-2's real size to Tenny and back, and prove it: `make full-size`.

    python benchmarks/full_size.py [--directory .full-size]

Shows the process's own peak memory against what `plan` predicted, that both conversions give the bytes that numpy
gives, and that Tenny's logits equal transformers' in float32 on 512-token prompts. How long it takes, `make bench`
measures. Needs about 18 GB of disk and 14 GB of memory (for the logits; the conversion itself takes a few dozen
megabytes).
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.process import Measured, measure
from benchmarks.workplace import REPOSITORY, helper, weightmap

PROMPT_TOKENS = 512
MAX_NBYTES_ABOVE_PYTHON = 512_000_000
MAX_PREDICTION_ERROR = 0.2
LOGIT_TOLERANCE = 1e-4
SPEC = ("--spec", "phi2_to_tenny")


def predicted_peak(source: Path, *options: str) -> int:
    """Bytes of resident memory that `weightmap plan` predicts."""
    command = weightmap("plan", *SPEC, source, "--json", *options)
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(json.loads(text)["memory"]["peak"])


def convert(source: Path, output: Path, *options: str) -> Measured:
    """Convert in a process of its own."""
    shutil.rmtree(output, ignore_errors=True)
    return measure(weightmap("convert", "--quiet", *SPEC, source, output, *options), log=output.with_suffix(".log"))


def check_bytes(expected: str, source: Path, output: Path) -> None:
    """Stop unless an output holds what numpy makes of the source."""
    wanted = output.with_suffix(".json")
    wanted.write_text(helper("expected", expected, source))
    if text := helper("expected", "--compare", output, wanted):
        raise SystemExit(f"{output}: {text}")


def logit_difference(source: Path, output: Path) -> tuple[float, float]:
    """Largest absolute difference of logits, and the largest logit, in float32 on two 512-token prompts."""
    import torch
    from transformers import AutoModelForCausalLM

    from mappings.tenny import Tenny

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        phi = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
        prompt = torch.randint(0, phi.config.vocab_size, (2, PROMPT_TOKENS), generator=generator)
        expected = phi(prompt).logits
        del phi
        gc.collect()
        found = Tenny.from_pretrained(output, dtype=torch.float32).eval()(prompt)
    return float((found - expected).abs().max()), float(expected.abs().max())


def main() -> None:
    """Run everything and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=REPOSITORY / ".full-size")
    parser.add_argument("--small", action="store_true", help="a small model, to try this script out")
    arguments = parser.parse_args()
    root: Path = arguments.directory.resolve()
    source, output, back = root / "phi-2", root / "tenny", root / "back"
    root.mkdir(exist_ok=True)
    if not source.exists():
        print("making the checkpoint ...", flush=True)
        helper("make_phi2", source, *(["--small"] if arguments.small else []))
    baseline = measure([sys.executable, "-c", "pass"], log=root / "python.log").resident
    nbytes = sum(file.stat().st_size for file in source.iterdir())
    print(f"{nbytes / 1e9:.2f} GB; bare Python takes {baseline / 1e6:.0f} MB", flush=True)
    for name, start, end, expected, options in (
        ("there", source, output, "tenny", ()),
        ("back", output, back, "same", ("--reverse",)),
    ):
        predicted = predicted_peak(start, *options)
        found = convert(start, end, *options)
        print(
            f"{name}: {found.wall:.2f} s; peak {found.resident / 1e6:.0f} MB, "
            f"predicted {predicted / 1e6:.0f} MB ({predicted / found.resident - 1:+.0%})",
            flush=True,
        )
        if found.resident - baseline > MAX_NBYTES_ABOVE_PYTHON:
            raise SystemExit("more than 512 MB above Python's own memory")
        if abs(predicted / found.resident - 1) > MAX_PREDICTION_ERROR:
            raise SystemExit("the prediction is off by more than 20 %")
        check_bytes(expected, source, end)
        print(f"{name}: every tensor has the bytes that numpy gives", flush=True)
    difference, largest = logit_difference(source, output)
    print(f"logits: largest difference {difference:.2e}, largest logit {largest:.2f}")
    if not difference < LOGIT_TOLERANCE:
        raise SystemExit("the logits differ")


if __name__ == "__main__":
    main()
