"""Fine-tune Tenny from Phi-2's weights on a toy sentiment set, save it for the Hub, and load it with transformers.

    python examples/finetune_tenny.py                       # a small random Phi, seconds on a CPU
    python examples/finetune_tenny.py --phi phi-2/          # the real one

No file is written between Phi-2 and Tenny: the weights go straight into the model, and the trained model is saved in
Phi's layout by the same spec, run backwards.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import converters  # noqa: E402 - the checkout goes before an installed copy
from mappings.tenny import Tenny, TennyConfig  # noqa: E402

HELD_OUT = 12
"""Sentences that are only asked about, half of them with either label."""


def make_small_phi(directory: Path) -> None:
    """Let transformers make and save a small Phi with random weights."""
    from transformers import PhiConfig, PhiForCausalLM

    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=257, hidden_size=96, intermediate_size=200, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=128, partial_rotary_factor=0.5,
        resid_pdrop=0.0, embd_pdrop=0.0, bos_token_id=256, eos_token_id=256,
    )  # fmt: skip
    PhiForCausalLM(config).save_pretrained(directory)


def load_tenny(phi: Path) -> tuple[Tenny, dict[str, object]]:
    """A Tenny with Phi's weights, in float32; and its config."""
    spec = converters.load_spec("phi2_to_tenny")
    with converters.open_converted(spec, phi) as converted:
        config = dict(converted.config or {})
    model = Tenny(TennyConfig.from_dict(config))
    converters.load_into(model, spec, phi, dtype="float32")
    # Phi has one norm where Tenny has two: they must stay equal in training, or there is no way back.
    for layer in model.transformer_encoder.layers:
        layer.norm2 = layer.norm1
    return model, config


def tokenizer_of(phi: Path) -> Callable[[str], list[int]]:
    """The checkpoint's tokenizer, where it has one; else the bytes of the text."""
    if not (phi / "tokenizer.json").exists():
        return lambda text: list(text.encode())
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(phi)
    return lambda text: list(tokenizer(text)["input_ids"])


def read_sentences(tokenize: Callable[[str], list[int]]) -> list[tuple[Tensor, int]]:
    """Each sentence as token ids [length], and the token that says what it is: `+` or `-`."""
    with (Path(__file__).parent / "sentiment.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [(torch.tensor(tokenize(row["text"] + "\n")), tokenize(row["label"])[0]) for row in rows]


def answers(model: nn.Module, sentences: list[tuple[Tensor, int]]) -> Tensor:
    """Logits [sentences, vocab] of what follows each sentence.

    What stands to the right of a token doesn't reach it, so that padding on the right needs no mask.
    """
    out = model(nn.utils.rnn.pad_sequence([tokens for tokens, _ in sentences], batch_first=True))
    logits: Tensor = out if isinstance(out, Tensor) else out.logits
    return torch.stack([row[len(tokens) - 1] for row, (tokens, _) in zip(logits, sentences, strict=True)])


def labels(sentences: list[tuple[Tensor, int]]) -> Tensor:
    """The labels' tokens [sentences]."""
    return torch.tensor([label for _, label in sentences])


def accuracy(model: nn.Module, sentences: list[tuple[Tensor, int]]) -> float:
    """Share of the sentences whose label is the most likely next token."""
    with torch.no_grad():
        return float((answers(model, sentences).argmax(-1) == labels(sentences)).float().mean())


def train(model: nn.Module, sentences: list[tuple[Tensor, int]], epochs: int) -> None:
    """Plain AdamW, one step for each eight sentences."""
    order = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for epoch in range(1, epochs + 1):
        losses = []
        for batch in torch.randperm(len(sentences), generator=order).split(8):
            chosen = [sentences[number] for number in batch.tolist()]
            loss = nn.functional.cross_entropy(answers(model, chosen), labels(chosen))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"  epoch {epoch:2}: loss {sum(losses) / len(losses):.3f}", flush=True)


def main() -> None:
    """Load, train, save, reload, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phi", type=Path, help="Phi-2 as on the Hub; a small random one is made without it")
    parser.add_argument("--output", type=Path, help="where the result goes; a temporary directory without it")
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        phi = options.phi or Path(scratch) / "phi"
        output = options.output or Path(scratch) / "phi-tuned"
        if options.phi is None:
            make_small_phi(phi)
        model, config = load_tenny(phi)
        sentences = read_sentences(tokenizer_of(phi))
        known, held_out = sentences[:-HELD_OUT], sentences[-HELD_OUT:]
        print(f"Tenny with Phi's weights, {sum(one.numel() for one in model.parameters()):,} parameters")
        train(model, known, options.epochs)
        print(f"right: {accuracy(model, known):.0%} of the training set, {accuracy(model, held_out):.0%} of the rest")

        spec = converters.load_spec("phi2_to_tenny")
        converters.save_converted(spec, model.state_dict(), output, reverse=True, config=config)
        from transformers import AutoModelForCausalLM

        reloaded = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            difference = float((answers(model.eval(), sentences) - answers(reloaded, sentences)).abs().max())
        saved_as = json.loads((output / "config.json").read_text())["architectures"][0]
        print(f"saved as {saved_as}, loaded with transformers: logits differ by {difference:.1e} at most")
        if difference > 1e-3:  # noqa: PLR2004 - what float32 leaves of sums in another order, for a model of this size
            raise SystemExit("they are not the same model")


if __name__ == "__main__":
    main()
