"""What a user or a caller means by the text of a source or an output: a local path, a repository of the Hub, or a URL.

This is the only place that makes a `RemotePath` of a text, so no name that a file holds is ever taken for one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from converters.errors import CheckpointError, OutputError
from converters.parts import WEIGHT_SUFFIXES
from converters.storage.remote_path import HUB, RemotePath
from converters.text import printable

_URL: Final = r"([A-Za-z][A-Za-z0-9+.-]+)://"
_REPO_ID: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"
_CONFIG_SUFFIXES: Final = (".json", ".yaml", ".yml")
_WEB: Final = frozenset({"http", "https"})


def parse_location(text: str) -> Path:
    """What a text names, without asking anybody but the local file system.

    What exists here is that, whatever else it might mean.

    Raises:
        CheckpointError: it is the address of a web page.
    """
    if os.path.lexists(text):
        return Path(text)
    from converters.storage.object_store import forget
    from converters.storage.remote_file import forget_blocks

    forget_blocks()
    forget()  # what was known of a store is what it was before this
    scheme = re.match(_URL, text)
    if scheme is not None:
        return _of_url(scheme[1].lower(), text)
    if re.fullmatch(_REPO_ID, text) and not text.endswith((*WEIGHT_SUFFIXES, *_CONFIG_SUFFIXES)):
        return RemotePath(f"{HUB}://{text}")
    return Path(text)


def locate(given: Path | str, revision: str | None = None) -> Path:
    """Find where a source is. A `Path` is local; a text may be a repository of the Hub, or a URL, too.

    Args:
        given: what the user or the caller wrote.
        revision: a branch, tag or commit of a repository.

    Returns:
        A local path, or a `RemotePath`; one into a repository names its commit.

    Raises:
        CheckpointError: it can't be reached, there is no such repository, or a revision of something else is asked for.
    """
    path = parse_location(given) if isinstance(given, str) else given
    if isinstance(path, RemotePath) and path.is_repository:
        from converters.storage.hub import pin

        return pin(path, revision)
    if revision is not None:
        what = "only a repository of the Hub has revisions, and this is "
        kind = "a URL" if isinstance(path, RemotePath) else "a local path"
        raise CheckpointError(what + kind, printable(str(path)), "Leave out the revision, or give OWNER/NAME.")
    return path


def locate_output(given: Path | str) -> Path:
    """Where an output goes: a local path, or a `RemotePath` in an object store.

    Raises:
        OutputError: it is neither.
    """
    if not isinstance(given, str) or not re.match(_URL, given) or os.path.lexists(given):
        path = Path(given) if isinstance(given, str) else given
    else:
        try:
            path = parse_location(given)
        except CheckpointError as error:
            raise OutputError(error.problems) from None
    if isinstance(path, RemotePath) and path.is_repository:
        hint = "Convert into a local directory, then upload that: hf upload OWNER/NAME DIRECTORY."
        raise OutputError("repositories of the Hub aren't written", printable(str(path)), hint)
    return path


def _of_url(scheme: str, text: str) -> Path:
    if scheme == "file":
        from urllib.parse import unquote, urlsplit

        return Path(unquote(urlsplit(text).path))
    if scheme in _WEB:
        raise CheckpointError(
            "a web address is neither a repository of the Hub nor an object store",
            printable(text),
            "For a model of the Hub give OWNER/NAME; else download it first.",
        )
    if scheme == HUB and not text.partition("://")[2].strip("/").count("/"):
        raise CheckpointError("a repository of the Hub is called OWNER/NAME", printable(text))
    return RemotePath(f"{scheme}://{text.partition('://')[2]}")
