"""Train a LoRA for Phi with PEFT, carry it to Tenny by the spec that converts the model, and merge it on both sides.

    python examples/merge_lora.py

Merging and then converting gives the same model as converting and then merging.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "examples")]

from finetune_tenny import answers, load_tenny, make_small_phi, read_sentences, tokenizer_of, train  # noqa: E402

import converters  # noqa: E402 - the checkout goes before an installed copy

EPOCHS = 3
TOLERANCE = 1e-4
"""Of logits in float32: B times A is added to a weight in another order of sums."""


def main() -> None:
    """Train, convert the adapter, merge twice, compare."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    spec = converters.load_spec("phi2_to_tenny")
    with tempfile.TemporaryDirectory() as scratch:
        phi, lora, lora_of_tenny = (Path(scratch) / name for name in ("phi", "lora", "lora-tenny"))
        make_small_phi(phi)
        sentences = read_sentences(tokenizer_of(phi))
        base = AutoModelForCausalLM.from_pretrained(phi, dtype=torch.float32, attn_implementation="eager")
        # Not q, k and v: Tenny has them in one matrix, and three updates of low rank are none of that rank together.
        settings = LoraConfig(r=4, lora_alpha=8, target_modules=["fc1", "fc2", "dense"])
        adapted = get_peft_model(base, settings)
        train(adapted, sentences, EPOCHS)
        adapted.eval().save_pretrained(lora)

        converters.convert(spec, lora, lora_of_tenny, config=base.config.to_dict())
        tenny, config = load_tenny(phi)
        with_adapter = PeftModel.from_pretrained(tenny, lora_of_tenny).eval()
        with torch.no_grad():
            wanted = answers(adapted, sentences)
            compare("the adapter in Tenny", answers(with_adapter, sentences), wanted)
            merged: nn.Module = with_adapter.merge_and_unload()
            compare("merged in Tenny", answers(merged, sentences), wanted)

            merged_phi = adapted.merge_and_unload()
            compare("merged in Phi", answers(merged_phi, sentences), wanted)
            state = converters.convert_state_dict(spec, merged_phi.state_dict(), config=merged_phi.config.to_dict())
            largest = max(float((state[name] - tensor).abs().max()) for name, tensor in merged.state_dict().items())
            print(f"merged and converted, or converted and merged: weights differ by {largest:.1e} at most")
            if largest > TOLERANCE:
                raise SystemExit("they are not the same model")
        converters.save_converted(spec, merged.state_dict(), Path(scratch) / "merged", reverse=True, config=config)
        print("and Tenny with the LoRA in it is saved as a Phi")


def compare(name: str, found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Print by how much logits differ from those of Phi with its adapter."""
    difference = float((found - wanted).abs().max())
    print(f"{name}: logits differ by {difference:.1e} at most")
    if difference > TOLERANCE:
        raise SystemExit("they are not the same model")


if __name__ == "__main__":
    main()
