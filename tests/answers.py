"""What a model answers to fixed inputs, for comparing two models that should compute the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

LENGTH = 160
"""Tokens: enough for an error in a rotary frequency to show."""

Answers = Callable[[nn.Module], list[Tensor]]
"""Tensors in float32 that must agree; of padded inputs, where there is none."""


def prompts(vocab: int, batch: int = 2, length: int = LENGTH) -> Tensor:
    """Token ids [batch, length]."""
    return torch.randint(0, vocab, (batch, length), generator=torch.Generator().manual_seed(7))


def padded(batch: int = 2, length: int = LENGTH) -> Tensor:
    """A mask [batch, length]: the first prompt is padded on its left, the second on its right."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, :31] = 0
    mask[1, -27:] = 0
    return mask


def logits_of(model: nn.Module, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits of a transformers model or a plain one, [batch, length, vocab] or [batch, classes]."""
    with torch.no_grad():
        out = model(inputs, attention_mask=mask) if mask is not None else model(inputs)
    logits = out if isinstance(out, Tensor) else out.logits
    assert isinstance(logits, Tensor)
    return logits


def of_tokens(vocab: int) -> Answers:
    """The logits of each token, without padding and with it."""
    tokens, mask = prompts(vocab), padded()

    def ask(model: nn.Module) -> list[Tensor]:
        answers = [logits_of(model, tokens), logits_of(model, tokens, mask)[mask.bool()]]
        assert all(answer.std() > 0.5 for answer in answers), "logits this small would hide an error"
        return answers

    return ask


def of_texts(vocab: int) -> Answers:
    """A classifier's logits for eight texts, without padding and with it; they are read off the first token."""
    tokens, mask = prompts(vocab, batch=8), padded(8).flip(1)
    mask[1, 0] = 1
    return lambda model: [logits_of(model, tokens), logits_of(model, tokens, mask)[mask[:, 0] == 1]]


def of_images(channels: int, height: int, width: int) -> Answers:
    """A classifier's logits for eight images."""
    images = torch.randn(8, channels, height, width, generator=torch.Generator().manual_seed(7))
    return lambda model: [logits_of(model, images)]


def difference(one: list[Tensor], two: list[Tensor]) -> float:
    """The largest absolute difference; infinite where one has a NaN."""
    assert len(one) == len(two) > 0
    assert all(a.shape == b.shape for a, b in zip(one, two, strict=True))
    assert all(a.std() > 0.1 for a in one), "answers this much alike would hide an error"
    each = [(a - b).abs().max().item() for a, b in zip(one, two, strict=True)]
    return max(value if value == value else float("inf") for value in each)  # noqa: PLR0124 -- NaN isn't itself
