"""Disks that are too small, fill up during the run, have no inodes left or are read-only: a clear error, no output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from tests.crashes.calls import both_ways, calls_of, hit_fault, short, under
from tests.crashes.check import OUTPUT, Row, end_of
from tests.crashes.disks import Disk, memory_disk, why_no_memory_disk
from tests.crashes.layer import WRITING, Fault
from tests.crashes.scene import Files, Scene
from tests.crashes.server import Server

_PAGE = 4096
_AMPLE = 64 << 20


def full_disks(scene: Scene, server: Server, points: int) -> list[Row]:
    """All kinds of disks that can't take the output."""
    rows = [_file_sizes(scene, server, points), _full_by_fault(scene, server, points)]
    if why := why_no_memory_disk(scene.root):
        return [*rows, Row("disk too small", missing=why), Row("disk full during the run", missing=why)]
    return [
        *rows,
        _too_small(scene, server, points),
        _filling(scene, server, points),
        _without_inodes(scene, server),
        _read_only(scene, server),
    ]


def _too_small(scene: Scene, server: Server, points: int) -> Row:
    """Disks of every size up to what the output needs, so that free space runs out before or during the run."""
    row = Row("disk too small")
    with _on_disk(scene, f"size={_AMPLE}") as (there, disk):
        for checked in both_ways(there, server):
            checked.begin()
            needed = _nbytes(there.references[checked.words])
            start = _nbytes_used(disk)
            for point in range(points // 2):
                checked.begin()
                size = start + _PAGE + needed * point // (points // 2)
                disk.change(f"size={size}")
                ended = server.run(checked.words)
                end = end_of(ended, checked.state())
                fault = checked.broken_by_error(ended, {OUTPUT})
                disk.change(f"size={_AMPLE}")
                row.add(f"{size:,} bytes in all", end, fault or checked.broken_by_rerun(), ended.seconds)
    return row


def _filling(scene: Scene, server: Server, points: int) -> Row:
    """Something else fills the disk at a call of the run, to the last byte."""
    row = Row("disk full during the run")
    with _on_disk(scene, f"size={_AMPLE}") as (there, disk):
        for checked in both_ways(there, server):
            checked.begin()
            size = _nbytes_used(disk) + 2 * _nbytes(there.references[checked.words]) + (1 << 20)
            calls = [call for call in calls_of(checked) if _writes(there, call[0], call[2])]
            chosen = calls[:: max(1, len(calls) // (points // 2))]
            for name, number, path in chosen:
                checked.begin()
                disk.change(f"size={size}")
                fault = Fault(name, number, "fill", under(there), str(disk.path))
                ended = server.run(checked.words, fault=fault)
                end = end_of(ended, checked.state())
                broken = hit_fault(ended) or checked.broken_by_error(ended, {OUTPUT})
                (disk.path / "filler").unlink(missing_ok=True)
                disk.change(f"size={_AMPLE}")
                what = f"at {name} {number} of {short(there, path)}"
                row.add(what, end, broken or checked.broken_by_rerun(), ended.seconds)
    return row


def _full_by_fault(scene: Scene, server: Server, points: int) -> Row:
    """As `_filling`, where no disk may be mounted: from some write on, each of them finds the disk full."""
    row = Row("disk full from a write on (layer)")
    for checked in both_ways(scene, server):
        calls = [call for call in calls_of(checked) if call[0] == "pwrite" and call[2].startswith(str(scene.outputs))]
        for name, number, path in calls[:: max(1, len(calls) * 2 // points)]:
            checked.begin()
            ended = server.run(checked.words, fault=Fault(name, number, "ENOSPC", under(scene), lasting=True))
            end = end_of(ended, checked.state())
            broken = hit_fault(ended) or checked.broken_by_error(ended, {OUTPUT})
            row.add(f"{name} {number} of {short(scene, path)}", end, broken or checked.broken_by_rerun(), ended.seconds)
    return row


def _without_inodes(scene: Scene, server: Server) -> Row:
    """A disk that takes no more files, after each number of them."""
    row = Row("no inodes left")
    with _on_disk(scene, f"size={_AMPLE},nr_inodes=1000") as (there, disk):
        for checked in both_ways(there, server):
            more = 0
            while True:
                checked.begin()
                used = 1 + sum(1 for _ in disk.path.rglob("*"))
                disk.change(f"nr_inodes={used + more}")
                ended = server.run(checked.words)
                end = end_of(ended, checked.state())
                fault = checked.broken_by_error(ended, {OUTPUT})
                disk.change("nr_inodes=1000")
                row.add(f"{more} left", end, fault or checked.broken_by_rerun(), ended.seconds)
                if ended.code == 0:
                    break
                more += 1
    return row


def _read_only(scene: Scene, server: Server) -> Row:
    row = Row("target that is read-only")
    with _on_disk(scene, f"size={_AMPLE}") as (there, disk):
        for checked in both_ways(there, server):
            checked.begin()
            disk.change("ro")
            ended = server.run(checked.words)
            end = end_of(ended, checked.state())
            fault = checked.broken_by_error(ended, {OUTPUT}) or ("" if ended.code else "it ended well")
            disk.change("rw")
            row.add("from the start", end, fault or checked.broken_by_rerun(), ended.seconds)
    return row


def _file_sizes(scene: Scene, server: Server, points: int) -> Row:
    """As `ulimit -f` sets it."""
    row = Row("limit of a file's size")
    for checked in both_ways(scene, server):
        checked.begin()
        largest = max(len(content or b"") for content in scene.references[checked.words].values())
        for point in range(points // 2):
            checked.begin()
            limit = largest * point // (points // 2)
            ended = server.run(checked.words, fsize=limit)
            end = end_of(ended, checked.state())
            fault = checked.broken_by_error(ended, {OUTPUT}) or ("" if ended.code else "it ended well")
            row.add(f"{limit:,} bytes", end, fault or checked.broken_by_rerun(), ended.seconds)
    return row


@contextmanager
def _on_disk(scene: Scene, options: str) -> Iterator[tuple[Scene, Disk]]:
    """The scene, with its outputs on a disk of their own."""
    with memory_disk(scene.root / "disk", options) as disk:
        outputs = disk.path / "outputs"
        outputs.mkdir()
        yield replace(scene, outputs=outputs, references={}), disk


def _writes(scene: Scene, name: str, path: str) -> bool:
    return name in WRITING and path.startswith(str(scene.outputs))


def _nbytes(files: Files) -> int:
    """Bytes that files take on a disk in memory."""
    return sum(-(-len(content or b"") // _PAGE) * _PAGE for content in files.values())


def _nbytes_used(disk: Disk) -> int:
    return sum(-(-path.stat().st_size // _PAGE) * _PAGE for path in disk.path.rglob("*") if path.is_file())
