"""An output in an object store, whose readers see the files that say what it is last, so never half of it as a whole.

Stores have no directories and no renames, so the promises are weaker than those of `publish.py`:

- Shards are written to a local disk, uploaded while the next one is written, and removed; what says which shards there
  are comes last.
- What replaces something is uploaded beside it, as `.NAME.staging-*`, and moved there once it is complete. Moving takes
  a while, and isn't one step: a kill in the middle leaves the new one complete under the other name.
- After an error nothing that was uploaded is left. After a kill something may be, in parts that no index names.
- There are no locks: two runs with one output are not kept apart.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from msgspec.structs import replace

from converters.errors import CheckpointError, OutputError, OutputExistsError
from converters.manifest import MANIFEST
from converters.output_checks import is_of_checkpoint
from converters.parts import split_key
from converters.plan import Plan
from converters.sharding import Shard, index_filename
from converters.storage.base import DEFAULT_WRITE_OPTIONS, CheckpointWriter, RangeWriter, WriteOptions
from converters.storage.file_digests import FileDigests
from converters.storage.files import write_new_file
from converters.storage.formats import DISTRIBUTED
from converters.storage.object_store import ObjectStore, object_store
from converters.storage.remote_path import RemotePath
from converters.storage.safetensors_index import build_index, is_index
from converters.storage.shard_names import shard_family
from converters.storage.writers import open_writer
from converters.text import printable

_LISTED = 5
_STAGING_DIGITS = 8


class Upload:
    """Files that are written to `staging` and uploaded from there.

    Attributes:
        staging: a local directory.
    """

    def __init__(self, store: ObjectStore, root: RemotePath, staging: Path) -> None:
        self.staging = staging
        self._store = store
        self._root = root
        self._sent: list[str] = []

    @staticmethod
    def spooled_nbytes(plan: Plan) -> int:
        """The most bytes that are in `staging` at once, about: one shard on its way, and the next being written."""
        sizes = [sum(info.nbytes for info in shard.tensors) for shard in plan.shards]
        return max((sum(sizes[number : number + 2]) for number in range(len(sizes))), default=0)

    def send(self, file: Path) -> None:
        """Upload a file, and remove it here.

        Raises:
            OutputError: the store refused, or has another number of bytes than were sent.
        """
        key = f"{self._root}/{file.relative_to(self.staging).as_posix()}"
        nbytes = file.stat().st_size
        self._sent.append(key)
        with _as_output():
            found = self._store.upload(file, key)
        if found != nbytes:
            what = f"{nbytes:,} bytes were uploaded, and the store has {max(found, 0):,}"
            raise OutputError(what, printable(key), "Start again; if it stays so, look at the store.")
        file.unlink()

    def send_rest(self) -> None:
        """Upload all that is left, what makes it complete last."""
        for file in sorted((path for path in self.staging.rglob("*") if path.is_file()), key=_order):
            self.send(file)

    def remove(self) -> None:
        """Remove what was uploaded, as far as the store lets us."""
        for key in reversed(self._sent):
            with suppress(CheckpointError):
                self._store.remove(key)

    def move_to(self, output: RemotePath, old: Sequence[str]) -> None:
        """Put what was uploaded in the place of something else.

        Raises:
            OutputError: the store refused; what was uploaded is kept.
        """
        try:
            for key in sorted(old, key=_order_of_key, reverse=True):
                self._store.remove(key)
            for key in sorted(self._sent, key=_order_of_key):
                self._store.move(key, f"{output}{key.removeprefix(str(self._root))}")
        except CheckpointError as error:
            raise _KeptError(
                f"can't be replaced completely: {error.problems[0].what}; the new one is complete in "
                f"{printable(str(self._root))} and {printable(str(output))} together",
                printable(str(output)),
                "Move the files yourself, or start again with another output.",
            ) from error


class _KeptError(OutputError):
    """What was uploaded must not be removed any more."""


@contextmanager
def uploading(output: RemotePath, *, overwrite: bool = False, inputs: Sequence[Path] = ()) -> Iterator[Upload]:
    """Give a place to write into; what was not sent when the block ends well is sent then.

    Args:
        output: the directory to make, as a URL.
        overwrite: replace a checkpoint that is there.
        inputs: what is read meanwhile.

    Raises:
        OutputExistsError: something is there, and may not be replaced.
        OutputError: the store refused.
    """
    if len(output.parts) < 3:  # noqa: PLR2004 - a scheme, a bucket, and a name in it
        raise OutputError(
            "the output needs a name in its bucket", printable(str(output)), "Such as: s3://bucket/model."
        )
    for given in inputs:
        if isinstance(given, RemotePath) and (output == given or output in given.parents or given in output.parents):
            what = f"the output and the input, {printable(str(given))}, aren't apart"
            raise OutputError(what, printable(str(output)), "Choose an output elsewhere; inputs are never changed.")
    with _as_output():
        store = object_store(output.scheme)
        old = store.files(str(output))
    _check_replaceable(output, old, overwrite=overwrite)
    name = f".{output.name}.staging-{secrets.token_hex(_STAGING_DIGITS)}"
    root = output.parent / name if old else output
    with tempfile.TemporaryDirectory(prefix="weightmap-") as staging:
        upload = Upload(store, root, Path(staging))
        try:
            yield upload
            upload.send_rest()
            if root != output:
                upload.move_to(output, old)
        except _KeptError:
            raise
        except BaseException:
            upload.remove()
            raise


class UploadingWriter:
    """Writes each shard as a checkpoint of its own, checks and uploads it, and then what says that they are one."""

    def __init__(self, upload: Upload, shards: Sequence[Shard], options: WriteOptions = DEFAULT_WRITE_OPTIONS) -> None:
        """Nothing is written yet.

        Raises:
            OutputError: there are no shards, or their format has no files that stand for themselves.
        """
        if not shards or any(shard.filename.endswith(DISTRIBUTED) for shard in shards):
            what = "a distributed checkpoint isn't written to an object store" if shards else "there are no tensors"
            raise OutputError(what, hint="Convert into a local directory and copy that, or choose another --format.")
        self._upload = upload
        self._shards = shards
        self._options = options
        self._shard_of = {info.name: number for number, shard in enumerate(shards) for info in shard.tensors}
        self._writers: dict[int, CheckpointWriter] = {}

    def start_shard(self, shard: int) -> None:
        """See `CheckpointWriter`; while one is written, the one before may be on its way."""
        writer = open_writer(self._upload.staging, [self._shards[shard]], self._options)
        self._writers[shard] = writer
        writer.start_shard(0)

    def open_range(self, name: str, offset: int, nbytes: int) -> RangeWriter:
        """See `RangesWriter`."""
        return self._open(self._shard_of[name]).open_range(name, offset, nbytes)

    def write_from(self, name: str, offset: int, data: memoryview) -> None:
        """See `CheckpointWriter`."""
        self._open(self._shard_of[name]).write_from(name, offset, data)

    def finish_shard(self, shard: int) -> FileDigests | None:
        """See `CheckpointWriter`."""
        writer = self._open(shard)
        found = writer.finish_shard(0)
        for file in writer.finish():
            self._upload.send(file)
        del self._writers[shard]
        return found

    def keep_shard(self, shard: int) -> None:
        """A store has no staging directory of a killed run to take up."""
        raise ValueError(f"shard {shard} can't be kept: it isn't here")

    def finish(self) -> Sequence[Path]:
        """Write the indexes; what was uploaded isn't here any more."""
        parts: dict[tuple[str, str], list[Shard]] = {}
        for shard in self._shards:
            infos = tuple(replace(info, name=split_key(info.name)[1]) for info in shard.tensors)
            named = Shard(PurePosixPath(shard.filename).name, infos if shard.part else shard.tensors)
            parts.setdefault((str(PurePosixPath(shard.filename).parent), shard.part), []).append(named)
        written = []
        for (folder, _), shards in parts.items():
            first = shards[0].filename
            family = shard_family(first)
            if len(shards) > 1 and family is not None:
                path = self._upload.staging / folder / index_filename(family, PurePosixPath(first).suffix)
                write_new_file(path, build_index(shards)[0])
                written.append(path)
        return written

    def stop(self) -> None:
        """See `CheckpointWriter`."""
        for writer in list(self._writers.values()):
            writer.stop()

    def abort(self) -> None:
        """See `CheckpointWriter`."""
        for writer in list(self._writers.values()):
            writer.abort()

    def _open(self, shard: int) -> CheckpointWriter:
        if shard not in self._writers:
            raise ValueError(f"{self._shards[shard].filename} is not open for writing")
        return self._writers[shard]


