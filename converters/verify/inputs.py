"""Which files a verification read, told apart by their digests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from converters.digests import DEFAULT_ALGORITHM, digest_text, make_hasher
from converters.spec import CONFIG_FILE
from converters.storage.checkpoint import resolve_member
from converters.storage.safetensors_header import LENGTH_NBYTES, MAX_HEADER_NBYTES
from converters.storage.safetensors_index import is_index
from converters.verify.report import Input, InputFile

CHUNK = 1 << 20
"""Bytes that are hashed at once: they stay in cache meanwhile."""

SIDES = 2

Describe = Callable[[str, Path, Iterable[str]], Future[Input]]
"""`describe_input` for a side, by its role, path and weights, which is done meanwhile."""


@contextmanager
def describing(algorithm: str, *, contents: bool) -> Iterator[Describe]:
    """Describe both sides on threads of their own, while something else reads the same files.

    So a disk is read once where memory holds what lies between the two. What isn't done at an error is given up.
    """
    stopped = threading.Event()

    def describe(role: str, path: Path, weights: Iterable[str]) -> Future[Input]:
        names = tuple(weights)
        return pool.submit(
            describe_input, role, path, names, contents=contents, algorithm=algorithm, stopped=stopped.is_set
        )

    with ThreadPoolExecutor(SIDES, thread_name_prefix="weightmap-digest") as pool:
        try:
            yield describe
        except BaseException:
            stopped.set()
            raise


def describe_input(
    role: str,
    path: Path,
    weights: Iterable[str],
    *,
    contents: bool,
    algorithm: str = DEFAULT_ALGORITHM,
    stopped: Callable[[], bool] = lambda: False,
) -> Input:
    """Hash the files of a checkpoint: config and index whole; weights whole with `contents`, else their headers.

    Args:
        role: `source` or `target`.
        path: what the user gave, a file or a directory.
        weights: the names of the files that hold its tensors.
        contents: whether to read all of them.
        algorithm: one of `converters.digests.ALGORITHMS`.
        stopped: whether nobody wants the result any more; then it is wrong.

    Raises:
        CheckpointError: a file isn't there any more.
        OSError: a file can't be read.
    """
    root = path if path.is_dir() else path.parent
    names = sorted(set(weights))
    small = [
        entry.name
        for entry in root.iterdir()
        if entry.name == CONFIG_FILE or (is_index(entry.name) and path in {root, entry})
    ]
    files = [_digest(root, name, algorithm, stopped, contents=True) for name in sorted(small)]
    files.extend(_digest(root, name, algorithm, stopped, contents=contents) for name in names)
    return Input(role, str(path), tuple(files))


def _digest(root: Path, name: str, algorithm: str, stopped: Callable[[], bool], *, contents: bool) -> InputFile:
    file_path = resolve_member(root, name)
    digest = make_hasher(algorithm)
    with file_path.open("rb") as file:
        nbytes = file.seek(0, 2)
        file.seek(0)
        if contents:
            buffer = memoryview(bytearray(min(CHUNK, nbytes)))
            while (count := file.readinto(buffer)) and not stopped():
                digest.update(buffer[:count])
        else:
            start = file.read(LENGTH_NBYTES)
            length = int.from_bytes(start, "little")
            if length <= MAX_HEADER_NBYTES:
                digest.update(start + file.read(length))
            else:
                # Other formats have their headers at both ends: a zip archive its directory, with all CRCs.
                digest.update(start + file.read(CHUNK))
                file.seek(max(0, nbytes - CHUNK))
                digest.update(file.read(CHUNK))
    return InputFile(name, nbytes, digest_text(algorithm, digest), "contents" if contents else "header")
