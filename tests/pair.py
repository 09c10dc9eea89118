"""What a shipped spec joins: two models, and how they are made, saved and asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tests.answers import Answers, of_tokens


@dataclass(frozen=True, slots=True)
class Pair:
    """A spec, and the models on its two sides.

    Attributes:
        family: the architecture.
        spec: the shipped spec's name.
        source: makes the source model from a seed.
        source_class: import path of the source's class; transformers' classes give an output with `.logits`, the
            plain ones give the logits.
        target_class: likewise.
        vocab: tokens are below this.
        answers: what both models are asked, where that isn't the logits of each token.
        save: writes the source's checkpoint; by default its own `save_pretrained`.
        set_config: keys of the target's config that no spec can know.
        reverse: whether `source` stands on the spec's target side, so that the conversion is the reverse one.
    """

    family: str
    spec: str
    source: Callable[[int], Any]
    source_class: str
    target_class: str
    vocab: int
    reverse: bool = False
    answers: Answers | None = None
    save: Callable[[Any, Path], object] = lambda model, directory: model.save_pretrained(directory)
    set_config: Mapping[str, Any] = field(default_factory=dict)
    without_effect: str | tuple[str, ...] | None = None

    def build(self, seed: int = 0) -> nn.Module:
        """The source model."""
        model = self.source(seed)
        assert isinstance(model, nn.Module)
        return model

    def ask(self, model: nn.Module) -> list[Tensor]:
        """What one of the two models answers to fixed inputs."""
        return (self.answers or of_tokens(self.vocab))(model)

    @property
    def name(self) -> str:
        """For tests and messages."""
        return f"{self.spec}{'-reverse' if self.reverse else ''}"
