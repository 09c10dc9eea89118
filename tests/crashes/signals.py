"""SIGINT and SIGTERM, at random moments and at each call: the right exit code within two seconds, and nothing left."""

from __future__ import annotations

import signal
from random import Random
from typing import Final

from tests.crashes.calls import both_ways, calls_of, short, under
from tests.crashes.check import Checked, Row, end_of
from tests.crashes.kills import checked_in_turn, usual_seconds
from tests.crashes.layer import Fault
from tests.crashes.scene import Scene
from tests.crashes.server import Ended, Server

NUMBERS: Final = (signal.SIGINT, signal.SIGTERM)
LIMIT_SECONDS: Final = 2.0
_BASE: Final = 128


def signals(scene: Scene, server: Server, number: int, seed: int = 0, limit_seconds: float = LIMIT_SECONDS) -> Row:
    """Stop forked runs at random moments, each third with --overwrite over an old output."""
    row = Row("SIGINT, SIGTERM, at random")
    random = Random(seed)  # noqa: S311 - no secret
    usual = usual_seconds(scene, server)
    for trial in range(number):
        checked = checked_in_turn(scene, server, trial)
        checked.begin()
        sent = NUMBERS[trial % len(NUMBERS)]
        delay = random.uniform(0, usual)
        ended = server.run(checked.words, after=delay, send=sent)
        what = f"trial {trial} of seed {seed}, {sent.name} after {delay:.4f} s"
        _count(row, checked, ended, sent, what, limit_seconds)
    return row


def signals_at_calls(scene: Scene, server: Server, every: int = 1, limit_seconds: float = LIMIT_SECONDS) -> Row:
    """Stop runs at each call in turn that touches the outputs."""
    row = Row("SIGINT, SIGTERM, at each call (layer)")
    for checked in both_ways(scene, server):
        calls = [call for call in calls_of(checked) if call[2].startswith(str(scene.outputs))]
        for place, (name, number, path) in enumerate(calls[::every]):
            sent = NUMBERS[place % len(NUMBERS)]
            checked.begin()
            ended = server.run(checked.words, fault=Fault(name, number, sent.name, under(scene)))
            what = f"{sent.name} at {name} {number} of {short(scene, path)}"
            _count(row, checked, ended, sent, what, limit_seconds)
    return row


def _count(row: Row, checked: Checked, ended: Ended, sent: int, what: str, limit_seconds: float) -> None:
    end = end_of(ended, checked.state())
    late = ended.late or ended.seconds
    fault = checked.broken_by_signal(ended, _BASE + sent) or checked.broken_by_rerun()
    if not fault and late > limit_seconds:
        fault = f"it took {late:.2f} s to end"
    row.add(what, end, fault, late)
