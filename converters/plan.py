"""A plan: everything that a conversion will do, as plain data, proved to cover both sides before any data is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from converters.operations import Elementwise, Generator, Reduction, TensorOperation
from converters.sharding import Shard
from converters.strided import StridedCopy
from converters.tensor_info import TensorInfo


class Move(Struct, frozen=True, gc=False):
    """One strided copy out of `Plan.sources[source]`, or beyond their number out of `Plan.made`."""

    source: int
    copy: StridedCopy


class BlockFill(Struct, frozen=True, gc=False):
    """Elements of a target without a source: what `generator` makes, all the same; `copy` reads a single element."""

    generator: Generator
    copy: StridedCopy


class Target(Struct, frozen=True, gc=False):
    """One tensor of the output: the copies that fill it, and the operations that each value goes through.

    A target without a source has a `generator` instead of moves; elements without one are filled block by block, after
    the operations.
    """

    info: TensorInfo
    rule: int
    moves: tuple[Move, ...]
    operations: tuple[Elementwise, ...] = ()
    generator: Generator | None = None
    fills: tuple[BlockFill, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether its values are those of the source, bit for bit."""
        return not self.operations and self.generator is None


class Source(Struct, frozen=True, gc=False):
    """One tensor of the input, and the file that holds it."""

    info: TensorInfo
    file: str


class MadeSource(Struct, frozen=True):
    """A tensor that no file holds: an operation makes it of sources, by number, whenever a part of it is read."""

    info: TensorInfo
    operation: TensorOperation
    inputs: tuple[int, ...]
    reduction: Reduction | None = None


class EqualityCheck(Struct, frozen=True, gc=False):
    """Two sources of which only the first is carried: they must hold the same bytes."""

    first: int
    second: int
    rule: int


class GeneratedCheck(Struct, frozen=True, gc=False):
    """A source, or a block of one, that the other side makes anew: it must hold what `generator` makes.

    `copy` reads what is checked, in order, into a tensor of its own.
    """

    source: int
    generator: Generator
    rule: int
    copy: StridedCopy


class Dropped(Struct, frozen=True, gc=False):
    """A source that is left out, and why; with `size`, only so many of its elements are."""

    source: int
    reason: str
    size: int | None = None


class RuleSummary(Struct, frozen=True):
    """What `plan` shows of a rule: its text, its place, what it came to, and why it is off (None where it is on)."""

    text: str
    where: str
    exactness: str
    kind: str
    instances: int = 0
    off: str | None = None


class Plan(Struct, frozen=True):
    """See the module. `targets` are in the order of the output; `shards` hold their infos in the same order."""

    spec: str
    spec_digest: str
    reverse: bool
    sources: tuple[Source, ...]
    targets: tuple[Target, ...]
    shards: tuple[Shard, ...]
    rules: tuple[RuleSummary, ...]
    dropped: tuple[Dropped, ...] = ()
    equality_checks: tuple[EqualityCheck, ...] = ()
    generated_checks: tuple[GeneratedCheck, ...] = ()
    notes: tuple[str, ...] = ()
    config: Mapping[str, Any] | None = None
    made: tuple[MadeSource, ...] = ()

    def is_made(self, source: int) -> bool:
        """Whether this source of a move is one that an operation makes."""
        return source >= len(self.sources)

    def made_source(self, source: int) -> MadeSource:
        """The source of a move that an operation makes."""
        return self.made[source - len(self.sources)]

    def tensor(self, source: int) -> TensorInfo:
        """What a move with this source reads."""
        return self.made_source(source).info if self.is_made(source) else self.sources[source].info

    def origins(self, source: int) -> tuple[int, ...]:
        """The sources that a move with this source reads in the end: itself, or those that it is made of."""
        return self.made_source(source).inputs if self.is_made(source) else (source,)

    def sources_of(self, target: Target) -> tuple[int, ...]:
        """The sources that a target is made of, each once."""
        if len(target.moves) == 1:
            return self.origins(target.moves[0].source)
        return tuple(dict.fromkeys(origin for move in target.moves for origin in self.origins(move.source)))

    @property
    def whole_dropped(self) -> tuple[Dropped, ...]:
        """The sources that are left out as a whole."""
        return tuple(drop for drop in self.dropped if drop.size is None)

    @property
    def bytes_read(self) -> int:
        """Bytes of the sources that the output is made of; a source read for two targets counts twice."""
        if not self.made:
            return sum(
                move.copy.size * self.sources[move.source].info.dtype.bits // 8
                for target in self.targets
                for move in target.moves
            )
        return sum(self._nbytes_read(move) for target in self.targets for move in target.moves)

    def _nbytes_read(self, move: Move) -> int:
        info = self.tensor(move.source)
        if not self.is_made(move.source):
            return move.copy.size * info.dtype.bits // 8
        inputs = sum(self.sources[source].info.nbytes for source in self.origins(move.source))
        return inputs * move.copy.size // max(1, info.size)

    @property
    def bytes_checked(self) -> int:
        """Bytes read only to compare them."""
        pairs = sum(2 * self.sources[check.first].info.nbytes for check in self.equality_checks)
        return pairs + sum(
            check.copy.size * self.sources[check.source].info.dtype.bits // 8 for check in self.generated_checks
        )

    @property
    def bytes_written(self) -> int:
        """Bytes of tensor data in the output."""
        return sum(target.info.nbytes for target in self.targets)

    def shard_targets(self) -> Iterator[range]:
        """For each shard, the numbers of its targets; they follow each other as the shards do."""
        start = 0
        for shard in self.shards:
            yield range(start, start + len(shard.tensors))
            start += len(shard.tensors)

    def bytes_by_way(self) -> dict[str, int]:
        """Bytes written by way: `copied` as plain byte ranges, `rearranged`, `computed`, `generated`."""
        ways = {"copied": 0, "rearranged": 0, "computed": 0, "generated": 0}
        made = len(self.sources)
        for target in self.targets:
            bits = target.info.dtype.bits
            if target.generator is not None:
                ways["generated"] += target.info.nbytes
            if target.fills:
                ways["generated"] += sum(fill.copy.size for fill in target.fills) * bits // 8
            for move in target.moves:
                computed = target.operations or move.source >= made
                way = "computed" if computed else "copied" if move.copy.is_range else "rearranged"
                ways[way] += move.copy.size * bits // 8
        return ways

    def to_json(self) -> str:
        """The plan as JSON; `Plan.from_json` reads it back as an equal plan."""
        from converters.plan_json import encode

        return encode(self)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan that `to_json` wrote.

        Raises:
            WeightmapError: the text is no plan, or one of another version.
        """
        from converters.plan_json import decode

        return decode(text)
