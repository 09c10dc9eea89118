"""Directories: links, pipes and devices in the place of files, and what must not be followed."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.hostile.build import FLOATS, safetensors, tensors, torch_file, write
from tests.hostile.case import CHECKPOINT, OUTPUT, Case
from tests.pickles import tensor

KIND: Final = "directory"
FILE: Final = "in/model.safetensors"


def _link(target: str, name: str = FILE) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        write(root / "outside/secret.safetensors", tensors("a"))
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(target)

    return make


def _pipe(name: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        write(root / FILE, tensors("a"))
        (root / name).unlink(missing_ok=True)
        os.mkfifo(root / name)

    return make


def _socket(root: Path) -> None:
    (root / "in").mkdir()
    here = Path.cwd()
    os.chdir(root / "in")  # the name of a socket is at most 100 characters long
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("model.safetensors")
    finally:
        os.chdir(here)


def _file_in_place_of_a_directory(root: Path) -> None:
    write(root / FILE, tensors("a"))
    (root / "outputs").rmdir()
    write(root / "outputs", "a file")


def _hub(root: Path, blob: str = "hub/blobs/digest") -> None:
    """A snapshot as in the Hub's cache, which `in` links to."""
    write(root / blob, tensors("a"))
    snapshot = root / "hub/snapshots/main"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(os.path.relpath(root / blob, snapshot))
    (root / "in").symlink_to("hub/snapshots/main")


def _loop(root: Path) -> None:
    (root / "in").mkdir()
    (root / "in/model.safetensors").symlink_to("other.safetensors")
    (root / "in/other.safetensors").symlink_to("model.safetensors")


def _inside(root: Path) -> None:
    write(root / "in/sub/real", tensors("a"))
    (root / FILE).symlink_to("sub/real")


