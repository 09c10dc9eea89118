"""A small checkpoint of several shards, its conversion, and what may be found where the output belongs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from tests.commands.support import CONFIG, SPEC, phi_shapes, write_checkpoint

if TYPE_CHECKING:
    from tests.crashes.server import Server

ABSENT: Final = "absent"
OLD: Final = "old"
COMPLETE: Final = "complete"

_HIDDEN, _INNER, _VOCAB, _LAYERS = 24, 40, 50, 2
_MEMORY_DISK: Final = Path("/dev/shm")  # noqa: S108 - the directory made below it has a name of its own
_OURS: Final = ("staging-", "replaced-", "lock")

Files = Mapping[str, bytes | None]
"""The files of a directory by relative path; None for a folder."""


@dataclass(slots=True)
class Scene:
    """Directories of one experiment, which conversions are disturbed in.

    Attributes:
        root: holds all of it.
        outputs: where the output goes; on another disk, if the experiment has one.
        references: for each command line, what it writes when nothing disturbs it.
    """

    root: Path
    outputs: Path
    references: dict[tuple[str, ...], Files] = field(default_factory=dict)

    @property
    def source(self) -> Path:
        """The checkpoint that is converted."""
        return self.root / "in"

    @property
    def output(self) -> Path:
        """Where the conversion goes."""
        return self.outputs / "out"

    def words(self, *options: str) -> tuple[str, ...]:
        """The command line of the conversion."""
        fixed = ("--quiet", "--spec", SPEC, "--max-shard-size", "10KB", "--threads", "2")
        return ("convert", *fixed, *options, str(self.source), str(self.output))

    def make(self) -> None:
        """Write the checkpoint, the same each time."""
        sizes = {"hidden_size": _HIDDEN, "intermediate_size": _INNER, "vocab_size": _VOCAB}
        config = {**CONFIG, **sizes, "num_hidden_layers": _LAYERS, "max_position_embeddings": 16}
        write_checkpoint(self.source, phi_shapes(_LAYERS, _HIDDEN, _INNER, _VOCAB), config=config, shards=3)
        (self.source / "tokenizer.json").write_text(json.dumps({"vocab": list(range(300))}))
        (self.source / "tokenizer_config.json").write_text("{}")
        (self.source / "LICENSE").write_text("whatever\n" * 30)
        self.outputs.mkdir(exist_ok=True)

    def clear(self, *, old: bool = False) -> None:
        """Remove all outputs; afterwards an older one is there, if wanted: another checkpoint of other files."""
        for path in self.outputs.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if old:
            write_checkpoint(self.output, shards=2, dtype="F16")

    def reference(self, server: Server, words: tuple[str, ...]) -> Files:
        """What a command line writes into an empty directory when nothing disturbs it."""
        if words not in self.references:
            self.clear()
            ended = server.run(words)
            if ended.code:
                raise AssertionError(f"the undisturbed conversion failed: {ended.errors}")
            self.references[words] = files_of(self.output)
            self.clear()
        return self.references[words]

    def state(self, words: tuple[str, ...]) -> str:
        """What is at the output: absent, old or complete, or else what is wrong with it."""
        if not os.path.lexists(self.output):
            return ABSENT
        found = files_of(self.output)
        reference = self.references.get(words)
        if reference is None:
            raise AssertionError("make the reference first")
        if found == reference:
            return COMPLETE
        if found == self._old():
            return OLD
        missing = sorted(reference.keys() - found.keys())
        more = sorted(found.keys() - reference.keys())
        other = sorted(name for name in reference.keys() & found.keys() if reference[name] != found[name])
        return f"neither old nor complete: without {missing[:3]}, with {more[:3]}, other bytes in {other[:3]}"

    def _old(self) -> Files:
        if ("old",) not in self.references:
            with TemporaryDirectory() as directory:
                write_checkpoint(Path(directory) / "old", shards=2, dtype="F16")
                self.references["old",] = files_of(Path(directory) / "old")
        return self.references["old",]

    def beside(self) -> list[str]:
        """What lies beside the output."""
        return sorted(path.name for path in self.outputs.iterdir() if path != self.output)

    def strange(self) -> list[str]:
        """What lies beside the output, under a name that isn't one of ours for this output."""
        return [name for name in self.beside() if not name.startswith(tuple(f".out.{kind}" for kind in _OURS))]

    def source_digest(self) -> str:
        """A digest of the source: names, bytes, modes, times and inodes."""
        found = hashlib.sha256()
        for path in sorted([self.source, *self.source.rglob("*")]):
            status = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            identity = (path.name, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino)
            found.update(repr((*identity, content)).encode())
        return found.hexdigest()


def files_of(directory: Path) -> Files:
    """All that is in a directory, byte for byte."""
    return {
        str(path.relative_to(directory)): None if path.is_dir() else path.read_bytes()
        for path in sorted(directory.rglob("*"))
    }


@contextmanager
def scene() -> Iterator[Scene]:
    """Make a scene, in memory where that can be: kills need no disk, and flushing one takes most of the time."""
    fast = _MEMORY_DISK if os.access(_MEMORY_DISK, os.W_OK) else None
    with TemporaryDirectory(prefix="crashes-", dir=fast) as directory:
        made = Scene(Path(directory), Path(directory) / "outputs")
        made.make()
        yield made
