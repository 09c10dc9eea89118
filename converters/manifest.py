"""`weightmap_manifest.json`: where an output came from, and the digests by which it can be checked ever after.

Two runs of the same job write the same bytes, the time aside; so it names no paths of this machine, and inputs by their
digests.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

import converters
from converters.errors import CheckpointError, WeightmapError
from converters.plan import Plan
from converters.schedule import needs_arrays
from converters.spec import Spec
from converters.storage.checkpoint import resolve_member
from converters.storage.file_digests import FileDigests
from converters.storage.files import raise_unreadable, read_small_file, write_new_file
from converters.storage.strict_json import StrictJsonError, parse_object
from converters.text import printable

MANIFEST: Final = "weightmap_manifest.json"
VERSION: Final = 1
MAX_NBYTES: Final = 1 << 30
"""Bytes: an entry takes a few hundred for each tensor."""
MAX_VALUES: Final = 50_000_000

_MOST_DIGITS: Final = 11
"""Of seconds since 1970: enough for a thousand years, and few enough for every system's calendar."""


class Input(Struct, frozen=True):
    """A file that was read.

    Attributes:
        file: its name, relative to the source.
        nbytes: its size.
        digest: of all its bytes; None of a file in a store, which isn't read twice.
        identity: what a store says of it, such as its ETag, in place of a digest.
    """

    file: str
    nbytes: int
    digest: str | None
    identity: str | None = None


def make_manifest(
    spec: Spec,
    plan: Plan,
    *,
    command: str,
    inputs: Iterable[Input],
    outputs: Sequence[FileDigests],
    checks: Mapping[str, Any],
) -> dict[str, Any]:
    """All that is known of a conversion, as plain data.

    Args:
        spec: in the direction in which it was applied.
        plan: what was carried out.
        command: which does the same again.
        inputs: what was read.
        outputs: what was written, the manifest itself aside.
        checks: what was checked, and with which result.

    Raises:
        WeightmapError: see `creation_time`.
    """
    return {
        "weightmap_manifest": VERSION,
        "created": creation_time(),
        "versions": _versions(plan),
        "command": command,
        "spec": {
            "name": spec.name,
            "digest": f"sha256:{plan.spec_digest}",
            "reverse": plan.reverse,
            "from": spec.source.layout,
            "to": spec.target.layout,
        },
        "inputs": [
            {key: value for key, value in _fields(each) if value is not None}
            for each in sorted(inputs, key=lambda each: each.file)
        ],
        "outputs": [
            {"file": each.file, "nbytes": each.nbytes} | ({"digest": each.digest} if each.digest else {})
            for each in sorted(outputs, key=lambda each: each.file)
        ],
        "tensors": _tensors(plan, outputs),
        "dtype_changes": _dtype_changes(plan),
        "dropped": [_dropped(plan, number) for number in range(len(plan.dropped))],
        "checks": dict(checks),
    }


def creation_time() -> str:
    """The time in UTC; that of SOURCE_DATE_EPOCH where it is set, as in every reproducible build.

    Raises:
        WeightmapError: SOURCE_DATE_EPOCH is no number of seconds.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    seconds = None
    if given:
        if not (given.isascii() and given.isdigit() and len(given) <= _MOST_DIGITS):
            what = f"expected seconds since 1970, got {printable(repr(given))}"
            raise WeightmapError(
                what, "the environment variable SOURCE_DATE_EPOCH", "Set it to such a number, or unset it."
            )
        seconds = int(given)
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def write_manifest(directory: Path, manifest: Mapping[str, Any], *, sync: bool = True) -> None:
    """Write a manifest into the directory that it is of.

    Raises:
        OutputError: it can't be written, or one is there.
    """
    write_new_file(directory / MANIFEST, f"{_text(manifest)}\n".encode(), sync=sync)


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read the manifest of a directory.

    Raises:
        CheckpointError: there is none, it is damaged, or a later weightmap wrote it.
    """
    where = printable(str(directory / MANIFEST))
    try:
        is_there = (directory / MANIFEST).exists()
    except OSError as error:
        raise_unreadable(error, where)
    if not is_there:
        raise CheckpointError(
            f"there is no {MANIFEST} here",
            printable(str(directory)),
            "weightmap convert writes one; to compare an output with its source, use weightmap verify",
        )
    try:
        manifest = parse_object(
            read_small_file(resolve_member(directory, MANIFEST), MAX_NBYTES, where), max_values=MAX_VALUES
        )
    except StrictJsonError as error:
        raise CheckpointError(str(error), where) from None
    if manifest.get("weightmap_manifest") != VERSION:
        found = printable(repr(manifest.get("weightmap_manifest")))
        raise CheckpointError(f"expected a manifest of version {VERSION}, found {found}", where)
    return manifest


def _text(manifest: Mapping[str, Any]) -> str:
    """JSON with a line for each file and each tensor: to be read by people, compared by `diff`, and short."""
    encode = json.JSONEncoder().encode  # one for all: `json.dumps` asks for its options each time
    parts = []
    for key, value in manifest.items():
        if isinstance(value, list) and value:
            body = "[\n" + ",\n".join(f"  {encode(each)}" for each in value) + "\n ]"
        elif key == "tensors" and value:
            body = "{\n" + ",\n".join(f"  {encode(name)}: {encode(each)}" for name, each in value.items()) + "\n }"
        else:
            body = encode(value)
        parts.append(f" {encode(key)}: {body}")
    return "{\n" + ",\n".join(parts) + "\n}"


def _fields(each: Input) -> list[tuple[str, Any]]:
    return [("file", each.file), ("nbytes", each.nbytes), ("digest", each.digest), ("identity", each.identity)]


def _versions(plan: Plan) -> dict[str, str]:
    """What could make a difference to the bytes."""
    versions = {"weightmap": converters.__version__, "python": platform.python_version()}
    if needs_arrays(plan):
        import numpy as np

        versions["numpy"] = np.__version__
    return versions


def _tensors(plan: Plan, outputs: Sequence[FileDigests]) -> dict[str, Any]:
    placed = {extent.name: (each.file, extent) for each in outputs for extent in each.tensors}
    names = [source.info.name for source in plan.sources]
    tensors = {}
    for target in plan.targets:
        info = target.info
        entry: dict[str, Any] = {"dtype": str(info.dtype), "shape": list(info.shape)}
        if info.name in placed:
            file, extent = placed[info.name]
            entry |= {"file": file, "bytes": [extent.start, extent.end], "digest": extent.digest}
        entry["from"] = [names[number] for number in plan.sources_of(target)]
        tensors[info.name] = entry
    return tensors


def _dtype_changes(plan: Plan) -> list[dict[str, str]]:
    changes = []
    for target in plan.targets:
        to = target.info.dtype
        read = {plan.tensor(move.source).dtype for move in target.moves} - {to}
        # In an order of their own: that of a set differs from run to run.
        changes += [{"tensor": target.info.name, "from": each, "to": str(to)} for each in sorted(map(str, read))]
    return changes


def _dropped(plan: Plan, number: int) -> dict[str, Any]:
    dropped = plan.dropped[number]
    entry: dict[str, Any] = {"key": plan.sources[dropped.source].info.name, "reason": dropped.reason}
    return entry if dropped.size is None else entry | {"elements": dropped.size}
