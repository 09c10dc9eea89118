"""Repositories of the Hub: ranges of their files over HTTP, or whole files through huggingface_hub's own cache."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

from converters.errors import CheckpointError, Problem
from converters.storage.remote_path import HUB, Entry, RemotePath, missing_library, unreachable
from converters.text import printable

_PARTIAL: Final = 206


class Repository:
    """One commit of a repository, whose files never change; a server that says otherwise is an error."""

    def __init__(self, repo_id: str, commit: str, sizes: dict[str, int], revision: str | None = None) -> None:
        """`sizes` are the bytes of each file, by its path; `revision` is what stood for the commit."""
        self.repo_id = repo_id
        self.commit = commit
        self.revision = revision
        self._sizes = sizes
        self._etags: dict[str, str] = {}
        self._folders = {
            "/".join(name.split("/")[:depth]) for name in sizes for depth in range(name.count("/") + 1)
        } | {""}

    def entry(self, key: str, *, fresh: bool = False) -> Entry | None:
        """See `Store`; a fresh look asks for the file's ETag."""
        if key in self._folders:
            return Entry(is_dir=True)
        if key not in self._sizes:
            return None
        if fresh:
            self._check_etag(key)
        return Entry(is_dir=False, nbytes=self._sizes[key])

    def names(self, key: str) -> list[str]:
        """See `Store`."""
        start = f"{key}/" if key else ""
        return sorted({name[len(start) :].split("/")[0] for name in self._sizes if name.startswith(start)})

    def read(self, key: str, start: int, stop: int) -> bytes:
        """See `Store`."""
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils._headers import build_hf_headers
        from huggingface_hub.utils._http import hf_raise_for_status, http_stream_backoff

        where = self._where(key)
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        url = hf_hub_url(self.repo_id, key, revision=self.commit)
        data = bytearray()
        with (
            _reported(self.repo_id, where),
            http_stream_backoff(
                "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, follow_redirects=True
            ) as response,
        ):
            if not response.is_success:
                response.read()
            hf_raise_for_status(response)
            if response.status_code != _PARTIAL:
                raise CheckpointError(
                    f"asked for bytes {start:,} to {stop:,}, and the server sent the whole file "
                    f"(status {response.status_code})",
                    where,
                    "The server or a proxy before it knows no ranges; convert downloads whole files instead.",
                )
            said = response.headers.get("Content-Range", "")
            if said and said.replace(" ", "") != f"bytes{start}-{stop - 1}/{self._sizes[key]}":
                raise CheckpointError(
                    f"asked for bytes {start}-{stop - 1} of {self._sizes[key]}, and the server sent {printable(said)}",
                    where,
                    "The file isn't the one that the Hub lists; start again, or look whether a proxy serves it.",
                )
            self._compare(key, response.headers.get("ETag"))
            # No more than was asked for is taken, whatever is sent.
            for chunk in response.iter_bytes():
                data += chunk[: stop - start - len(data)]
                if len(data) == stop - start:
                    break
        return bytes(data)

    def check_downloaded(self, snapshot: Path, names: Sequence[str]) -> None:
        """Compare the sizes of downloaded files with what the Hub listed.

        Raises:
            CheckpointError: some are missing, or have other sizes.
        """
        problems = []
        for name in names:
            file = snapshot / name
            nbytes = file.stat().st_size if file.is_file() else -1
            if nbytes != self._sizes[name]:
                said = f"it has {nbytes:,} bytes" if nbytes >= 0 else "it is missing"
                what = f"expected a download of {self._sizes[name]:,} bytes, {said}"
                problems.append(Problem(what, printable(str(file)), "Remove it from the cache, and start again."))
        if problems:
            raise CheckpointError(problems)

    def _check_etag(self, key: str) -> None:
        if key in self._etags:
            self.read(key, 0, 1)

    def _compare(self, key: str, etag: str | None) -> None:
        """Compare the ETag of an answer with that of the first one."""
        if etag is not None and self._etags.setdefault(key, etag) != etag:
            raise CheckpointError(
                "the file was replaced while it was read: its ETag has changed",
                self._where(key),
                "A commit of the Hub never changes; look what serves these files, then start again.",
            )

    def _where(self, key: str) -> str:
        return printable(f"{HUB}://{self.repo_id}@{self.commit}/{key}")


_repositories: dict[str, Repository] = {}


def repository(name: str) -> Repository:
    """The repository of a path that `pin` made, `OWNER/NAME@COMMIT`."""
    found = _repositories.get(name)
    if found is None:
        pinned = pin(RemotePath(f"{HUB}://{name}"), None)
        found = _repositories.get("/".join(pinned.parts[1:3]))
    if found is None:
        raise CheckpointError("the Hub can't be reached", printable(name))
    return found


