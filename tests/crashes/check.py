"""Whether a disturbed conversion kept its promises, judged by the bytes that it left; shares no code with weightmap."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from tests.crashes.scene import ABSENT, COMPLETE, OLD, Scene
from tests.crashes.server import Ended, Server

CONFIG, CHECKPOINT, OUTPUT = 6, 7, 8
_LONGEST_MESSAGE = 2000
# After these words in the message an output may be there, and the old one beside it.
_ADMITTED = ("the new output is complete, but the old one can't be removed", "complete, but not flushed to the disk")


@dataclass(slots=True)
class Row:
    """A line of the table.

    Attributes:
        kind: what was done to the runs.
        tried: how many runs that was done to.
        violations: each promise that one of them broke.
        slowest: the longest run, or from the disturbance to the end where that is what counts, in seconds.
        ends: how many ended in which way.
        missing: why it was not tried, or not in full.
    """

    kind: str
    tried: int = 0
    violations: list[str] = field(default_factory=list)
    slowest: float = 0.0
    ends: dict[str, int] = field(default_factory=dict)
    missing: str = ""

    def add(self, what: str, end: str, violation: str, seconds: float) -> None:
        """Count a run: what was done to it, how it ended, the promise that it broke, and how long it took."""
        self.tried += 1
        self.ends[end] = self.ends.get(end, 0) + 1
        self.slowest = max(self.slowest, seconds)
        if violation:
            self.violations.append(f"{self.kind}: {what}: {violation}")


@dataclass(slots=True)
class Checked:
    """A scene under watch: begin, disturb a run, then ask for the promise that was broken."""

    scene: Scene
    server: Server
    words: tuple[str, ...]
    old: bool = False
    _source: str = ""

    def begin(self) -> None:
        """Clear the outputs, and note what the source is."""
        self.scene.reference(self.server, self.words)
        self.scene.reference(self.server, self.finishing)
        self.scene.clear(old=self.old)
        self.note_source()

    def note_source(self) -> None:
        """Take the source as it is now for the right one."""
        self._source = self.scene.source_digest()

    @property
    def before(self) -> str:
        """The state of the output before anything ran."""
        return OLD if self.old else ABSENT

    @property
    def finishing(self) -> tuple[str, ...]:
        """The command line of the run that comes after a disturbed one, where its output is there already."""
        return self.words if "--overwrite" in self.words else (*self.words[:-2], "--overwrite", *self.words[-2:])

    def state(self) -> str:
        """What is at the output; as one of the states wherever it can be."""
        return self.scene.state(self.words)

    def broken_by_kill(self, ended: Ended) -> str:
        """The promise that a run broke which was not asked to end: no output or the right one; empty if none."""
        state = self.state()
        if state not in {self.before, COMPLETE}:
            return f"the output is {state}"
        if ended.code == 0 and state != COMPLETE:
            return f"it ended well, and the output is {state}"
        if ended.code > 0:
            return f"it was not killed, and ended with {ended.code}: {_shown(ended)}"
        return self._broken_around()

    def broken_by_signal(self, ended: Ended, expected: int) -> str:
        """The promise that a run broke which was asked to end."""
        state = self.state()
        if state not in {self.before, COMPLETE}:
            return f"the output is {state}"
        if ended.shell_code not in {0, expected}:
            return f"exit code {ended.shell_code}, not {expected}: {_shown(ended)}"
        if ended.code == 0 and state != COMPLETE:
            return f"it ended well, and the output is {state}"
        if "Traceback" in ended.errors:
            return f"a traceback: {_shown(ended)}"
        return self._broken_around() or self._left()

    def broken_by_error(self, ended: Ended, codes: Collection[int], *, left: bool = False) -> str:
        """The promise that a run broke which met with an error of the system.

        Args:
            ended: how it ended.
            codes: the exit codes that are right for this error.
            left: something may be left beside the output, since it couldn't be removed.
        """
        state = self.state()
        if ended.code == 0:
            fault = "" if state == COMPLETE else f"it ended well, and the output is {state}"
            return fault or self._broken_around() or ("" if left else self._left())
        if ended.code not in codes:
            return f"exit code {ended.code}, not {sorted(codes)}: {_shown(ended)}"
        if "Traceback" in ended.errors or "mistake in weightmap" in ended.errors:
            return f"a traceback: {_shown(ended)}"
        if not ended.errors.startswith("Error: ") or len(ended.errors) > _LONGEST_MESSAGE:
            return f"not one clear message: {_shown(ended)}"
        admitted = any(words in " ".join(ended.errors.split()) for words in _ADMITTED)
        if state != self.before and not (state == COMPLETE and admitted):
            return f"it ended with an error, and the output is {state}: {_shown(ended)}"
        return self._broken_around() or ("" if left or admitted else self._left())

    def broken_by_rerun(self) -> str:
        """The promise that is broken by the next run with the same output."""
        if self.state() == COMPLETE and self.words != self.finishing:
            refused = self.server.run(self.words)
            if refused.code != OUTPUT or self.state() != COMPLETE:
                return f"the complete output was not kept: {refused.code}, {_shown(refused)}"
            self.words, kept = self.finishing, self.words
            fault = self.broken_by_rerun()
            self.words = kept
            return fault
        again = self.server.run(self.words)
        if again.code:
            return f"the next run ended with {again.code}: {_shown(again)}"
        if (state := self.state()) != COMPLETE:
            return f"after the next run the output is {state}"
        if left := self.scene.beside():
            return f"the next run left {left}"
        return self._broken_around()

    def _broken_around(self) -> str:
        if self._source != self.scene.source_digest():
            return "the source was touched"
        if strange := self.scene.strange():
            return f"it left {strange}"
        return ""

    def _left(self) -> str:
        left = self.scene.beside()
        return f"it left {left}" if left else ""


def _shown(ended: Ended) -> str:
    return " ".join(ended.errors.split())[:300]


def end_of(ended: Ended, state: str) -> str:
    """How a run ended, for the table."""
    if ended.code < 0:
        return f"killed, {state}"
    return state if ended.code == 0 else f"error {ended.code}, {state}"
