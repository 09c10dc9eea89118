"""Write a random Phi-2 in its real size (5.56 GB in float16, two shards), or a small one, as transformers saves it.

    python benchmarks/make_phi2.py DIRECTORY
    python benchmarks/make_phi2.py --small DIRECTORY

The weights are drawn block by block straight into float16, so that making them takes little more memory than the
model itself; the same seed gives the same bytes whatever the number of threads.
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

BLOCK = 1 << 22  # elements drawn at a time, in float32

# microsoft/phi-2's config.json, as transformers 5 holds it.
PHI2 = {
    "vocab_size": 51200,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "resid_pdrop": 0.1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.4},
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}
# The same shape of head, and sizes that can't be mistaken for one another.
SMALL = PHI2 | {
    "vocab_size": 1013,
    "hidden_size": 320,
    "intermediate_size": 1200,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
CHAT_TEMPLATE = """\
{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}assistant:"""
LICENSE = """\
These weights are random numbers, drawn by benchmarks/make_phi2.py of weightmap. Do with them what you like.
"""


def random_values(name: str, shape: torch.Size, columns: int, generator: torch.Generator) -> Tensor:
    """Draw values for (a part of) a parameter: no bias is near zero, no norm weight near one."""
    if columns:
        return torch.randn(shape, generator=generator) / columns**0.5
    spread = torch.rand(shape, generator=generator) - 0.5
    away_from_zero = spread * 0.3 + spread.sign() * 0.05
    return away_from_zero if name.endswith("bias") else 1 + 2 * away_from_zero


def random_phi(config: PhiConfig, seed: int) -> PhiForCausalLM:
    """A Phi in float16 whose every parameter matters."""
    with torch.device("meta"):
        model = PhiForCausalLM._from_config(config, dtype=torch.float16)  # noqa: SLF001 -- the one way to give a dtype
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
            columns = parameter.shape[1] if parameter.dim() > 1 else 0
            for block in parameter.view(-1).split(BLOCK):
                block.copy_(random_values(name, block.shape, columns, generator))
    return model


def character_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of printable ASCII, one token a character."""
    characters = [chr(code) for code in range(32, 127)]
    vocab = {token: number for number, token in enumerate(["<unk>", "<|endoftext|>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token=end, eos_token=end)


def make_phi2(directory: Path, *, small: bool = False, seed: int = 0, max_shard_size: str | None = None) -> None:
    """Write the checkpoint and the files that come with one: tokenizer, chat template, generation config, licence."""
    model = random_phi(PhiConfig(**(SMALL if small else PHI2)), seed)
    directory.mkdir(parents=True, exist_ok=True)
    # 5GB is how microsoft/phi-2 itself is sharded; the small one gets two shards too.
    model.save_pretrained(directory, max_shard_size=max_shard_size or ("8MB" if small else "5GB"))
    character_tokenizer().save_pretrained(directory)
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (directory / "LICENSE").write_text(LICENSE)


def main() -> None:
    """Read the command line and write the checkpoint."""
    parser = argparse.ArgumentParser(description="Write a random Phi-2, as transformers saves it.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--small", action="store_true", help="a few megabytes instead of 5.56 GB")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-shard-size", help="default: as for microsoft/phi-2, two shards")
    arguments = parser.parse_args()
    make_phi2(arguments.directory, small=arguments.small, seed=arguments.seed, max_shard_size=arguments.max_shard_size)
    for file in sorted(arguments.directory.iterdir()):
        print(f"{file.stat().st_size:>13,}  {file.name}")


if __name__ == "__main__":
    main()
