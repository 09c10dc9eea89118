"""The names of an adapter's tensors."""

from __future__ import annotations

import pytest

from converters.adapters.keys import as_weight, module_of, split_key, unwrapped, wrapped
from converters.pattern import Name, Path, parse_pattern


@pytest.mark.parametrize(
    ("key", "module", "suffix"),
    [
        ("a.q.lora_A.weight", "a.q", "lora_A.weight"),
        ("a.q.lora_B.bias", "a.q", "lora_B.bias"),
        ("e.lora_embedding_B", "e", "lora_embedding_B"),
        ("a.lora_magnitude_vector", "a", "lora_magnitude_vector"),
        ("a.lora_magnitude_vector.weight", "a", "lora_magnitude_vector.weight"),
    ],
)
def test_parts_of_an_update(key: str, module: str, suffix: str) -> None:
    found = split_key(key)
    assert found is not None
    assert (found[0], found[1].text) == (module, suffix)


@pytest.mark.parametrize("key", ["a.weight", "a.xlora_A.weight", "lora_A.weight", "a.lora_A.x.weight", "a.lora_A"])
def test_other_keys(key: str) -> None:
    assert split_key(key) is None


def test_modules_inside_of_an_adapted_one() -> None:
    assert unwrapped("a.base_layer.bias") == ("a.bias", True)
    assert unwrapped("a.bias") == ("a.bias", False)
    assert str(wrapped(parse_pattern("a.{i}.{p}"))) == "a.{i}.base_layer.{p}"


def test_the_weight_of_a_pattern_for_any_parameter() -> None:
    matched = parse_pattern("a.{i}.{p}")
    kinds = {"i": Name(), "p": Name()}
    assert str(as_weight(parse_pattern("b.{p}.c_{p}"), matched, kinds)) == "b.weight.c_weight"
    assert str(as_weight(parse_pattern("b.weight"), parse_pattern("a.weight"), {})) == "b.weight"
    rest = parse_pattern("a.{r:path}")
    assert str(as_weight(parse_pattern("b.{r}"), rest, {"r": Path()})) == "b.{r}.weight"


@pytest.mark.parametrize(("key", "module"), [("a.{i}.weight", "a.{i}"), ("weight", None), ("a.in_proj_weight", None)])
def test_the_module_of_a_weight(key: str, module: str | None) -> None:
    found = module_of(parse_pattern(key))
    assert (None if found is None else str(found)) == module
