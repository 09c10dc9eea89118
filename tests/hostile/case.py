"""What a hostile case is: files to write, a command to run on them, and how it must end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.hostile.build import write

USAGE: Final = 2
COVERAGE: Final = 3
SPEC: Final = 5
CONFIG: Final = 6
CHECKPOINT: Final = 7
OUTPUT: Final = 8

MARKER: Final = "PAYLOAD_RAN"
"""The file that a payload would leave in the case's directory, if it were run."""

SAME: Final = """\
weightmap: 1
source: {layout: theirs}
target: {layout: ours}
rename: {"{rest:path}": "{rest}"}
"""
"""A spec for checkpoints of any keys, so that a refusal is the checkpoint's."""

CONVERT: Final = ("convert", "--quiet", "--spec", "@spec.yaml", "@in", "@outputs/out")
INSPECT: Final = ("inspect", "@in")

Files = Mapping[str, bytes | str] | Callable[[Path], None]
"""The files of a case, by path; or what writes them into its directory."""


@dataclass(frozen=True, slots=True)
class Case:
    """Input, and what must become of it.

    Attributes:
        kind: what kind of input it is, for the table.
        name: what is odd about it.
        files: what is written into the case's directory, beside a `spec.yaml` that takes any keys.
        code: the exit code.
        says: what the message must hold; for an accepted case, what its output must.
        words: the command line; a word with `@` is a path in the case's directory.
        holds: for an accepted conversion, the bytes of each tensor that it must write.
        large: the input is large, so time and memory aren't held against the limits for small files.
    """

    kind: str
    name: str
    files: Files
    code: int = 0
    says: tuple[str, ...] = ()
    words: tuple[str, ...] = CONVERT
    holds: Mapping[str, bytes] | None = None
    large: bool = False

    @property
    def title(self) -> str:
        """Its name among all cases."""
        return f"{self.kind}: {self.name}"

    @property
    def outcome(self) -> str:
        """What must become of it, in words."""
        return f"refused with {self.code}" if self.code else "accepted"

    def write(self, root: Path) -> None:
        """Write the files of the case."""
        (root / "outputs").mkdir()
        (root / "spec.yaml").write_text(SAME)
        if callable(self.files):
            self.files(root)
            return
        for name, content in self.files.items():
            write(root / name, content)

    def command(self, root: Path) -> list[str]:
        """The words of the command line."""
        return [f"{root}/{word.removeprefix('@')}" if word.startswith("@") else word for word in self.words]


def fault_of(case: Case, root: Path, before: Mapping[str, object], code: int, output: str, errors: str) -> str:  # noqa: PLR0911 - one line for each promise
    """Say which promise the end of a case broke; empty if none.

    Args:
        case: what was run.
        root: its directory.
        before: its `listing`, before it was run.
        code: the exit code.
        output: standard output.
        errors: standard error.
    """
    shown = " ".join(errors.split())
    if (root / MARKER).exists():
        return "a payload was run"
    if code != case.code:
        return f"exit code {code}, not {case.code}: {shown[:300]}"
    if "Traceback" in errors or "mistake in weightmap" in errors:
        return f"a traceback: {shown[:300]}"
    if odd := next((each for each in output + errors if not each.isprintable() and each != "\n"), None):
        return f"it prints {odd!r}"
    if len(errors) > LONGEST_MESSAGE:
        return f"a message of {len(errors):,} characters"
    if code:
        if output or not errors.startswith("Error: "):
            return f"not one clear message: {output[:100]}{errors[:300]}"
        if listing(root) != before:
            return f"it wrote or changed {sorted(listing(root).items() ^ before.items())[:3]}"
    missing = [text for text in case.says if text not in shown + " ".join(output.split())]
    if missing:
        return f"the message lacks {missing}: {shown[:300]}"
    if not code and case.holds is not None:
        return _wrong_tensors(case.holds, root / "outputs" / "out")
    return ""


LONGEST_MESSAGE: Final = 20_000


def listing(root: Path) -> dict[str, object]:
    """Everything below a directory and how large it is, locks aside: those stay, so that others can wait for them."""
    return {
        str(path.relative_to(root)): (path.lstat().st_mode, path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_symlink() or not path.is_dir()
        if not path.name.endswith(".lock")
    }


def _wrong_tensors(expected: Mapping[str, bytes], directory: Path) -> str:
    found = dict(_tensors(directory))
    if found.keys() != expected.keys():
        return f"tensors {sorted(found)[:5]}, not {sorted(expected)[:5]}"
    wrong = [name for name in expected if found[name] != expected[name]]
    return f"other values in {wrong[:5]}" if wrong else ""


def _tensors(directory: Path) -> Iterator[tuple[str, bytes]]:
    """What the output holds, read in the plainest way."""
    for path in directory.glob("*.safetensors"):
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8:start]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                yield name, content[start + begin : start + end]
