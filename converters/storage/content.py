"""What a file is, by its first bytes: so that a wrong file is called by its name, whatever its suffix says."""

from __future__ import annotations

from typing import Final

_LFS: Final = "a Git LFS pointer"
_HTML: Final = "an HTML page"
_XML: Final = "an XML page"
_ZIP: Final = "a zip archive (torch.save writes these)"
_OLD_TORCH: Final = "a file that an older version of torch.save wrote"
_PICKLE: Final = "a pickle"
_TAR: Final = "a tar archive"
_GGUF: Final = "a GGUF file"
_EMPTY: Final = "an empty file"
_JSON: Final = "a JSON file"

_MAGIC: Final[tuple[tuple[bytes, str], ...]] = (
    (b"version https://git-lfs.github.com/spec/", _LFS),
    (b"PK\x03\x04", _ZIP),
    (b"GGUF", _GGUF),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a numpy array"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", _OLD_TORCH),
    (b"\x80\x02", _PICKLE),
    (b"\x80\x03", _PICKLE),
    (b"\x80\x04", _PICKLE),
    (b"\x80\x05", _PICKLE),
)
_TAR_MAGIC: Final = b"ustar"
_TAR_MAGIC_AT: Final = 257
# Compared after a byte order mark and white space, in lower case.
_TEXT: Final[tuple[tuple[bytes, str], ...]] = (
    (b"<!doctype html", _HTML),
    (b"<html", _HTML),
    (b"<head", _HTML),
    (b"<body", _HTML),
    (b"<?xml", _XML),
    (b"{", _JSON),
)
_SAVE_AGAIN: Final = "Load it where you trust its source, and save its state dict with torch.save or safetensors."

HINTS: Final[dict[str, str]] = {
    _LFS: "The weights themselves were not downloaded: run `git lfs pull` in that repository.",
    _HTML: "The download saved a web page, perhaps a login or an error page; download the file itself.",
    _XML: "The download saved a page, perhaps an error message; download the file itself.",
    _ZIP: _SAVE_AGAIN,
    _OLD_TORCH: _SAVE_AGAIN,
    _PICKLE: _SAVE_AGAIN,
    _TAR: "If it is an archive of several files, unpack it; the very first versions of torch wrote such files, too.",
    _EMPTY: "Its download or its writing was cut off; download or save it again.",
}
"""What to do about a file, by what `sniff` called it."""


def sniff(start: bytes) -> str | None:
    """Name what a file is from its first bytes (a few hundred are enough); None if they tell nothing."""
    if not start:
        return _EMPTY
    for magic, what in _MAGIC:
        if start.startswith(magic):
            return what
    if start[_TAR_MAGIC_AT : _TAR_MAGIC_AT + len(_TAR_MAGIC)] == _TAR_MAGIC:
        return _TAR
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((what for beginning, what in _TEXT if text.startswith(beginning)), None)
