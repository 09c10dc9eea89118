"""How every shipped spec is proved: there and back in bytes, in memory as on disk, and equal logits on both sides."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

import converters

LENGTH = 160
"""Tokens: enough for an error in a rotary frequency to show."""

ATOL = 1e-4
"""Of logits whose standard deviation is about two; one model in float32 is 2e-5 away from itself in float64."""


def prompts(vocab: int, batch: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(0, vocab, (batch, length), generator=torch.Generator().manual_seed(7))


def padded(batch: int = 2, length: int = LENGTH) -> Tensor:
    """A mask [batch, length]: the first prompt is padded on its left, the second on its right."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, :31] = 0
    mask[1, -27:] = 0
    return mask


def read_config(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return config


def read_tensors(directory: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 -- it is no mapping
                assert name not in state, f"{name} is in two shards"
                state[name] = shard.get_tensor(name)
    return state


def assert_same_bytes(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        same = torch.equal(*(one.contiguous().view(torch.uint8) for one in (found[name], tensor)))
        assert same, f"{name} has other bytes"


def convert_there_and_back(
    name: str,
    source: Path,
    *,
    reverse: bool = False,
    lost: Collection[str] = (),
    gained: Mapping[str, Any] | None = None,
    expected: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> Path:
    """Convert a directory, and give the result's directory once the way back has been shown to restore the source.

    Args:
        name: the shipped spec.
        source: a checkpoint directory; results go beside it.
        reverse: convert from the spec's target to its source.
        lost: config keys that don't come back; the spec must say why, or their value is the default.
        gained: config keys that come back without having been there: defaults spelled out.
        expected: what the way back should give, from what was there, where that isn't the same.
    """
    spec = converters.load_spec(name)
    assert spec.inverse().inverse() == spec
    assert spec.exactness == "exact"
    there, back = source.with_name(source.name + "-there"), source.with_name(source.name + "-back")
    converters.convert(spec, source, there, reverse=reverse, max_shard_size="60KB")
    converters.convert(spec, there, back, reverse=not reverse)
    before, converted = read_tensors(source), read_tensors(there)
    assert_same_bytes(read_tensors(back), expected(before))
    in_memory = converters.convert_state_dict(spec, before, reverse=reverse, config=read_config(source))
    assert_same_bytes(in_memory, converted)
    config = {key: value for key, value in read_config(source).items() if key not in lost}
    assert read_config(back) == config | dict(gained or {})
    return there


def logits_of(model: nn.Module, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits [batch, length, vocab] of a transformers model or a plain one."""
    with torch.no_grad():
        out = model(tokens, attention_mask=mask) if mask is not None else model(tokens)
    logits = out if isinstance(out, Tensor) else out.logits
    assert isinstance(logits, Tensor)
    return logits


def assert_same_logits(first: nn.Module, second: nn.Module, vocab: int, atol: float = ATOL) -> None:
    """Equal logits, without padding and with it (compared where there is none)."""
    tokens, mask = prompts(vocab), padded()
    one, two = (logits_of(model, tokens) for model in (first, second))
    assert one.std() > 0.5, "logits this small would hide an error"
    torch.testing.assert_close(one, two, atol=atol, rtol=0)
    one, two = (logits_of(model, tokens, mask)[mask.bool()] for model in (first, second))
    torch.testing.assert_close(one, two, atol=atol, rtol=0)


def load_strictly(cls: Any, directory: Path, **options: Any) -> Any:
    """`from_pretrained` of transformers in float32 with eager attention; every key must find its place."""
    model, info = cls.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, **options
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    return model.eval()
