"""Which made tensor is compared with which stored one, how exactly, and which have no partner, with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from converters.operations import Elementwise
from converters.operations.cast import Cast, widens
from converters.operations.numeric import ARITHMETIC
from converters.plan import Plan, Target
from converters.tensor_info import DType, TensorInfo
from converters.text import printable
from converters.verify.compare import Pair

CAST_ULPS = 1
"""Units in the last place, of the dtype that was cast to, that another tool's rounding may be away from ours."""


class Pairing(Struct, frozen=True):
    """See the module.

    Attributes:
        pairs: by the name of the made tensor.
        unmatched: for each tensor that isn't compared as it is, by name, why. Those whose dtype alone is another are
            among the pairs, too, rounded to the narrower of the two, to tell whether their values are right.
    """

    pairs: Mapping[str, Pair]
    unmatched: Mapping[str, str]


def pair_forward(plan: Plan, found: Mapping[str, TensorInfo]) -> Pairing:
    """What the plan makes of the source, with the target's tensors of the same name."""
    pairs, unmatched = {}, {}
    for target in plan.targets:
        info = target.info
        stored = found.get(info.name)
        if stored is None:
            unmatched[info.name] = "the target lacks it"
        elif stored.shape != info.shape:
            unmatched[info.name] = f"its shape is {list(stored.shape)}, not {list(info.shape)}"
        elif stored.dtype is not info.dtype:
            unmatched[info.name] = f"its dtype is {stored.dtype}, not {info.dtype}"
            if {stored.dtype, info.dtype} <= ARITHMETIC:
                narrow = info.dtype if widens(info.dtype, stored.dtype) else stored.dtype
                pairs[info.name] = Pair(info, stored, narrow, CAST_ULPS)
        else:
            exact = _is_exact(target.operations, [plan.tensor(move.source).dtype for move in target.moves[:1]])
            exact = exact and not any(plan.is_made(move.source) for move in target.moves)
            pairs[info.name] = Pair(info, stored, None, 0 if exact else CAST_ULPS, target.generator)
    return Pairing(pairs, unmatched)


def pair_back(plan: Plan, back: Plan, usable: Iterable[str]) -> Pairing:
    """What the way back makes of the target, with the source's tensors.

    Args:
        plan: from source to target.
        back: from target to source.
        usable: the target's tensors that have the shape and dtype that the plan gives.
    """
    usable = frozenset(usable)
    made = {target.info.name: target for target in back.targets}
    home = _homes(plan, back)
    operations = {target.info.name: target.operations for target in plan.targets}
    pairs: dict[str, Pair] = {}
    unmatched = {
        plan.sources[drop.source].info.name: f"dropped by the spec: {drop.reason}" for drop in plan.whole_dropped
    }
    carried = {check.second: plan.sources[check.first].info.name for check in plan.equality_checks}
    for number, source in enumerate(plan.sources):
        info = source.info
        if info.name in unmatched:
            continue
        target = made.get(home.get(number, info.name))
        if target is None:
            equal = f"it must be equal to {printable(carried[number])}, which comes back" if number in carried else None
            unmatched[info.name] = equal or "the way back makes no tensor of this name"
            continue
        lost = [name for name in _reads(back, target) if name not in usable]
        if lost:
            unmatched[info.name] = f"it would be made of {printable(lost[0])}, which isn't as planned"
        elif target.info.shape != info.shape:
            unmatched[info.name] = f"the way back makes it {list(target.info.shape)}, not {list(info.shape)}"
        else:
            pairs[target.info.name] = _back_pair(back, target, info, operations)
    return Pairing(pairs, unmatched)


def _homes(plan: Plan, back: Plan) -> dict[int, str]:
    """For each source whose name the way back doesn't make: the tensor that is made of the same ones.

    A tied checkpoint may have stored its matrix under another of the tied keys than the first.
    """
    made = {target.info.name: target for target in back.targets}
    stored = {source.info.name for source in plan.sources}
    spare = {name: frozenset(_reads(back, target)) for name, target in made.items() if name not in stored}
    fed: dict[int, set[str]] = {}
    for target in plan.targets if spare else ():
        for source in plan.sources_of(target):
            fed.setdefault(source, set()).add(target.info.name)
    homes = {}
    for number, names in fed.items():
        if plan.sources[number].info.name in made:
            continue
        found = [name for name, reads in spare.items() if reads & names]
        if len(found) == 1:
            homes[number] = found[0]
    return homes


def _reads(plan: Plan, target: Target) -> list[str]:
    return [plan.sources[source].info.name for source in plan.sources_of(target)]


def _is_exact(operations: Sequence[Elementwise], dtypes: Sequence[DType]) -> bool:
    """Whether no value is rounded on its way; whatever isn't a cast says so itself."""
    dtype = dtypes[0] if dtypes else None
    for operation in operations:
        if isinstance(operation, Cast):
            if dtype is None or not widens(dtype, operation.target):
                return False
            dtype = operation.target
        elif operation.exactness != "exact":
            return False
    return True


def _back_pair(back: Plan, target: Target, source: TensorInfo, operations: Mapping[str, Sequence[Elementwise]]) -> Pair:
    """Where the values were rounded on their way to the target, the source is rounded likewise before it is compared.

    `operations` are those of the way there, by the target's tensors.
    """
    there_and_back = [*target.operations, *(one for name in _reads(back, target) for one in operations[name])]
    if not all(isinstance(operation, Cast) for operation in there_and_back):
        exact = all(operation.exactness == "exact" for operation in there_and_back)
        return Pair(target.info, source, None, 0 if exact else None)
    if target.generator is not None:
        return Pair(target.info, source, None, 0, target.generator)
    between = {back.tensor(move.source).dtype for move in target.moves}
    narrow = next(iter(between)) if len(between) == 1 else source.dtype
    rounded = not widens(source.dtype, narrow) or target.info.dtype is not source.dtype
    if rounded and {narrow, source.dtype, target.info.dtype} <= ARITHMETIC:
        return Pair(target.info, source, narrow, CAST_ULPS)
    return Pair(target.info, source)
