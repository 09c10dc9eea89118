"""What is wrong with a target that can't be opened: its files one by one, and the planned tensors that are lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from converters.errors import CheckpointError, Problem, WeightmapError
from converters.plan import Plan
from converters.storage.checkpoint import resolve_member, weight_files
from converters.storage.files import read_small_file
from converters.storage.readers import open_files
from converters.storage.safetensors_index import (
    MAX_INDEX_NBYTES,
    SUFFIX,
    SafetensorsIndex,
    index_suffix,
    is_index,
    parse_index,
)
from converters.text import printable
from converters.verify.names import layer_of
from converters.verify.report import Finding
from converters.verify.tensor_check import rule_text


def examine_refused(target: Path, error: WeightmapError, plan: Plan) -> tuple[Finding, ...]:
    """Look at a damaged target file by file.

    Args:
        target: what the user gave.
        error: why it can't be opened.
        plan: what it should hold.

    Returns:
        At least one finding: what the error says, where nothing more precise is found.
    """
    if not target.is_dir():
        return tuple(_as_given("damaged-file", problem) for problem in error.problems)
    findings: list[Finding] = []
    holders: dict[str, str] = {}
    names = sorted(weight_files([entry.name for entry in target.iterdir()]))
    readable: dict[str, frozenset[str]] = {}
    for name in names:
        try:
            with open_files(target / name, {name: resolve_member(target, name)}) as reader:
                readable[name] = frozenset(reader.tensors)
        except CheckpointError as damage:
            findings.extend(_as_given("damaged-file", problem, name) for problem in damage.problems)
            continue
        for tensor in readable[name]:
            other = holders.setdefault(tensor, name)
            if other != name:
                what = f"the tensor is in two files, {printable(other)} and {printable(name)}"
                findings.append(Finding("duplicate-tensor", what, tensor, layer=layer_of(tensor)))
    findings.extend(_index_findings(target, readable, names))
    if not findings:
        findings.extend(_as_given("unreadable-target", problem) for problem in error.problems)
    findings.extend(
        Finding("missing-tensor", "the target lacks this tensor", wanted.info.name,
                f"{list(wanted.info.shape)} {wanted.info.dtype}", rule=rule_text(plan, wanted.rule),
                layer=layer_of(wanted.info.name))
        for wanted in plan.targets
        if wanted.info.name not in holders
    )  # fmt: skip
    return tuple(findings)


def _as_given(kind: str, problem: Problem, where: str | None = None) -> Finding:
    place = where if where is not None else str(problem.where) if problem.where is not None else None
    return Finding(kind, problem.what, place, hint=problem.hint)


def _index_findings(target: Path, readable: Mapping[str, frozenset[str]], names: list[str]) -> Iterator[Finding]:
    indexes = [entry.name for entry in target.iterdir() if is_index(entry.name)]
    if len(indexes) != 1:
        return
    where = printable(str(target / indexes[0]))
    try:
        raw = read_small_file(resolve_member(target, indexes[0]), MAX_INDEX_NBYTES, where)
        index = parse_index(raw, where, index_suffix(indexes[0]) or SUFFIX)
    except CheckpointError as damage:
        for problem in damage.problems:
            yield _as_given("damaged-index", problem, indexes[0])
        return
    yield from _compare(index, readable, names)


def _compare(index: SafetensorsIndex, readable: Mapping[str, frozenset[str]], names: list[str]) -> Iterator[Finding]:
    for name in index.filenames:
        if name not in names:
            count = sum(1 for filename in index.weight_map.values() if filename == name)
            yield Finding("missing-shard", f"the index names this file for {count} tensors, and it isn't there", name)
    for tensor, filename in index.weight_map.items():
        if filename in readable and tensor not in readable[filename]:
            what = f"the index says that it is in {printable(filename)}, and it isn't"
            yield Finding("ghost-index-entry", what, tensor, layer=layer_of(tensor))
    for name in names:
        if name not in index.filenames:
            what = "the index doesn't name this file, though it holds tensors"
            yield Finding("orphaned-shard", what, name)
            continue
        for tensor in sorted(readable.get(name, ())):
            if tensor not in index.weight_map:
                what = f"{printable(name)} holds this tensor, and the index doesn't name it"
                yield Finding("orphaned-tensor", what, tensor, layer=layer_of(tensor))