def _with_link_beside(name: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        write(root / "outside/secret", "secret")
        write(root / FILE, tensors("a"))
        (root / name).symlink_to("../outside/secret")

    return make


def _templates(root: Path) -> None:
    write(root / "outside/secret.jinja", "secret")
    write(root / FILE, tensors("a"))
    (root / "in/additional_chat_templates").symlink_to("../outside")


def _refused() -> Iterator[Case]:
    weights: dict[str, tuple[Callable[[Path], None], str]] = {
        "a link out of it": (_link("../outside/secret.safetensors"), "a symbolic link out of its directory"),
        "a link to a file of the system": (_link("/etc/passwd"), "a symbolic link out of its directory"),
        "a link to a device": (_link("/dev/zero"), "a symbolic link out of its directory"),
        "a link to a process": (_link("/proc/self/mem"), "a symbolic link out of its directory"),
        "a link to itself": (_link("model.safetensors"), "model.safetensors"),
        "links in a loop": (_loop, "safetensors"),
        "a link to nothing": (_link("nothing"), "No such file"),
        "a pipe": (_pipe(FILE), "a named pipe"),
        "a socket": (_socket, "model.safetensors"),
        "a directory": (lambda root: (root / FILE).mkdir(parents=True), "a directory"),
        "no permission": (_unreadable, "model.safetensors"),
        "a snapshot that links to another repository's blobs": (
            lambda root: _hub(root, "other/blobs/digest"),
            "a symbolic link out of its directory",
        ),
        "a snapshot that links beside its blobs": (
            lambda root: _hub(root, "hub/refs/main"),
            "a symbolic link out of its directory",
        ),
        "a snapshot that links into a folder of its blobs": (
            lambda root: _hub(root, "hub/blobs/sub/digest"),
            "a symbolic link out of its directory",
        ),
    }
    for what, (make, says) in weights.items():
        yield Case(KIND, f"{what} in place of weights", make, CHECKPOINT, (says,))
    beside = "a symbolic link out of its directory"
    for name in ("tokenizer.json", "LICENSE", "vocab.txt"):
        yield Case(KIND, f"{name} that links out of it", _with_link_beside(f"in/{name}"), CHECKPOINT, (name, beside))
    yield Case(
        KIND,
        "config.json that links out of it",
        _with_link_beside("in/config.json"),
        CHECKPOINT,
        ("config.json", beside),
    )
    yield Case(
        KIND,
        "tokenizer.json that is a pipe",
        _pipe("in/tokenizer.json"),
        CHECKPOINT,
        ("tokenizer.json", "a named pipe"),
    )
    yield Case(KIND, "config.json that is a pipe", _pipe("in/config.json"), CHECKPOINT, ("config.json", "a named pipe"))
    yield Case(
        KIND, "chat templates that link out of it", _templates, CHECKPOINT, ("additional_chat_templates", beside)
    )
    index = "in/model.safetensors.index.json"
    yield Case(KIND, "an index that links out of it", _link("/etc/passwd", index), CHECKPOINT, (beside,))
    yield Case(KIND, "an index that is a pipe", lambda root: _only_pipe(root, index), CHECKPOINT, ("a named pipe",))
    yield Case(
        KIND, ".metadata that is a pipe", lambda root: _only_pipe(root, "in/.metadata"), CHECKPOINT, ("a named pipe",)
    )
    yield Case(KIND, ".metadata that links out of it", _link("/etc/passwd", "in/.metadata"), CHECKPOINT, (beside,))
    yield Case(
        KIND, "empty", lambda root: (root / "in").mkdir(), CHECKPOINT, ("no safetensors files in this directory",)
    )
    yield Case(KIND, "missing", {}, CHECKPOINT, ("No such file",))
    yield Case(KIND, "a file with a name of terminal commands", _odd_names, CHECKPOINT, (r"\x1b[2J",))
    yield Case(
        KIND, "two files of weights", {FILE: tensors("a"), "in/b.safetensors": tensors("b")}, CHECKPOINT, ("Several",)
    )
    yield Case(KIND, "an output in place of which there is a file", _file_in_place_of_a_directory, OUTPUT, ("outputs",))
    into_itself = ("convert", "--quiet", "--spec", "@spec.yaml", "@in", "@in/out")
    yield Case(KIND, "an output inside of the source", {FILE: tensors("a")}, OUTPUT, ("in/out",), words=into_itself)
    over = ("convert", "--quiet", "--overwrite", "--spec", "@spec.yaml", "@in", "@in")
    yield Case(KIND, "an output over the source", {FILE: tensors("a")}, OUTPUT, ("is the input itself",), words=over)
    yield Case(KIND, "an output that is a link", _linked_output, OUTPUT, ("outputs/out",))


def _unreadable(root: Path) -> None:
    """A file that can't be opened, for root neither: it is a link that only `proc` could follow."""
    write(root / "in/x", b"")
    (root / FILE).symlink_to("x/y")


def _only_pipe(root: Path, name: str) -> None:
    (root / "in").mkdir()
    os.mkfifo(root / name)


def _odd_names(root: Path) -> None:
    for name in ("\x1b[2J.safetensors", "b.safetensors"):
        write(root / "in" / name, tensors("a"))


def _linked_output(root: Path) -> None:
    write(root / FILE, tensors("a"))
    write(root / "elsewhere/kept.txt", "kept")
    (root / "outputs/out").symlink_to("../elsewhere")


def _accepted() -> Iterator[Case]:
    holds = {"a": FLOATS}
    yield Case(KIND, "a snapshot in the Hub's cache", _hub, holds=holds)
    yield Case(KIND, "a link that stays inside", _inside, holds=holds)
    yield Case(KIND, "a link that the user names", _user_link, holds=holds)
    named = ("convert", "--quiet", "--spec", "@spec.yaml", "@in/link.safetensors", "@outputs/out")
    yield Case(KIND, "a file that the user names, a link", _named_link, holds=holds, words=named)
    yield Case(KIND, "a folder that links elsewhere, never looked at", _linked_folder, holds=holds)
    yield Case(KIND, "a pipe beside it, never opened", _pipe("in/notes"), holds=holds)
    odd = {f"in/{'é' * 60}.safetensors": tensors("a")}
    yield Case(KIND, "a file with a long name", odd, holds=holds)
    pickles = {FILE: tensors("a"), "in/pytorch_model.bin": torch_file({"b": tensor()})}
    yield Case(KIND, "pickles beside safetensors, never opened", pickles, holds=holds)
    hidden = {FILE: tensors("a"), "in/.cache.safetensors": safetensors("{")}
    yield Case(KIND, "a hidden file, never opened", hidden, holds=holds)


def _user_link(root: Path) -> None:
    write(root / "elsewhere/model.safetensors", tensors("a"))
    (root / "in").symlink_to("elsewhere")


def _named_link(root: Path) -> None:
    write(root / "elsewhere/model.safetensors", tensors("a"))
    (root / "in").mkdir()
    (root / "in/link.safetensors").symlink_to("../elsewhere/model.safetensors")


def _linked_folder(root: Path) -> None:
    write(root / FILE, tensors("a"))
    (root / "in/everything").symlink_to("/")


CASES: Final = (*_refused(), *_accepted())
