"""Convert a random model of Phi-2's real size to Tenny and back, and measure it: `make full-size`.

    python benchmarks/full_size.py [--directory .full-size] [--rounds 3]

Shows time against `cp` of the same bytes, the process's own peak memory against what `plan` predicted, that Tenny's
logits equal transformers' in float32 on 512-token prompts, and that the way back gives the same bytes in every tensor.
Needs about 18 GB of disk and 14 GB of memory (for the logits; the conversion itself takes a few dozen megabytes).
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PROMPT_TOKENS = 512
MAX_NBYTES_ABOVE_PYTHON = 512_000_000
MAX_PREDICTION_ERROR = 0.2
LOGIT_TOLERANCE = 1e-4
BASELINE = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
CONVERT = """
import json, sys, time
import converters
from pathlib import Path
source, output, reverse = sys.argv[1], sys.argv[2], sys.argv[3] == "reverse"
start = time.perf_counter()
converters.convert(converters.load_spec("phi2_to_tenny"), source, output, reverse=reverse)
seconds = time.perf_counter() - start
peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "peak_nbytes": int(peak) * 1024}))
"""


def run(*command: str) -> str:
    """Run a command of this Python and return what it prints."""
    return subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True, cwd=REPOSITORY).stdout


def predicted_peak(source: Path, *, reverse: bool) -> int:
    """Bytes of resident memory that `weightmap plan` predicts."""
    options = ["--reverse"] if reverse else []
    text = run("cli.py", "plan", "--spec", "phi2_to_tenny", str(source), "--json", *options)
    return int(json.loads(text)["memory"]["peak"])


def convert(source: Path, output: Path, *, reverse: bool) -> dict[str, float]:
    """Convert in a process of its own, which reports its own peak."""
    shutil.rmtree(output, ignore_errors=True)
    result: dict[str, float] = json.loads(run("-c", CONVERT, str(source), str(output), "reverse" if reverse else "-"))
    return result


def copy_seconds(source: Path, output: Path) -> float:
    """Seconds that `cp` and a sync of the copy take for the same bytes, since a conversion ends on the disk too."""
    shutil.rmtree(output, ignore_errors=True)
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(output)], check=True)  # noqa: S607 - the cp that users have
    subprocess.run(["sync", *map(str, sorted(output.iterdir()))], check=True)  # noqa: S607 - likewise
    seconds = time.perf_counter() - start
    shutil.rmtree(output)
    return seconds


def tensor_digests(directory: Path) -> dict[str, str]:
    """A digest of every tensor's dtype, shape and bytes, read with the safetensors library."""
    from safetensors import safe_open

    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - safe_open is no mapping
                tensor = opened.get_tensor(name)
                head = f"{tensor.dtype} {list(tensor.shape)} ".encode()
                found[name] = hashlib.blake2b(head + tensor.view(-1).view(_bytes()).numpy().tobytes()).hexdigest()
    return found


def _bytes() -> object:
    import torch

    return torch.uint8


def logit_difference(source: Path, output: Path) -> tuple[float, float]:
    """Largest absolute difference of logits, and the largest logit, in float32 on two 512-token prompts."""
    import torch
    from transformers import AutoModelForCausalLM

    sys.path.insert(0, str(REPOSITORY))
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
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=REPOSITORY / ".full-size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a small model, to try this script out")
    arguments = parser.parse_args()
    root: Path = arguments.directory.resolve()
    source, output, back = root / "phi-2", root / "tenny", root / "back"
    root.mkdir(exist_ok=True)
    if not source.exists():
        print("making the checkpoint ...", flush=True)
        run("benchmarks/make_phi2.py", str(source), *(["--small"] if arguments.small else []))
    nbytes = sum(file.stat().st_size for file in source.iterdir())
    baseline = int(run("-c", BASELINE)) * 1024
    print(f"{nbytes / 1e9:.2f} GB; bare Python takes {baseline / 1e6:.0f} MB", flush=True)
    for name, start, end, reverse in (("there", source, output, False), ("back", output, back, True)):
        predicted = predicted_peak(start, reverse=reverse)
        ratios, seconds, peaks = [], [], []
        for _ in range(arguments.rounds):
            copied = copy_seconds(start, root / "copy")
            result = convert(start, end, reverse=reverse)
            ratios.append(result["seconds"] / copied)
            seconds.append(result["seconds"])
            peaks.append(result["peak_nbytes"])
        peak = max(peaks)
        print(
            f"{name}: {statistics.median(seconds):.2f} s, {statistics.median(ratios):.2f} of cp + sync "
            f"(median of {arguments.rounds} pairs, {min(ratios):.2f} to {max(ratios):.2f}); "
            f"peak {peak / 1e6:.0f} MB, predicted {predicted / 1e6:.0f} MB ({predicted / peak - 1:+.0%})",
            flush=True,
        )
        if peak - baseline > MAX_NBYTES_ABOVE_PYTHON:
            raise SystemExit("more than 512 MB above Python's own memory")
        if abs(predicted / peak - 1) > MAX_PREDICTION_ERROR:
            raise SystemExit("the prediction is off by more than 20 %")
    if tensor_digests(source) != tensor_digests(back):
        raise SystemExit("the way back gave other bytes")
    print("the way back gives the same bytes in every tensor", flush=True)
    difference, largest = logit_difference(source, output)
    print(f"logits: largest difference {difference:.2e}, largest logit {largest:.2f}")
    if not difference < LOGIT_TOLERANCE:
        raise SystemExit("the logits differ")


if __name__ == "__main__":
    main()
