"""Where the data of each output file should begin, so that it can share blocks with the files that it is made of.

A file system shares whole blocks only. So a tensor that is copied can be shared where it begins at the same place in a
block as its source does, and that depends on where the header ends, which a few thousand spaces can shift. The rule
looks at the layout of the source's files alone: the same job gives the same bytes on every file system.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from msgspec.structs import replace

from converters.parts import split_key
from converters.plan import Plan, Target
from converters.renames import whole_source
from converters.sharding import Shard
from converters.storage.base import CheckpointReader, OpenFile
from converters.storage.parts import PartsReader
from converters.storage.reflink import LEAST_NBYTES
from converters.storage.safetensors_header import BLOCK, in_file_order
from converters.storage.safetensors_index import SUFFIX
from converters.storage.safetensors_reader import SafetensorsReader

_ALIGNMENT: Final = 8
"""Bytes: where data may begin, so that readers can use it in place."""


def place_of(reader: object, name: str) -> tuple[OpenFile, int] | None:
    """The file in which a tensor's bytes follow each other, and where they begin; None where it isn't known."""
    if isinstance(reader, PartsReader):
        label, inner = split_key(name)
        return place_of(reader.readers[label], inner)
    if not isinstance(reader, SafetensorsReader):
        return None
    filename = reader.file_of[name]
    header = reader.headers[filename]
    return reader.files[filename], header.data_start + header.offsets[name]


def share_blocks(plan: Plan, reader: CheckpointReader) -> Plan:
    """The same plan, laid out so that as much as possible of its files can be shared with those of the source.

    Each shard says where its data begins. One whose tensors only get other names keeps them in the source's order, so
    that sizes that aren't whole blocks shift both files alike.
    """
    shards: list[Shard] = []
    ordered: list[Target] = []
    for shard, numbers in zip(plan.shards, plan.shard_targets(), strict=True):
        targets: Sequence[Target] = plan.targets[numbers.start : numbers.stop]
        if shard.filename.endswith(SUFFIX):
            targets = _in_source_order(plan, targets, reader)
            infos = tuple(target.info for target in targets)
            shard = replace(shard, tensors=infos, data_phase=_best_phase(plan, targets, reader))  # noqa: PLW2901
        shards.append(shard)
        ordered.extend(targets)
    return replace(plan, targets=tuple(ordered), shards=tuple(shards))


def _in_source_order(plan: Plan, targets: Sequence[Target], reader: CheckpointReader) -> Sequence[Target]:
    """Targets by the place of their source, if each is a whole one; else as they are."""
    numbers = [whole_source(target, plan.sources) for target in targets]
    if not all(number is not None and place_of(reader, plan.sources[number].info.name) for number in numbers):
        return targets
    # Sources are in the order of the files, and of the data in them.
    order = sorted(range(len(targets)), key=lambda index: (numbers[index], index))
    return [targets[index] for index in order]


def _best_phase(plan: Plan, targets: Sequence[Target], reader: CheckpointReader) -> int | None:
    """The place in a block that suits most bytes; None if none suits any."""
    by_name = {target.info.name: target for target in targets}
    votes: Counter[int] = Counter()
    position = 0
    for info in in_file_order([target.info for target in targets]):
        for phase, nbytes in _phases(plan, by_name[info.name], reader):
            votes[(phase - position) % BLOCK] += nbytes
        position += info.nbytes
    suitable = [phase for phase in votes if phase % _ALIGNMENT == 0]
    return max(suitable, key=lambda phase: (votes[phase], -phase), default=None)


def _phases(plan: Plan, target: Target, reader: CheckpointReader) -> Iterator[tuple[int, int]]:
    """Where a target would have to begin in its file for a piece of it to be shared, and the bytes of the piece."""
    if target.info.nbytes < LEAST_NBYTES or not target.is_plain or target.info.dtype.bits % 8:
        return
    width = target.info.dtype.bits // 8
    for move in target.moves:
        nbytes = move.copy.size * width
        if nbytes < LEAST_NBYTES or not move.copy.is_range or plan.is_made(move.source):
            continue
        if (place := place_of(reader, plan.sources[move.source].info.name)) is not None:
            yield place[1] + (move.copy.source_start - move.copy.target_start) * width, nbytes
