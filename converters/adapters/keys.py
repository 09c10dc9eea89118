"""What PEFT calls the tensors of a LoRA adapter: the path of a module, and a name for each part of its update."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from converters.pattern import Choice, Hole, KeyPattern, Kind, Path

PREFIX: Final = "base_model.model."
"""What PEFT puts before the keys of the model that it wraps."""

_WRAPPED: Final = "base_layer"
"""What PEFT calls the module that it puts an adapted one around."""

_WEIGHT: Final = "weight"


class Factor(Enum):
    """A part of an update; W gets `B @ A`, scaled."""

    A = "A"
    """[rank, in-features]"""
    B = "B"
    """[out-features, rank]"""
    BIAS = "bias"
    """[out-features], of B"""
    MAGNITUDE = "magnitude"
    """[out-features], DoRA's"""


class Suffix(Struct, frozen=True):
    """The end of a key.

    Attributes:
        text: its segments.
        factor: what it names.
        embedding: whether the module is an embedding, whose weight is [in-features, out-features].
    """

    text: str
    factor: Factor
    embedding: bool = False


SUFFIXES: Final = (
    Suffix("lora_A.weight", Factor.A),
    Suffix("lora_B.weight", Factor.B),
    Suffix("lora_B.bias", Factor.BIAS),
    Suffix("lora_embedding_A", Factor.A, embedding=True),
    Suffix("lora_embedding_B", Factor.B, embedding=True),
    Suffix("lora_magnitude_vector", Factor.MAGNITUDE),
    Suffix("lora_magnitude_vector.weight", Factor.MAGNITUDE),
)


def split_key(key: str) -> tuple[str, Suffix] | None:
    """The module's path and the end of the key; None where it isn't part of an update."""
    for suffix in SUFFIXES:
        if key.endswith(f".{suffix.text}"):
            return key.removesuffix(f".{suffix.text}"), suffix
    return None


def weight_of(module: str) -> str:
    """The key of the weight that a module's update belongs to."""
    return f"{module}.{_WEIGHT}"


def unwrapped(key: str) -> tuple[str, bool]:
    """The key that a parameter would have if its module weren't adapted, and whether it is."""
    module, dot, name = key.rpartition(".")
    parent = module.removesuffix(f".{_WRAPPED}")
    return (f"{parent}{dot}{name}", True) if parent != module else (key, False)


def base_key(key: str) -> str:
    """The key of the base model's parameter that a tensor of an adapter changes, or takes the place of."""
    inner = key.removeprefix(PREFIX)
    update = split_key(inner)
    return weight_of(update[0]) if update is not None else unwrapped(inner)[0]


def wrapped(pattern: KeyPattern) -> KeyPattern:
    """The pattern of a parameter whose module is adapted."""
    *module, name = pattern.segments
    return KeyPattern((*module, (_WRAPPED,), name))


def with_prefix(pattern: KeyPattern) -> KeyPattern:
    """The pattern as PEFT writes it."""
    return KeyPattern((("base_model",), ("model",), *pattern.segments))


def with_suffix(module: KeyPattern, suffix: Suffix) -> KeyPattern:
    """The pattern of one part of a module's update."""
    return KeyPattern((*module.segments, *((name,) for name in suffix.text.split("."))))


def as_weight(pattern: KeyPattern, matched: KeyPattern, kinds: Mapping[str, Kind]) -> KeyPattern:
    """A pattern for any parameter, such as `a.{p}`, as that of the weight alone, `a.weight`.

    Args:
        pattern: of any key of a rule.
        matched: the one that a weight's key has matched, so that the placeholder that it ends in stood for `weight`.
        kinds: what the rule's placeholders can stand for.
    """
    last = matched.segments[-1]
    if len(last) != 1 or not isinstance(last[0], Hole) or not last[0].plain:
        return pattern
    name = str(last[0].expression)
    if isinstance(kinds[name], Path):  # it stood for `module.weight`
        is_last = any(isinstance(part, Hole) and str(part.expression) == name for part in pattern.segments[-1])
        return KeyPattern((*pattern.segments, (_WEIGHT,))) if is_last else pattern
    segments = (
        tuple(_WEIGHT if isinstance(part, Hole) and str(part.expression) == name else part for part in segment)
        for segment in pattern.segments
    )
    return KeyPattern(tuple(_joined(segment) for segment in segments))


def loosened(pattern: KeyPattern) -> KeyPattern:
    """The pattern with choices of which one is enough: an adapter has what was trained, and no more."""
    segments = (
        tuple(
            replace(part, kind=any_of(part.kind)) if isinstance(part, Hole) and part.kind else part for part in segment
        )
        for segment in pattern.segments
    )
    return KeyPattern(tuple(segments))


def any_of(kind: Kind) -> Kind:
    """The kind, where one name of a choice is enough."""
    return replace(kind, every=False) if isinstance(kind, Choice) else kind


def module_of(weight: KeyPattern) -> KeyPattern | None:
    """The pattern of the module that has this weight; None where the key isn't that of a module's weight."""
    *module, name = weight.segments
    return KeyPattern(tuple(module)) if module and name == (_WEIGHT,) else None


def _joined(segment: tuple[str | Hole, ...]) -> tuple[str | Hole, ...]:
    """The segment, in one piece if no placeholder is left in it."""
    texts = [part for part in segment if isinstance(part, str)]
    return ("".join(texts),) if len(texts) == len(segment) else segment
