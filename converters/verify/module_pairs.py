"""Which modules of two models correspond, worked out from the plan: the modules that own what it carries.

There is no list of names here. Two modules are a *pair* if the one's parameters are made from exactly the other's: a
projection and its counterpart, two attentions whose projections are fused on one side only, two blocks. And a source
module and a target module share an *edge* if any parameter of the one goes into a parameter of the other: with it,
the source's module can be run with what the target holds, whatever the target looks like around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from converters.operations.cast import Cast
from converters.plan import Plan
from converters.strided import StridedCopy
from converters.verify.models import SideModel


@dataclass(frozen=True, slots=True)
class Part:
    """Elements of one source parameter that lie in one target tensor.

    Attributes:
        parameter: the source parameter's name, within the model.
        target: the target's key.
        copies: from the source's tensor to the target's.
    """

    parameter: str
    target: str
    copies: tuple[StridedCopy, ...]

    def put_back(self, target: Tensor, into: Tensor) -> None:
        """Write the target's elements over those of the source's parameter that they were made from."""
        flat, made = target.contiguous().view(-1), into.view(-1)
        for copy in self.copies:
            place = made.as_strided(copy.shape, copy.source_strides, copy.source_start)
            place.copy_(flat.as_strided(copy.shape, copy.target_strides, copy.target_start))


@dataclass(frozen=True, slots=True)
class Edge:
    """A source module and a target module, and what the one's parameters have in the other's."""

    source: str
    target: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class ModulePairs:
    """See the module.

    Attributes:
        pairs: for each target module, the source modules whose parameters it is made from, innermost first.
        edges: in no particular order.
        left_out: keys that no edge could be made for, with the reason.
    """

    pairs: Mapping[str, tuple[str, ...]]
    edges: tuple[Edge, ...]
    left_out: Mapping[str, str]


def pair_modules(plan: Plan, source: SideModel, target: SideModel) -> ModulePairs:
    """Pair two models' modules by what the plan carries from one to the other."""
    same = {plan.sources[check.second].info.name: plan.sources[check.first].info.name for check in plan.equality_checks}
    source_places = _places(source, [each.info.name for each in plan.sources])
    for key, first in same.items():
        source_places[first] = sorted({*source_places[first], *source_places[key]})
    made_from = {
        made.info.name: {plan.sources[source].info.name for source in plan.sources_of(made)}
        for made in plan.targets
        if made.moves
    }
    used = {key for keys in made_from.values() for key in keys}
    by_keys: dict[frozenset[str], list[str]] = {}
    for name, keys in _below(source.module, {key: source_places[key] for key in used}).items():
        by_keys.setdefault(frozenset(keys), []).append(name)
    pairs = {}
    for name, made_keys in _below(target.module, _places(target, made_from)).items():
        origin = frozenset(key for made_key in made_keys for key in made_from[made_key])
        if origin in by_keys:
            pairs[name] = tuple(sorted(by_keys[origin], key=lambda each: -each.count(".")))
    edges, left_out = _edges(plan, source, target, source_places)
    return ModulePairs(pairs, edges, left_out)


def _edges(
    plan: Plan, source: SideModel, target: SideModel, source_places: Mapping[str, list[str]]
) -> tuple[tuple[Edge, ...], dict[str, str]]:
    copies: dict[tuple[str, str], list[StridedCopy]] = {}
    left_out: dict[str, str] = {}
    for made in plan.targets:
        changed = any(not isinstance(operation, Cast) for operation in made.operations)
        if changed or any(plan.is_made(move.source) for move in made.moves):
            left_out[made.info.name] = "its values are changed on the way by more than a cast"
            continue
        for move in made.moves:
            copies.setdefault((plan.sources[move.source].info.name, made.info.name), []).append(move.copy)
    found: dict[tuple[str, str], list[Part]] = {}
    for (key, made_key), moved in copies.items():
        if key not in source.name_of:
            left_out[key] = "the source's model keeps it under another name"
            continue
        # By its key where the target's model has another name for it: that is where it lies in the files.
        place = target.name_of.get(made_key, made_key).rpartition(".")[0]
        last = source.name_of[key].rpartition(".")[2]
        for owner in source_places[key]:
            part = Part(f"{owner}.{last}" if owner else last, made_key, tuple(moved))
            found.setdefault((owner, place), []).append(part)
    return tuple(Edge(first, second, tuple(parts)) for (first, second), parts in found.items()), left_out


