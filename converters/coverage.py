"""Drafts of the targets, and the proof that every element is used and written once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct, field

from converters.bind import BoundRule
from converters.errors import Problem
from converters.operations import Elementwise, Generator
from converters.operations.cast import Cast
from converters.operations.numeric import ARITHMETIC
from converters.plan import BlockFill, Move, Source, Target
from converters.schedule import byte_copy
from converters.strided import StridedCopy, source_box, target_box, tiles_exactly
from converters.tensor_info import DType, TensorInfo
from converters.text import printable

NARROWEST_CAST_BITS = 16
"""Bits: narrower floats mean something only together with their scales, so a blanket cast leaves them alone."""


class Draft(Struct):
    """A target while the rules that make it are being collected; a grid of scales isn't cast by a blanket cast."""

    info: TensorInfo
    rules: list[BoundRule]
    moves: list[Move] = field(default_factory=list)
    operations: tuple[Elementwise, ...] = ()
    generator: Generator | None = None
    fills: list[BlockFill] = field(default_factory=list)
    is_grid: bool = False

    def finish(self, dtype: DType | None) -> Target:
        """The target, cast to `dtype` where a blanket cast applies to it."""
        info = self.info
        cast = dtype is not None and dtype is not info.dtype and info.dtype in ARITHMETIC
        if dtype is None or not cast or self.is_grid or info.dtype.bits < NARROWEST_CAST_BITS:
            return self._target(info, self.operations)
        operations = () if self.generator is not None else (*self.operations, Cast(dtype))
        return self._target(TensorInfo(info.name, info.shape, dtype), operations)

    def _target(self, info: TensorInfo, operations: tuple[Elementwise, ...]) -> Target:
        return Target(info, self.rules[0].number, tuple(self.moves), operations, self.generator, tuple(self.fills))


class Coverage:
    """Collects what rules write and read, and proves it complete."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.drafts: dict[str, Draft] = {}
        self.reads: dict[int, Sequence[StridedCopy]] = {}
        self.whole: set[int] = set()
        """Sources that are used as a whole without being copied: dropped, or compared with another."""
        self._proved: dict[object, bool] = {}

    def read(self, source: int, copies: Sequence[StridedCopy]) -> None:
        """Note what is read of a source; the first time, what is given is kept as it is, and shared with others."""
        before = self.reads.get(source)
        self.reads[source] = copies if before is None else [*before, *copies]

    def draft(self, rule: BoundRule, info: TensorInfo, generator: Generator | None = None) -> Draft | str:
        """The draft of a target that a rule makes, or what is wrong with two rules making it."""
        draft = self.drafts.get(info.name)
        if draft is None:
            draft = Draft(info, [rule], operations=rule.rule.elementwise, generator=generator)
            self.drafts[info.name] = draft
            return draft
        if rule in draft.rules:
            return f"two source keys become {printable(info.name)}"
        moved = draft.generator is None and generator is None
        if moved and draft.info == info and draft.operations == rule.rule.elementwise:
            # Two rules may move elements into disjoint parts of one target; that they don't overlap is proved later.
            draft.rules.append(rule)
            return draft
        other = draft.rules[0].rule
        line = other.location.line if other.location else "?"
        return f"both {other.path} (line {line}) and this rule make {printable(info.name)}"

    def prove(self, spec_path: str, made: Sequence[TensorInfo] = ()) -> list[Problem]:
        """Every element of every target written once, every element of every source used once: what isn't so.

        `made` are the tensors whose numbers come after those of the sources.
        """
        problems = []
        for draft in self.drafts.values():
            if not self._is_one_copy(draft):
                problems.extend(self._check_target(draft))
        infos = [source.info for source in self.sources]
        for number, info in enumerate([*infos, *made]):
            if number in self.whole:
                continue
            copies = self.reads.get(number)
            if copies is None or not self._tiles(copies, info.size, target=False):
                what = f"{printable(str(info))}: not every element is used exactly once"
                hint = "a block that one rule leaves out ('_') must be taken by another"
                problems.append(Problem(what, spec_path or None, hint))
        return problems

    def _is_one_copy(self, draft: Draft) -> bool:
        """Whether a target is known to be written once by a single copy, as most are."""
        info = draft.info
        if len(draft.moves) != 1 or draft.fills or draft.generator is not None or info.dtype.bits % 8:
            return False
        return self._tiles([draft.moves[0].copy], info.size, target=True)

    def _check_target(self, draft: Draft) -> list[Problem]:
        info, rule = draft.info, draft.rules[0].rule
        if draft.generator is not None:
            return []
        copies = [move.copy for move in draft.moves] + [fill.copy for fill in draft.fills]
        if not self._tiles(copies, info.size, target=True):
            paths = " and ".join(bound.rule.path for bound in draft.rules)
            what = f"{rule.path}: {printable(info.name)} is made by {paths}, but not every element exactly once"
            return [Problem(what, rule.location, "each target is made once; do two rules make it, or leave a gap?")]
        bits = info.dtype.bits
        if bits % 8 and any(byte_copy(copy, bits) is None for copy in copies):
            what = f"{printable(str(info))}: the layout would cut a byte in two, since an element has {bits} bits"
            return [Problem(f"{rule.path}: {what}", rule.location)]
        return []

    def _tiles(self, copies: Sequence[StridedCopy], size: int, *, target: bool) -> bool:
        # Layers share their geometry, so each distinct case is proved once. Mostly they share the very same copy.
        case: object = (id(copies[0]), size, target) if len(copies) == 1 else (tuple(copies), size, target)
        if case not in self._proved:
            box = target_box if target else source_box
            self._proved[case] = tiles_exactly((box(copy) for copy in copies), size)
        return self._proved[case]


def mixed_dtypes(infos: Sequence[TensorInfo]) -> str | None:
    """What is wrong where tensors that are joined have different dtypes; None where they agree."""
    if len({info.dtype for info in infos}) == 1:
        return None
    each = ", ".join(printable(str(info)) for info in infos)
    return f"the tensors that are joined have different dtypes: {each}"


def unlike(infos: Iterable[TensorInfo], like: TensorInfo) -> str | None:
    """What is wrong where tensors of one term differ in shape or dtype; None where they agree."""
    for info in infos:
        if info.shape != like.shape or info.dtype != like.dtype:
            return f"{printable(str(info))} is unlike {printable(str(like))}"
    return None
