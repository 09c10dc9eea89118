"""How every shipped spec is proved: there and back in bytes, in memory as on disk, and equal logits on both sides."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

import converters
from tests.answers import LENGTH, logits_of, padded, prompts
from tests.models_base import CONFIG_NAMES, read_files

__all__ = [
    "ATOL",
    "LENGTH",
    "assert_same_bytes",
    "assert_same_logits",
    "convert_there_and_back",
    "load_strictly",
    "logits_of",
    "padded",
    "prompts",
    "read_config",
    "read_tensors",
    "tolerance",
]

ATOL = 1e-4
"""Of logits whose standard deviation is about two; one model in float32 is 2e-5 away from itself in float64."""


def tolerance(name: str) -> float:
    """By how much a shipped spec says that its two sides may differ, as an absolute difference in float32."""
    proof = converters.load_spec(name).proof
    assert proof is not None, f"{name} doesn't say with what it was compared"
    return proof.tolerance


def read_config(directory: Path) -> dict[str, Any]:
    names = [name for name in CONFIG_NAMES if (directory / name).exists()]
    assert len(names) == 1, f"{directory} has the configs {names}"
    text = (directory / names[0]).read_text()
    config: dict[str, Any] = yaml.safe_load(text) if names[0].endswith(".yaml") else json.loads(text)
    return config


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of the files in a directory, by the libraries that define their formats."""
    state: dict[str, Tensor] = {}
    for file, tensors in read_files(directory).items():
        assert not tensors.keys() & state.keys(), f"{file} has tensors that another file has, too"
        state |= tensors
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
