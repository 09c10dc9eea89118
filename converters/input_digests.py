"""The digests of all input files, made by a thread of its own while a conversion reads them, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

from converters.errors import WeightmapError
from converters.manifest import Input
from converters.storage.base import OpenFile
from converters.storage.file_digests import digest_file


@contextmanager
def input_digests(files: Mapping[str, OpenFile], algorithm: str | None) -> Iterator[Future[Sequence[Input]]]:
    """Start to read all files, one after the other and each from its beginning; ends early if the block fails.

    The reading comes shortly before that of the conversion, or shortly after, so that the disk is asked once for what
    the file cache can hold. What is in a store isn't fetched twice: the store's own word stands for it.
    """
    stopped = Event()

    def passed(_: int) -> None:
        if stopped.is_set():
            raise _StoppedError("stopped")

    def read_all() -> Sequence[Input]:
        found = []
        for name, file in files.items():
            if algorithm is None or not file.is_local:
                found.append(Input(name, file.nbytes, None, None if file.is_local else file.identity))
            else:
                digests, _ = digest_file(name, file.nbytes, file.read_into, (), algorithm, passed=passed)
                found.append(Input(name, file.nbytes, digests.digest))
        return found

    with ThreadPoolExecutor(1, thread_name_prefix="weightmap-inputs") as pool:
        try:
            yield pool.submit(read_all)
        finally:
            stopped.set()


class _StoppedError(WeightmapError):
    """The conversion failed, so nobody asks for the rest."""
