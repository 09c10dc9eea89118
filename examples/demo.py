"""Phi-2 to Tenny and back, on a small random model: `make demo`.

Every command is shown as you would type it, and run. At the end the two models are asked the same questions, and every
byte that came back is compared with what was sent.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

PROMPT_TOKENS = 512
LOGIT_TOLERANCE = 1e-4


def show(title: str) -> None:
    """Print a heading."""
    print(f"\n\033[1m{title}\033[0m" if sys.stdout.isatty() else f"\n{title}", flush=True)


def weightmap(directory: Path, *arguments: str) -> None:
    """Show a command, and run it in the demo's directory."""
    print(f"$ weightmap {' '.join(arguments)}", flush=True)
    command = [sys.executable, str(REPOSITORY / "cli.py"), *arguments]
    subprocess.run(command, check=True, cwd=directory)


def make_phi2(directory: Path) -> None:
    """Let transformers make and save a small Phi-2 with random weights, in two shards."""
    script = REPOSITORY / "benchmarks" / "make_phi2.py"
    subprocess.run([sys.executable, str(script), "--small", str(directory)], check=True, capture_output=True)


def compare_logits(phi2: Path, tenny: Path) -> float:
    """Largest absolute difference of the two models' logits on 512-token prompts, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    from mappings.tenny import Tenny

    source = AutoModelForCausalLM.from_pretrained(phi2, dtype=torch.float32, attn_implementation="eager").eval()
    target = Tenny.from_pretrained(tenny, dtype=torch.float32).eval()
    prompt = torch.randint(0, source.config.vocab_size, (2, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return float((source(prompt).logits - target(prompt)).abs().max())


def count_equal_tensors(first: Path, second: Path) -> tuple[int, int]:
    """How many tensors of the first checkpoint the second holds with the same bytes, and how many there are."""
    from safetensors.torch import load_file

    before = {name: tensor for file in sorted(first.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    after = {name: tensor for file in sorted(second.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    same = sum(
        name in after and tensor.dtype == after[name].dtype and tensor.equal(after[name])
        for name, tensor in before.items()
    )
    return same, max(len(before), len(after))


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="work in this directory, and leave everything there")
    keep: Path | None = parser.parse_args().keep
    directory = keep or Path(tempfile.mkdtemp(prefix="weightmap-demo-"))
    directory.mkdir(parents=True, exist_ok=True)
    try:
        run(directory)
    finally:
        if keep is None:
            shutil.rmtree(directory)


def run(directory: Path) -> None:
    """All steps of the demo."""
    show("A small Phi-2 with random weights, as transformers saves it")
    make_phi2(directory / "phi-2")
    weightmap(directory, "inspect", "phi-2")
    show("What will happen, from the headers alone")
    weightmap(directory, "plan", "--spec", "phi2_to_tenny.yaml", "phi-2")
    show("There, and back by the same spec")
    weightmap(directory, "convert", "--spec", "phi2_to_tenny.yaml", "phi-2", "tenny")
    weightmap(directory, "convert", "--spec", "phi2_to_tenny.yaml", "--reverse", "tenny", "back")
    show("The proof")
    difference = compare_logits(directory / "phi-2", directory / "tenny")
    print(f"logits of transformers' Phi-2 and of Tenny: largest difference {difference:.1e} in float32")
    same, count = count_equal_tensors(directory / "phi-2", directory / "back")
    print(f"there and back: {same} of {count} tensors have the same bytes")
    if not (difference < LOGIT_TOLERANCE and same == count):
        raise SystemExit("the demo failed")


if __name__ == "__main__":
    main()