def pin(path: RemotePath, revision: str | None) -> Path:
    """Find out which commit a path into a repository means.

    Returns:
        The same path with the commit in it; or a local one in the Hub's cache, where the Hub can't be reached and
        something of that commit is there.

    Raises:
        CheckpointError: there is no such repository or revision, or it may not be read, or the Hub can't be reached.
    """
    owner, _, rest = str(path).removeprefix(f"{HUB}://").partition("/")
    named, _, inner = rest.partition("/")
    name, _, given = named.partition("@")
    repo_id = f"{owner}/{name}"
    where = printable(f"{repo_id}@{revision or given}" if revision or given else repo_id)
    if given and f"{repo_id}@{given}" in _repositories and revision in {None, given}:
        return path
    try:
        import huggingface_hub
    except ImportError:
        missing_library("no such file or directory is here. As a repository of the Hub: huggingface_hub", "hub", where)
    revision = revision or given or None
    pinned = path
    with _reported(repo_id, where, cached := _Cached(huggingface_hub, repo_id, revision)):
        info = huggingface_hub.HfApi().model_info(repo_id, revision=revision, files_metadata=True)
        sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
        if info.sha is None or None in sizes.values():
            raise CheckpointError("the Hub didn't say which commit this is, or how long its files are", where)
        if wrong := [key for key in sizes if "\0" in key or {"", ".", ".."} & set(key.split("/"))]:
            raise CheckpointError(f"the Hub lists a file that no repository can hold: {printable(wrong[0])}", where)
        found = Repository(repo_id, info.sha, {key: int(size or 0) for key, size in sizes.items()}, revision)
        _repositories[f"{repo_id}@{info.sha}"] = found
        text = f"{HUB}://{repo_id}@{info.sha}"
        pinned = RemotePath(f"{text}/{inner}" if inner else text)
    return pinned if cached.path is None else cached.path / inner


def download(path: RemotePath, names: Sequence[str]) -> Path:
    """Download some files of a repository, unless they are in the Hub's cache already.

    Args:
        path: as `pin` returned it: the repository, or a directory or file in it.
        names: paths in the repository.

    Returns:
        What `path` stands for, in the snapshot.

    Raises:
        CheckpointError: one can't be downloaded, or arrived shorter than it is.
    """
    from huggingface_hub import snapshot_download

    found = repository("/".join(path.parts[1:3]))
    patterns = [glob.escape(name) for name in names]
    with _reported(found.repo_id, printable(str(path))):
        # By the name that was given, so that the cache knows which commit that is when it is asked offline.
        snapshot = Path(snapshot_download(found.repo_id, revision=found.revision, allow_patterns=patterns))
        if snapshot.name != found.commit:
            snapshot = Path(snapshot_download(found.repo_id, revision=found.commit, allow_patterns=patterns))
    found.check_downloaded(snapshot, names)
    return snapshot.joinpath(*path.inner)


class _Cached:
    """What the cache has of a repository."""

    def __init__(self, library: Any, repo_id: str, revision: str | None) -> None:  # noqa: ANN401 - a module
        self._library, self._repo_id, self._revision = library, repo_id, revision
        self.path: Path | None = None

    def find(self) -> bool:
        """Whether anything is there."""
        try:
            # No pattern: whatever is there will do, and what is missing is said when it is opened.
            found = self._library.snapshot_download(
                self._repo_id, revision=self._revision, local_files_only=True, allow_patterns=[]
            )
        except Exception:  # noqa: BLE001 - whatever it says, there is nothing
            return False
        self.path = Path(found)
        return True


@contextmanager
def _reported(repo_id: str, where: str, cached: _Cached | None = None) -> Iterator[None]:
    """Turn what huggingface_hub says into a `CheckpointError`; silent where the cache can serve instead.

    Its messages are not shown: they may quote addresses with a token in them.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        hint = "Ask for access on its page, then log in: hf auth login."
        raise CheckpointError(
            "this repository of the Hub is gated, and you have no access to it", where, hint
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"no such file or directory is here, and no repository {printable(repo_id)} on the Hub, or it is private",
            where,
            "Correct the name; if the repository is private, log in first: hf auth login.",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            "the repository is on the Hub, and has no such revision", where, "Give a branch, a tag or a commit of it."
        ) from error
    except errors.HFValidationError as error:
        raise CheckpointError(
            "no such file or directory is here, and a repository of the Hub can't be called so", where
        ) from error
    except errors.LocalEntryNotFoundError as error:
        _offline(error, where)
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise CheckpointError(
            f"the Hub answered with status {status}", where, "Log in (hf auth login), or try again later."
        ) from error
    except errors.OfflineModeIsEnabled as error:
        if cached is None or not cached.find():
            _offline(error, where)
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001 - its HTTP library has errors of its own
        if cached is None or not cached.find():
            unreachable(error, where, "no such file or directory is here, and the Hub can't be reached")


def _offline(error: Exception, where: str) -> NoReturn:
    raise CheckpointError(
        "no such file or directory is here, nor in the Hub's cache, and the Hub can't be reached or is switched off",
        where,
        "Without HF_HUB_OFFLINE=1 it would be asked; or give the path of a local copy.",
    ) from error
