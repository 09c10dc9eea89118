"""`--resume` after kills: the same bytes as without them, what was finished is kept, and what does not fit is not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

from tests.crashes.calls import calls_of, under
from tests.crashes.check import Checked, Row, end_of
from tests.crashes.kills import usual_seconds
from tests.crashes.layer import MUTATING, Fault
from tests.crashes.scene import COMPLETE, Scene
from tests.crashes.server import Server

_RESUME: Final = "--resume"
_JOURNAL: Final = ".weightmap-journal"
_MOST_KILLS: Final = 4
_LAST_SHARDS: Final = -2


def resumes(scene: Scene, server: Server, number: int, every: int, seed: int) -> list[Row]:
    """Kill runs with --resume at random and at each call; then spoil what they left in every way."""
    return [
        _at_random(scene, server, number, seed),
        _at_calls(scene, server, every),
        _spoilt(scene, server),
        _stopped(scene, server),
    ]


def _at_random(scene: Scene, server: Server, number: int, seed: int) -> Row:
    """Kill a run several times, each time going on from the last one."""
    row = Row("--resume after kills at random")
    random = Random(seed)  # noqa: S311 - no secret
    usual = usual_seconds(scene, server, _RESUME)
    for trial in range(number):
        old = trial % 3 == 2
        checked = Checked(scene, server, scene.words(_RESUME, *(["--overwrite"] if old else [])), old=old)
        checked.begin()
        fault = ""
        for _ in range(random.randrange(1, _MOST_KILLS)):
            ended = server.run(checked.words, after=random.uniform(0.2 * usual, usual))
            fault = fault or ("" if ended.code == 8 and not old else checked.broken_by_kill(ended))
        finished = _finished(scene)
        state = checked.state()
        fault = fault or checked.broken_by_rerun() or _not_kept(scene, finished)
        end = f"{state}, {'some' if finished else 'no'} shards kept"
        row.add(f"trial {trial} of seed {seed}", end, fault, 0.0)
    return row


def _at_calls(scene: Scene, server: Server, every: int) -> Row:
    """Kill at each call that changes something, then go on."""
    row = Row("--resume after a kill at each changing call (layer)")
    checked = Checked(scene, server, scene.words(_RESUME))
    for name, number, _ in [call for call in calls_of(checked) if call[0] in MUTATING][::every]:
        checked.begin()
        ended = server.run(checked.words, fault=Fault(name, number, "kill after", under(scene)))
        finished = _finished(scene)
        end = f"{end_of(ended, checked.state())}, {'some' if finished else 'no'} shards kept"
        fault = checked.broken_by_kill(ended) or checked.broken_by_rerun() or _not_kept(scene, finished)
        row.add(f"{name} {number}", end, fault, ended.seconds)
    return row


def _spoilt(scene: Scene, server: Server) -> Row:
    """Change what the next run finds, or what it is asked for: it begins anew where it must, and ends right."""
    row = Row("--resume of what doesn't fit")
    spec = scene.root / "other.yaml"
    spec.write_text('weightmap: 1\nsource: {layout: a}\ntarget: {layout: b}\nrename: {"{rest:path}": "x.{rest}"}\n')
    asked = {
        "another dtype": ("--dtype", "bfloat16"),
        "other shards": ("--max-shard-size", "20KB"),
        "another spec": ("--spec", str(spec)),
        "another value in the config": ("--set", "x=1"),
        "digests of another kind": ("--digest", "sha256"),
    }
    for what, options in asked.items():
        words = scene.words(_RESUME, *options)
        _resume_spoilt(scene, server, row, what, words, lambda _: None)
    for what, spoil in _SPOILS.items():
        _resume_spoilt(scene, server, row, what, scene.words(_RESUME), spoil)
    kept = scene.root / "kept"
    for change in ("changed", "copied anew", "other config"):
        shutil.copytree(scene.source, kept)
        _resume_spoilt(scene, server, row, f"the source, {change}", scene.words(_RESUME), _change_source(scene, change))
        shutil.rmtree(scene.source)
        kept.rename(scene.source)
        scene.references.clear()
    return row


def _resume_spoilt(
    scene: Scene, server: Server, row: Row, what: str, words: tuple[str, ...], spoil: Callable[[Path], None]
) -> None:
    checked = Checked(scene, server, scene.words(_RESUME))
    names = [number for name, number, path in calls_of(checked) if name == "create" and ".safetensors" in path]
    again = Checked(scene, server, words)
    again.begin()
    checked.begin()
    killed = server.run(checked.words, fault=Fault("create", names[_LAST_SHARDS], "kill", under(scene)))
    finished = _finished(scene)
    if killed.code >= 0 or not finished:
        row.add(what, "not tried", f"nothing was left to go on from: {killed}", killed.seconds)
        return
    before = scene.source_digest()
    spoil(_staging(scene))
    if before != scene.source_digest():  # another source, another output
        left = scene.root / "left"
        scene.outputs.rename(left)
        scene.outputs.mkdir()
        scene.references.clear()
        again.begin()
        scene.outputs.rmdir()
        left.rename(scene.outputs)
    again.note_source()
    fault = again.broken_by_rerun()
    inodes = {path.stat().st_ino for path in scene.output.glob("*") if path.is_file()}
    same = sum(inode in inodes for inode in finished.values())
    row.add(what, f"{COMPLETE}, {'some' if same else 'no'} shards kept", fault, 0.0)


def _stopped(scene: Scene, server: Server) -> Row:
    """SIGTERM and an error keep what is finished, and say so; `clean` shows it, and removes it if asked."""
    row = Row("--resume after SIGTERM and errors, and clean")
    checked = Checked(scene, server, scene.words(_RESUME))
    number = [number for name, number, path in calls_of(checked) if name == "create" and ".safetensors" in path][-2]
    for do, code in (("SIGTERM", 143), ("ENOSPC", 8)):
        for goes_on in (True, False):
            checked.begin()
            ended = server.run(checked.words, fault=Fault("create", number, do, under(scene)))
            finished = _finished(scene)
            fault = "" if finished else "nothing is kept"
            if ended.shell_code != code or "--resume" not in ended.errors:
                fault = f"it ended with {ended.shell_code}: {' '.join(ended.errors.split())[:300]}"
            if not fault and not goes_on:
                fault = _broken_by_clean(scene, server)
            fault = fault or checked.broken_by_rerun() or (_not_kept(scene, finished) if goes_on else "")
            row.add(
                f"{do}, {'resumed' if goes_on else 'cleaned'}", end_of(ended, checked.state()), fault, ended.seconds
            )
    return row


def _broken_by_clean(scene: Scene, server: Server) -> str:
    left = scene.beside()
    shown = server.run(("clean", str(scene.outputs)))
    if shown.code or ".out.staging-" not in "".join(shown.output.split()) or scene.beside() != left:
        return f"clean doesn't show what is left: {shown}"
    done = server.run(("clean", str(scene.outputs), "--yes"))
    return "" if done.code == 0 and not scene.beside() else f"clean left {scene.beside()}: {done}"


def _staging(scene: Scene) -> Path:
    return next(scene.outputs.glob(".out.staging-*"))


def _finished(scene: Scene) -> dict[str, int]:
    """The inodes of shards that the journal of a killed run has a whole line for."""
    found = {}
    for journal in scene.outputs.glob(f".out.staging-*/{_JOURNAL}"):
        for line in journal.read_text().splitlines(keepends=True)[1:]:
            if line.endswith("\n"):
                name = json.loads(line)["file"]
                found[name] = (journal.parent / name).stat().st_ino
    return found


def _not_kept(scene: Scene, finished: dict[str, int]) -> str:
    lost = [name for name, inode in finished.items() if (scene.output / name).stat().st_ino != inode]
    return f"finished shards were written again: {lost}" if lost else ""


def _flip(path: Path) -> None:
    """One bit, with the same size and time."""
    status = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _shard(staging: Path) -> Path:
    return min(staging.glob("*.safetensors"))


def _cut_journal(staging: Path) -> None:
    path = staging / _JOURNAL
    path.write_bytes(path.read_bytes()[:-7])


def _edit_journal(staging: Path, old: str, new: str) -> None:
    path = staging / _JOURNAL
    text = path.read_text()
    if old not in text:
        raise AssertionError(f"{old} is not in {text}")
    path.write_text(text.replace(old, new))


def _link_shard(staging: Path) -> None:
    shard = _shard(staging)
    elsewhere = staging.parent.parent / "elsewhere"
    shard.rename(elsewhere)
    shard.symlink_to(elsewhere)


_SPOILS: Final[dict[str, Callable[[Path], None]]] = {
    "nothing": lambda _: None,
    "a flipped bit in a finished shard": lambda staging: _flip(_shard(staging)),
    "a shorter shard": lambda staging: os.truncate(_shard(staging), 100),
    "a shard without bytes": lambda staging: os.truncate(_shard(staging), 0),
    "no shard": lambda staging: _shard(staging).unlink(),
    "a shard that is a link": _link_shard,
    "a journal without its end": _cut_journal,
    "an empty journal": lambda staging: (staging / _JOURNAL).write_text(""),
    "no journal": lambda staging: (staging / _JOURNAL).unlink(),
    "a journal of something else": lambda staging: (staging / _JOURNAL).write_text("[1]\n{}\n"),
    "a journal of bytes": lambda staging: (staging / _JOURNAL).write_bytes(bytes(range(256)) + b"\n"),
    "a journal of lists": lambda staging: _edit_journal(staging, '{"file"', '[{"file"'),
    "a journal with other keys": lambda staging: _edit_journal(staging, '"file"', '"fail"'),
    "a journal with another name": lambda staging: _edit_journal(staging, '"model-00001', '"../model-00001'),
    "more files": lambda staging: (staging / "more.json").write_text("{}"),
    "more folders": lambda staging: (staging / "more" / "folders").mkdir(parents=True),
}


def _change_source(scene: Scene, change: str) -> Callable[[Path], None]:
    def spoil(_: Path) -> None:
        shard = sorted(scene.source.glob("*.safetensors"))[1]
        if change == "changed":
            _flip(shard)
            os.utime(shard)
        elif change == "copied anew":
            copy = scene.source / "copy"
            shutil.copyfile(shard, copy)
            copy.rename(shard)
        else:
            path = scene.source / "config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "bos_token_id": 5}))

    return spoil