def _check_replaceable(output: RemotePath, old: Sequence[str], *, overwrite: bool) -> None:
    where = printable(str(output))
    if not old:
        return
    if not overwrite:
        raise OutputExistsError("already exists", where, "Choose another output, or replace this one with --overwrite.")
    root = f"{output}/"
    unknown = [key for key in old if not (key.startswith(root) and is_of_checkpoint(key.removeprefix(root)))]
    if unknown:
        shown = ", ".join(printable(key.removeprefix(root)) for key in unknown[:_LISTED])
        raise OutputExistsError(
            f"is not replaced, since it holds what no checkpoint does: {shown}",
            where,
            "Choose another output, or remove it yourself.",
        )


def _order(file: Path) -> tuple[int, str]:
    return _order_of_key(file.as_posix())


def _order_of_key(key: str) -> tuple[int, str]:
    """Weights and what is carried first, then config.json, the manifest, and what says which shards there are."""
    name = key.rpartition("/")[2]
    return (3 if is_index(name) else 2 if name == MANIFEST else 1 if name.endswith("config.json") else 0, key)


@contextmanager
def _as_output() -> Iterator[None]:
    """What goes wrong with a store that is written is an error of the output."""
    try:
        yield
    except CheckpointError as error:
        raise OutputError(error.problems) from error