def _places(side: SideModel, keys: Iterable[str]) -> dict[str, list[str]]:
    """For each key, the modules that own its tensor: several where it is tied; by prefix where the names differ."""
    modules = {name for name, _ in side.module.named_modules()}
    groups: dict[str, list[str]] = {}
    for name, first in side.tied.items():
        groups.setdefault(first, [first]).append(name)
    places = {}
    for key in keys:
        held = side.name_of.get(key)
        if held is None:
            path = key.rpartition(".")[0]
            while path not in modules:
                path = path.rpartition(".")[0]
            places[key] = [path]
        else:
            group = groups.get(side.tied.get(held, held), [])
            places[key] = [each.rpartition(".")[0] for each in dict.fromkeys([held, *group])]
    return places


def _below(module: nn.Module, places: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    """For each module, the keys whose tensors it or a module within it owns."""
    below: dict[str, set[str]] = {name: set() for name, _ in module.named_modules()}
    for key, owners in places.items():
        for owner in owners:
            parts = owner.split(".") if owner else []
            for count in range(len(parts) + 1):
                below[".".join(parts[:count])].add(key)
    return {name: keys for name, keys in below.items() if keys}


def feature_order(
    edges: Iterable[Edge], source: SideModel, target: SideModel, pair: tuple[str, str]
) -> list[int] | None:
    """For each feature that a target's module puts out, the source's feature that it is, where a layout moves them.

    Read off the copies of its weight along the axis of the outputs, at the first input. None where that says nothing:
    for modules that are more than one weight.
    """
    edge = next((each for each in edges if (each.source, each.target) == pair), None)
    modules = [side.module.get_submodule(name) for side, name in zip((source, target), pair, strict=True)]
    axes = [_output_axis(module) for module in modules]
    part = next((each for each in edge.parts if each.parameter.endswith(".weight")), None) if edge else None
    if part is None or axes[0] is None or axes[1] is None:
        return None
    shapes = [tuple(module.get_parameter("weight").shape) for module in modules]
    strides = [_stride(shape, axis) for shape, axis in zip(shapes, (axes[0], axes[1]), strict=True)]
    order = []
    for feature in range(shapes[1][axes[1]]):
        place = _source_of(part.copies, feature * strides[1])
        if place is None or place % strides[0] or place // strides[0] >= shapes[0][axes[0]]:
            return None
        order.append(place // strides[0])
    return order


def _source_of(copies: Iterable[StridedCopy], place: int) -> int | None:
    """The element of the source that goes to element `place` of the target; None if these copies don't write it."""
    for copy in copies:
        rest, found = place - copy.target_start, copy.source_start
        if rest < 0:
            continue
        for size, here, there in zip(copy.shape, copy.source_strides, copy.target_strides, strict=True):
            index = min(rest // there, size - 1)
            rest -= index * there
            found += index * here
        if rest == 0:
            return found
    return None


def _output_axis(module: nn.Module) -> int | None:
    """Which axis of `weight` is the features that come out; None where that isn't known."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    if isinstance(module, nn.Embedding):
        return 1
    if weight.dim() == 1 or isinstance(module, nn.Linear):
        return 0
    # transformers' Conv1D keeps [in, out].
    return 1 if type(module).__name__ == "Conv1D" else None


def _stride(shape: tuple[int, ...], axis: int) -> int:
    size = 1
    for each in shape[axis + 1 :]:
        size *= each
    return size
