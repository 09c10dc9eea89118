"""A source that changes while it is read: an error that says so, never a signal or wrong bytes, and nothing written."""

from __future__ import annotations

import shutil

from tests.crashes.calls import Call, both_ways, calls_of, hit_fault, short
from tests.crashes.check import CHECKPOINT, Row, end_of
from tests.crashes.layer import CHANGES, Fault
from tests.crashes.scene import Scene
from tests.crashes.server import Server

_READING = ("preadv", "pread", "read")


def changing_sources(scene: Scene, server: Server, every: int = 1) -> list[Row]:
    """Truncate, replace, change, empty and remove each file of weights, before each time that its tensors are read."""
    kept = scene.root / "kept"
    shutil.copytree(scene.source, kept)
    rows = []
    checked, _ = both_ways(scene, server)
    calls = _reads_of_weights(scene, calls_of(checked, str(scene.source)))
    for change in CHANGES:
        row = Row(f"source: {change} while it is read")
        for name, number, path in calls[::every]:
            checked.begin()
            ended = server.run(checked.words, fault=Fault(name, number, change, str(scene.source)))
            end = end_of(ended, checked.state())
            shutil.rmtree(scene.source)
            shutil.copytree(kept, scene.source)
            checked.note_source()
            fault = hit_fault(ended) or checked.broken_by_error(ended, {CHECKPOINT})
            if not fault and ended.code == 0:
                fault = "it ended well"
            row.add(
                f"at {name} {number} of {short(scene, path)}", end, fault or checked.broken_by_rerun(), ended.seconds
            )
        rows.append(row)
    shutil.rmtree(kept)
    return rows


def _reads_of_weights(scene: Scene, calls: list[Call]) -> list[Call]:
    """Reads of files that stay open; before that a file is looked at for its format, and may still become another."""
    opened = {path: place for place, (name, _, path) in enumerate(calls) if name == "open"}
    return [
        (name, number, path)
        for place, (name, number, path) in enumerate(calls)
        if name in _READING and path.startswith(str(scene.source)) and path.endswith(".safetensors")
        if place > opened[path]
    ]
