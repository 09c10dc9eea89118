"""Power cuts: an ext4 whose disk is cut off without a last write; after exit 0 nothing is lost, and none is half."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from random import Random

from tests.crashes.calls import both_ways, calls_of, hit_fault, short, under
from tests.crashes.check import Checked, Row, end_of
from tests.crashes.disks import Disk, ext4_disk, why_no_ext4
from tests.crashes.kills import checked_in_turn, usual_seconds
from tests.crashes.layer import MUTATING, Fault, cut_power
from tests.crashes.scene import COMPLETE, Scene
from tests.crashes.server import CUT, Server


def power_cuts(scene: Scene, server: Server, number: int, every: int = 1, seed: int = 0) -> list[Row]:
    """Cut the power after exit 0, at random moments, and at each call that changes something.

    Args:
        scene: where to convert; its outputs go to a disk of their own.
        server: what runs the conversions.
        number: cuts after exit 0, and as many at random moments.
        every: cut at each so-manieth of the calls.
        seed: of the random moments.
    """
    if why := why_no_ext4(scene.root):
        return [Row("power cut", missing=why)]
    with _on_ext4(scene) as (there, disk):
        return [
            _after_success(there, server, disk, number),
            _at_random(there, server, disk, number, seed),
            _at_calls(there, server, disk, every),
        ]


def loses_unflushed(scene: Scene) -> bool:
    """Whether a cut loses a file that was never flushed; else none of the experiments could show anything."""
    with _on_ext4(scene) as (there, disk):
        for name in ("flushed", "unflushed"):
            (there.outputs / "new").write_bytes(b"x" * 5000)
            if name == "flushed":
                for path in (there.outputs / "new", there.outputs):
                    descriptor = os.open(path, os.O_RDONLY)
                    os.fsync(descriptor)
                    os.close(descriptor)
            (there.outputs / "new").rename(there.outputs / name)
            if name == "flushed":
                os.sync()
        cut_power(str(disk.path))
        disk.again()
        found = {path.name: path.stat().st_size for path in there.outputs.iterdir()}
        return found.get("flushed") == 5000 and found.get("unflushed", 0) == 0


def _after_success(scene: Scene, server: Server, disk: Disk, number: int) -> Row:
    row = Row("power cut after exit 0")
    for trial in range(number):
        checked = checked_in_turn(scene, server, trial)
        _begin(checked)
        ended = server.run(checked.words)
        cut_power(str(disk.path))
        disk.again()
        state = checked.state()
        fault = "" if ended.code == 0 and state == COMPLETE else f"after exit {ended.code} the output is {state}"
        row.add(f"trial {trial}", state, fault or checked.broken_by_rerun(), ended.seconds)
    return row


def _at_random(scene: Scene, server: Server, disk: Disk, number: int, seed: int) -> Row:
    row = Row("power cut, at random")
    random = Random(seed)  # noqa: S311 - no secret
    usual = usual_seconds(scene, server)
    for trial in range(number):
        checked = checked_in_turn(scene, server, trial)
        _begin(checked)
        delay = random.uniform(0, usual)
        ended = server.run(checked.words, after=delay, send=CUT, target=str(disk.path))
        disk.again()
        state = checked.state()
        row.add(
            f"trial {trial} of seed {seed}, after {delay:.4f} s", end_of(ended, state), _broken(checked), ended.seconds
        )
    return row


def _at_calls(scene: Scene, server: Server, disk: Disk, every: int) -> Row:
    row = Row("power cut, at each changing call (layer)")
    for checked in both_ways(scene, server):
        calls = [call for call in calls_of(checked) if call[0] in MUTATING and call[2].startswith(str(scene.outputs))]
        for name, number, path in calls[::every]:
            _begin(checked)
            ended = server.run(checked.words, fault=Fault(name, number, "cut", under(scene), str(disk.path)))
            disk.again()
            end = end_of(ended, checked.state())
            fault = hit_fault(ended) or _broken(checked)
            row.add(f"at {name} {number} of {short(scene, path)}", end, fault, ended.seconds)
    return row


def _begin(checked: Checked) -> None:
    """What was there before is on the disk."""
    checked.begin()
    os.sync()


def _broken(checked: Checked) -> str:
    state = checked.state()
    if state not in {checked.before, COMPLETE}:
        return f"the output is {state}"
    return checked.broken_by_rerun()


@contextmanager
def _on_ext4(scene: Scene) -> Iterator[tuple[Scene, Disk]]:
    with ext4_disk(scene.root / "disk") as disk:
        outputs = disk.path / "outputs"
        outputs.mkdir()
        yield replace(scene, outputs=outputs, references={}), disk
