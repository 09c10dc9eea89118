"""What models are run on: seeded random tokens, so long that errors of position show, with padding; or the user's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from converters.errors import WeightmapError
from converters.text import printable

MAX_ROWS = 4
"""Prompts of the plain batch at most; fewer where fewer hold every token of the vocabulary."""


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Prompts that run together.

    Attributes:
        names: of each prompt, for reports.
        input_ids: [batch, length].
        attention_mask: [batch, length], zero at padding; None without padding.
    """

    names: tuple[str, ...]
    input_ids: Tensor
    attention_mask: Tensor | None = None

    def real(self, row: int) -> Tensor:
        """Which positions of a prompt are no padding, as bool [length]."""
        length = self.input_ids.shape[1]
        if self.attention_mask is None:
            return torch.ones(length, dtype=torch.bool)
        return self.attention_mask[row] != 0


def random_prompts(vocab: int, tokens: int, limit: int | None, seed: int) -> tuple[PromptBatch, ...]:
    """Random prompts: a plain batch, one long prompt, and a batch padded on the left and on the right.

    The plain batch goes through the vocabulary in random order before it repeats a token, since a wrong row of the
    embedding shows only where its token occurs.

    Args:
        vocab: number of tokens.
        tokens: length of the prompts; the long one has twice as many.
        limit: the most positions that the models have, where they have a limit.
        seed: the same seed gives the same prompts, whatever the version of torch.
    """
    generator = torch.Generator().manual_seed(seed)
    length = tokens if limit is None else min(tokens, limit)
    long = 2 * tokens if limit is None else min(2 * tokens, limit)
    rows = min(MAX_ROWS, max(2, -(-vocab // length)))
    every = torch.cat([torch.randperm(vocab, generator=generator) for _ in range(-(-rows * length // vocab))])
    batches = [
        PromptBatch(tuple(f"random {row + 1}" for row in range(rows)), every[: rows * length].view(rows, length))
    ]
    if long > length:
        batches.append(PromptBatch(("long",), torch.randint(vocab, (1, long), generator=generator)))
    mask = torch.ones(2, length, dtype=torch.long)
    mask[0, : length // 5] = 0
    mask[1, length - length // 7 :] = 0
    padded = torch.randint(vocab, (2, length), generator=generator)
    batches.append(PromptBatch(("padded left", "padded right"), padded, mask))
    return tuple(batches)


def read_prompts(path: Path, vocab: int, directory: Path) -> tuple[PromptBatch, ...]:
    """Prompts from a file of JSON lines: lists of token ids, `{"input_ids": [...]}`, or text for the tokenizer.

    Each runs alone, and then all of them together, padded on the left.

    Args:
        path: the file.
        vocab: number of tokens.
        directory: where the tokenizer is, should a line be text.

    Raises:
        WeightmapError: the file can't be read or a line is no prompt.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WeightmapError(f"the prompts can't be read: {error}", printable(str(path))) from error
    rows = []
    tokenizer: Any = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        content = _content(line)
        if isinstance(content, str):
            tokenizer = tokenizer or _tokenizer(directory)
            content = tokenizer(content)["input_ids"]
        where = f"{printable(str(path))}:{number}"
        if not isinstance(content, list) or not content or any(type(token) is not int for token in content):
            hint = "write a list of token ids such as [5, 17, 2], or text"
            raise WeightmapError("this line is no prompt", where, hint)
        if not 0 <= min(content) <= max(content) < vocab:
            raise WeightmapError(f"a token is outside of the vocabulary of {vocab}", where)
        rows.append(torch.tensor(content))
    if not rows:
        raise WeightmapError("there are no prompts in this file", printable(str(path)))
    names = [f"prompt {number}" for number in range(1, len(rows) + 1)]
    batches = [PromptBatch((name,), row[None]) for name, row in zip(names, rows, strict=True)]
    if len(rows) > 1:
        batches.append(_padded(names, rows))
    return tuple(batches)


def _padded(names: Sequence[str], rows: Sequence[Tensor]) -> PromptBatch:
    length = max(len(row) for row in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        input_ids[index, length - len(row) :] = row
        mask[index, length - len(row) :] = 1
    return PromptBatch(tuple(f"{name}, padded" for name in names), input_ids, mask)


def _content(line: str) -> object:
    try:
        content: object = json.loads(line)
    except ValueError:
        return line
    if isinstance(content, Mapping):
        return content.get("input_ids", content.get("text"))
    return content


def _tokenizer(directory: Path) -> object:
    from transformers import AutoTokenizer

    hint = "give lists of token ids"
    # Without any file of one, transformers makes an empty tokenizer for some models.
    if not any(directory.glob("tokenizer*")) and not any(directory.glob("*vocab*")):
        raise WeightmapError("a prompt is text, but there is no tokenizer", printable(str(directory)), hint)
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise WeightmapError(
            "a prompt is text, but the tokenizer can't be loaded", printable(str(directory)), hint
        ) from error


def position_limit(*configs: Mapping[str, Any] | None) -> int | None:
    """The most positions that all of the models have, by their configs; None where none says."""
    names = ("max_position_embeddings", "n_positions", "n_ctx", "block_size", "max_len", "max_seq_len")
    found = [config[name] for config in configs if config for name in names if isinstance(config.get(name), int)]
    return min(found, default=None)
