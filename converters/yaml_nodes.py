"""YAML text to a tree of nodes that remember where they stood.

What is read is the part of YAML on which all readers agree (`yaml_scalars`): one document in UTF-8, text as keys, no
key twice, no tags, no merge keys. The tree (`yaml_tree`) is built by `yaml_builder`, and written back by `yaml_dump`.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from converters.errors import Location, Problem, SpecError
from converters.yaml_builder import TreeBuilder
from converters.yaml_tree import ListNode, MappingNode, Node, ScalarNode, to_plain

__all__ = [
    "MAX_YAML_BYTES",
    "ListNode",
    "MappingNode",
    "Node",
    "ScalarNode",
    "load_yaml",
    "load_yaml_file",
    "read_yaml_bytes",
    "to_plain",
]

MAX_YAML_BYTES = 1024 * 1024
"""A spec of thousands of rules is a tenth of this, and parsing more than this takes many seconds."""

MAX_UNREADABLE_CHARACTERS = 10
"""A file that isn't text at all is recognised by these."""

# YAML 1.1 breaks lines at U+0085, U+2028 and U+2029, YAML 1.2 does not; a byte order mark inside the text is invisible.
_UNREADABLE_CHARACTER = "[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
_LINE_BREAK = "\r\n|\r|\n"


def load_yaml(text: str | bytes, path: str, *, max_bytes: int = MAX_YAML_BYTES) -> Node:
    """Reads one YAML document.

    Args:
        text: the document; bytes must be UTF-8.
        path: the file's name in messages.
        max_bytes: the size above which it is refused unread.

    Raises:
        SpecError: it is too long, isn't valid YAML, or uses what a spec may not; holds every problem found.
    """
    if len(text) > max_bytes:
        raise SpecError(_too_long(path, len(text), max_bytes))
    characters = _decoded(text, path) if isinstance(text, bytes) else text
    characters = characters.removeprefix("\ufeff")
    _refuse_unreadable_characters(characters, path)
    return TreeBuilder(path, characters).build()


def load_yaml_file(path: Path, *, max_bytes: int = MAX_YAML_BYTES) -> Node:
    """Reads one YAML document from a regular file.

    Raises:
        SpecError: the file can't be read, or `load_yaml` refuses it.
    """
    return load_yaml(read_yaml_bytes(path, max_bytes=max_bytes), str(path), max_bytes=max_bytes)


def read_yaml_bytes(path: Path, *, max_bytes: int = MAX_YAML_BYTES) -> bytes:
    """The content of a regular file, whose size is checked before it is read.

    Raises:
        SpecError: it can't be read, is something else than a file, or is too long.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO waits forever for somebody to write into it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise SpecError("not a regular file", str(path), "give the path of a YAML file")
            if status.st_size > max_bytes:
                raise SpecError(_too_long(str(path), status.st_size, max_bytes))
            return file.read(max_bytes + 1)
    except OSError as error:
        raise SpecError(f"can't be read: {error.strerror or error}", str(path)) from error
    except ValueError as error:
        raise SpecError(f"not the name of a file: {error}", repr(str(path))) from error


def _too_long(path: str, nbytes: int, max_bytes: int) -> Problem:
    return Problem(
        f"the file has {nbytes} bytes, and at most {max_bytes} are read",
        path,
        "a spec names its keys by patterns and stays short; parsing a file of this size would take many seconds",
    )


def _decoded(data: bytes, path: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        where = _location_at(data[: error.start].decode("utf-8"), path)
        raise SpecError(f"byte 0x{data[error.start]:02x} is not valid UTF-8", where, "save the file as UTF-8") from None


def _location_at(text_before: str, path: str) -> Location:
    line, line_start = 1, 0
    for line_break in re.finditer(_LINE_BREAK, text_before):
        line, line_start = line + 1, line_break.end()
    return Location(path, line, len(text_before) - line_start + 1)


def _refuse_unreadable_characters(text: str, path: str) -> None:
    if text.replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        return  # as nearly always, and preparing the pattern takes longer than reading a spec
    found: list[Problem] = []
    for match in re.finditer(_UNREADABLE_CHARACTER, text):
        if len(found) == MAX_UNREADABLE_CHARACTERS:
            break
        code = ord(match.group())
        where = _location_at(text[: match.start()], path)
        hint = f'remove it, or write it as "\\u{code:04X}", in double quotes'
        found.append(Problem(f"the character U+{code:04X} can't stand in a YAML file", where, hint))
    if found:
        raise SpecError(found)
