"""Every pair of models: the one is converted into the other and back, and both answer the same to the same inputs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.mappings.proof import tolerance
from tests.models_pairs import PAIRS, Pair
from tests.shelf import measure

EACH = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)


@EACH
def test_pair(tmp_path: Path, pair: Pair) -> None:
    assert measure(pair, tmp_path) <= tolerance(pair.spec)


@EACH
def test_no_parameter_can_be_wrong_unseen(pair: Pair) -> None:
    """Reversing the rows of any kind of parameter shows in the answers: equal answers mean equal parameters."""
    model = pair.build(12)
    expected = pair.ask(model)
    # Layers repeat themselves, so one of each kind is enough: the first, whose error all others could still hide.
    kinds = {re.sub(r"\d+", "#", name): name for name, _ in reversed([*model.named_parameters()])}
    for name in kinds.values():
        parameter = model.get_parameter(name)
        original = parameter.detach().clone()
        # The last axis where there are several: reversed experts and heads would often compute the same.
        axis = max(axis for axis, size in enumerate(original.shape) if size > 1)
        with torch.no_grad():
            parameter.copy_(original.flip(axis))
        worst = max((one - two).abs().max() for one, two in zip(pair.ask(model), expected, strict=True))
        if pair.without_effect is not None and name.endswith(pair.without_effect):
            assert worst <= tolerance(pair.spec), f"{name} has an effect: it needn't be excepted"
        else:
            assert worst > 50 * tolerance(pair.spec), name
        with torch.no_grad():
            parameter.copy_(original)
