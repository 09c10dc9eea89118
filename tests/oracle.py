"""A naive evaluation of a case: every element is looked up by its coordinates, one at a time, with torch.

It shares nothing with the code under test: a tensor's index is taken apart with divmod, never with strides.
"""

from __future__ import annotations

import itertools

import torch

from tests.strategies import PAD, Case, TermCase


def block_size(items: list, sizes: dict[str, int]) -> int:
    """Elements along a row-major sequence of items."""
    size = 1
    for item in items:
        size *= item_size(item, sizes)
    return size


def item_size(item: object, sizes: dict[str, int]) -> int:
    """Elements along one item."""
    if isinstance(item, dict):
        return sum(block_size(items, sizes) for items in item.values())
    if isinstance(item, list):
        return block_size(item, sizes)
    return item if isinstance(item, int) else sizes[str(item)]


def shape_of(term: TermCase, sizes: dict[str, int]) -> tuple[int, ...]:
    """The shape of a term's tensors."""
    return tuple(item_size(item, sizes) for item in dims_of(term))


def dims_of(term: TermCase) -> list:
    """The dimensions one by one, those that `...` stands for among them."""
    return [each for item in term.dims for each in (item if isinstance(item, tuple) else (item,))]


def _take_apart(item: object, position: int, sizes: dict[str, int], found: dict[str, object]) -> None:
    if isinstance(item, dict):
        for label, items in item.items():
            size = block_size(items, sizes)
            if position < size:
                found["label"] = label
                _take_apart(items, position, sizes, found)
                return
            position -= size
        raise AssertionError("past the last block")
    if isinstance(item, list):
        for inner in reversed(item):
            position, here = divmod(position, item_size(inner, sizes))
            _take_apart(inner, here, sizes, found)
        assert position == 0
    elif isinstance(item, str):
        found[item] = position


def coordinates(term: TermCase, index: tuple[int, ...], at: dict[str, int], sizes: dict[str, int]) -> frozenset:
    """The label and the axes' coordinates of one element of a tensor."""
    found: dict[str, object] = {"label": term.label, **at}
    for item, position in zip(dims_of(term), index, strict=True):
        _take_apart(item, position, sizes, found)
    return frozenset(found.items())


def tensors_of(case: Case, terms: list[TermCase]) -> list[tuple[TermCase, str, dict[str, int], int]]:
    """Every tensor of a side: its term, its key, the coordinates in the key, and the instance."""
    found = []
    for term in terms:
        for instance in range(case.first_instance, case.first_instance + case.instances):
            for values in itertools.product(*(range(case.sizes[axis]) for axis in term.key_axes)):
                at = dict(zip(term.key_axes, values, strict=True))
                found.extend((term, _key(key, instance, at), at, instance) for key in (term.key, *term.copies))
    return found


def _key(key: str, instance: int, at: dict[str, int]) -> str:
    numbers = {
        "{i}": instance,
        "{i+2}": instance + 2,
        "{7-i}": 7 - instance,
        "{i//2}": instance // 2,
        "{i%2}": instance % 2,
    }
    for text, number in numbers.items():
        key = key.replace(text, str(number))
    for axis, value in at.items():
        key = key.replace(f"{{{axis}}}", str(value))
    return key


def evaluate(case: Case, sources: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The target's tensors, as integers of the dtype's width."""
    elements: dict[tuple[int, frozenset], torch.Tensor] = {}
    for term, key, at, instance in tensors_of(case, case.sources):
        tensor = sources[key]
        for index in itertools.product(*(range(size) for size in tensor.shape)):
            place = (instance, _unlabel(coordinates(term, index, at, case.sizes), case))
            assert place not in elements
            elements[place] = tensor[index]
    targets: dict[str, torch.Tensor] = {}
    any_tensor = next(iter(sources.values()))
    for term, key, at, instance in tensors_of(case, case.targets):
        target = torch.empty(shape_of(term, case.sizes), dtype=any_tensor.dtype)
        for index in itertools.product(*(range(size) for size in target.shape)):
            place = coordinates(term, index, at, case.sizes)
            target[index] = 0 if ("label", PAD) in place else elements[instance, _unlabel(place, case)]
        targets[key] = target
    return targets


def _unlabel(place: frozenset, case: Case) -> frozenset:
    """With a single label, one side may leave it out."""
    return frozenset(item for item in place if item[0] != "label" or len(case.leaves) > 1)
