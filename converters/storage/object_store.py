"""Object stores, and whatever else fsspec knows: `s3://`, `gs://`, `az://`, and `memory://` for tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from converters.errors import CheckpointError
from converters.storage.remote_path import Entry, identity_of, missing_library, unreachable
from converters.text import printable

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")

# What the file systems of fsspec call them. The time of the last change is for those that have nothing better.
_IDENTITY: Final = ("ETag", "etag", "generation", "version_id", "md5Hash", "content_md5", "LastModified", "mtime")
_IDENTITY_AGE: Final = ("updated", "last_modified", "created")


class ObjectStore:
    """One of fsspec's file systems, whose keys are whole URLs.

    What it says is remembered until `forget`: looking for the files of a checkpoint asks for the same thing many times.
    """

    def __init__(self, filesystem: Any, scheme: str) -> None:  # noqa: ANN401 - fsspec has no types
        self.filesystem = filesystem
        self.scheme = scheme
        self._entries: dict[str, Entry | None] = {}
        self._names: dict[str, list[str]] = {}

    def entry(self, key: str, *, fresh: bool = False) -> Entry | None:
        """See `Store`."""
        if fresh or key not in self._entries:
            self._entries[key] = self._ask(key, lambda: self._look(key))
        return self._entries[key]

    def names(self, key: str) -> list[str]:
        """See `Store`."""
        if key not in self._names:
            found = self._ask(key, lambda: self.filesystem.ls(key, detail=False)) or []
            own = key.rstrip("/").rpartition("/")[2]
            names = {str(name).rstrip("/").rpartition("/")[2] for name in found}
            # A store may list the object that marks a directory as one of its own.
            self._names[key] = sorted(names - {""} - ({own} if len(found) > 1 else set()))
        return self._names[key]

    def read(self, key: str, start: int, stop: int) -> bytes:
        """See `Store`."""
        data = self._ask(key, lambda: self.filesystem.cat_file(key, start=start, end=stop))
        if data is None:
            raise CheckpointError("the file was removed while it was read", printable(key))
        return bytes(data)

    def upload(self, local: Path, key: str) -> int:
        """Copy a local file there; returns the bytes that are there then.

        Raises:
            CheckpointError: the store refused.
        """
        self._do(key, "written", lambda: self.filesystem.put_file(str(local), key))
        found = self.entry(key, fresh=True)
        return -1 if found is None else found.nbytes

    def files(self, key: str) -> list[str]:
        """The keys of all files below a place."""
        self.filesystem.invalidate_cache()
        found = self._ask(key, lambda: self.filesystem.find(key)) or []
        start = len(self.filesystem._strip_protocol(key))  # noqa: SLF001 - fsspec's own way between URLs and names
        return sorted(f"{key}{name[start:]}" for name in found)

    def move(self, key: str, target: str) -> None:
        """Give a file another key.

        Raises:
            CheckpointError: the store refused.
        """
        self._do(key, "moved", lambda: self.filesystem.mv(key, target))

    def remove(self, key: str) -> None:
        """Remove a file.

        Raises:
            CheckpointError: the store refused.
        """
        self._do(key, "removed", lambda: self.filesystem.rm_file(key))

    def forget(self) -> None:
        """Ask everything anew from now on."""
        self._entries.clear()
        self._names.clear()
        self.filesystem.invalidate_cache()

    def _look(self, key: str) -> Entry:
        # Asked for itself and never taken from a listing, whose times may have another form.
        info = self.filesystem.info(key)
        if info.get("type") == "directory":
            return Entry(is_dir=True)
        identity = identity_of(info, _IDENTITY) or identity_of(info, _IDENTITY_AGE)
        return Entry(is_dir=False, nbytes=int(info.get("size") or 0), identity=identity)

    @staticmethod
    def _ask(key: str, question: Callable[[], T]) -> T | None:
        """Ask the store; None where it says that nothing is there."""
        try:
            return question()
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001 - every library behind fsspec has errors of its own
            unreachable(error, printable(key))

    @staticmethod
    def _do(key: str, doing: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - as above
            unreachable(error, printable(key), f"can't be {doing}")


def forget() -> None:
    """Ask all stores anew from now on."""
    for store in _opened:
        store.forget()


_opened: list[ObjectStore] = []


@cache
def object_store(scheme: str) -> ObjectStore:
    """The store of a scheme, with the settings that its library finds for itself.

    Raises:
        CheckpointError: fsspec or the library of that store isn't installed, or there is no such scheme.
    """
    where = f"{printable(scheme)}://"
    try:
        import fsspec  # type: ignore[import-untyped]
    except ImportError:
        missing_library("fsspec", "remote", where)
    try:
        # Listings are kept here, where they can be forgotten.
        store = ObjectStore(fsspec.filesystem(scheme, use_listings_cache=False), scheme)
    except ImportError as error:
        raise CheckpointError(printable(str(error), 300), where, "Install what it names.") from None
    except Exception as error:  # noqa: BLE001 - as above
        unreachable(error, where, "there is no such store")
    _opened.append(store)
    return store
