"""The header of one numpy array (`.npy`), read by a parser of its own: nothing in it is ever evaluated. Pure.

Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, format versions 1.0 to 3.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from typing import Final

from msgspec import Struct

from converters.storage.safetensors_extents import MAX_RANK, is_addressable
from converters.tensor_info import DType
from converters.text import printable

MAX_HEADER_NBYTES: Final = 10_000
"""Longest header that is read, numpy's own default; an array of plain numbers needs about a hundred bytes."""

PREFIX_NBYTES: Final = 12
"""Bytes that are enough to learn how long a header is, whatever its version."""

_MAGIC: Final = b"\x93NUMPY"
# For each major version: bytes of the header's length, and the encoding of its text.
_VERSIONS: Final = {1: (2, "latin-1"), 2: (4, "latin-1"), 3: (4, "utf-8")}
_KEYS: Final = ("descr", "fortran_order", "shape")
_MAX_INT: Final = 2**63 - 1

_DTYPES: Final = {
    "|b1": DType.BOOL,
    "|i1": DType.I8,
    "|u1": DType.U8,
    "<i2": DType.I16,
    "<u2": DType.U16,
    "<f2": DType.F16,
    # numpy has no bfloat16: an extension's type is stored as so many bytes, and this is the only one of two.
    "<V2": DType.BF16,
    "|V2": DType.BF16,
    "<i4": DType.I32,
    "<u4": DType.U32,
    "<f4": DType.F32,
    "<i8": DType.I64,
    "<u8": DType.U64,
    "<f8": DType.F64,
    "<c8": DType.C64,
}
_KINDS: Final = {
    "O": ("Python objects as a pickle, which could run code", "Save it without them; numbers alone are weights."),
    "U": ("text", "Save the file without it; numbers alone are weights."),
    "S": ("text", "Save the file without it; numbers alone are weights."),
    "a": ("text", "Save the file without it; numbers alone are weights."),
    "M": ("dates", "Save the file without it; numbers alone are weights."),
    "m": ("time spans", "Save the file without it; numbers alone are weights."),
}
# Possessive quantifiers (`*+`) never backtrack, so that no text takes more than linear time.
_TOKEN: Final = re.compile(
    r"""[ \t\r\n]*+(?:('[^'\\\x00-\x1f]*+'|"[^"\\\x00-\x1f]*+")|([0-9]++)L?+|([A-Za-z]++)|(.))"""
)
_QUOTED: Final = 2


class NpyHeaderError(Exception):
    """What is wrong with a header, and perhaps what to do; its caller knows the file and makes an error of it."""

    def __init__(self, what: str, hint: str | None = None) -> None:
        super().__init__(what)
        self.hint = hint


class NpyHeader(Struct, frozen=True):
    """What a header says.

    Attributes:
        shape: the array's sizes.
        dtype: of its elements, which lie in little-endian order.
        fortran_order: whether the first axis varies fastest, and not the last; only where the two differ.
        data_start: bytes before the first element.
        raw_bfloat16: whether the file says just that an element has two bytes.
    """

    shape: tuple[int, ...]
    dtype: DType
    fortran_order: bool
    data_start: int
    raw_bfloat16: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return prod(self.shape) * (self.dtype.bits // 8)


def header_nbytes(start: bytes) -> int:
    """Say how long an array's header is, from the first `PREFIX_NBYTES` of it (or all there is).

    Returns:
        Bytes from the beginning up to the data.

    Raises:
        NpyHeaderError: it is no array, of an unknown version, or longer than any header needs to be.
    """
    length_nbytes, _ = _version(start)
    begin = len(_MAGIC) + 2
    if len(start) < begin + length_nbytes:
        raise NpyHeaderError("its header is cut off", "Save it again.")
    nbytes = int.from_bytes(start[begin : begin + length_nbytes], "little")
    if nbytes > MAX_HEADER_NBYTES:
        raise NpyHeaderError(f"its header has {nbytes:,} bytes; at most {MAX_HEADER_NBYTES:,} are read")
    return begin + length_nbytes + nbytes


def parse_npy_header(raw: bytes) -> NpyHeader:
    """Read a header of exactly as many bytes as `header_nbytes` says.

    Raises:
        NpyHeaderError: it is not valid, or describes something that is no tensor of plain numbers.
    """
    length_nbytes, encoding = _version(raw)
    if len(raw) != header_nbytes(raw):
        raise NpyHeaderError("its header is cut off", "Save it again.")
    try:
        text = raw[len(_MAGIC) + 2 + length_nbytes :].decode(encoding)
    except UnicodeDecodeError:
        raise NpyHeaderError("its header is not UTF-8") from None
    descr, fortran_order, shape = _Parser(text).header()
    dtype = _dtype(descr)
    if len(shape) > MAX_RANK:
        raise NpyHeaderError(f"it has {len(shape):,} dimensions; at most {MAX_RANK} are supported")
    if not is_addressable(shape) or prod(shape) * dtype.bits > _MAX_INT:
        raise NpyHeaderError(f"shape {list(shape)} is larger than any memory")
    orders_differ = prod(shape) > 0 and sum(size > 1 for size in shape) > 1
    return NpyHeader(shape, dtype, fortran_order and orders_differ, len(raw), descr.endswith("V2"))


def _version(start: bytes) -> tuple[int, str]:
    if not start.startswith(_MAGIC):
        raise NpyHeaderError("it is no numpy array", "numpy.savez and numpy.savez_compressed write these files.")
    if len(start) < len(_MAGIC) + 2:
        raise NpyHeaderError("its header is cut off", "Save it again.")
    major, minor = start[len(_MAGIC)], start[len(_MAGIC) + 1]
    if major not in _VERSIONS or minor != 0:
        raise NpyHeaderError(f"its format has version {major}.{minor}; known are 1.0, 2.0 and 3.0")
    return _VERSIONS[major]


def _dtype(descr: str) -> DType:
    if dtype := _DTYPES.get(descr):
        return dtype
    order, kind, size = descr[:1], descr[1:2], descr[2:]
    if order in {"<", "|", ">"} and kind in _KINDS:
        what, hint = _KINDS[kind]
        raise NpyHeaderError(f"it holds {what}", hint)
    if order == ">" and f"<{kind}{size}" in _DTYPES:
        raise NpyHeaderError(
            f"its bytes are in big-endian order ('{descr}')",
            f"Save it as array.astype('<{kind}{size}'), which changes no value.",
        )
    if kind in {"V", "f"} and size == "1":
        raise NpyHeaderError(
            f"'{descr}' doesn't say which of the types of 8 bits or fewer it is, since numpy has none of them",
            "Save it with safetensors, which has float8 types.",
        )
    known = ", ".join(sorted(_DTYPES, key=lambda name: (name[1], name)))
    raise NpyHeaderError(f"unsupported dtype '{printable(descr, 100)}'; supported are {known}")


class _Parser:
    """Reads the one form that numpy writes: a dict of three known keys, of text, a bool and a tuple of integers."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._split()
        self._descr = ""
        self._fortran_order = False
        self._shape: tuple[int, ...] = ()

    def header(self) -> tuple[str, bool, tuple[int, ...]]:
        """The values of descr, fortran_order and shape."""
        found: set[str] = set()
        self._expect("{")
        while (token := next(self._tokens)) != "}":
            key = self._string(token)
            if key not in _KEYS or key in found:
                fault = "occurs twice" if key in found else f"is none of {', '.join(_KEYS)}"
                raise NpyHeaderError(f"its header is not valid: the key '{printable(key, 100)}' {fault}")
            found.add(key)
            self._expect(":")
            self._read_value(key)
            token = next(self._tokens)
            if token == "}":
                break
            if token != ",":
                raise self._unexpected(token)
        self._expect("")
        if missing := [key for key in _KEYS if key not in found]:
            raise NpyHeaderError(f"its header is not valid: {' and '.join(missing)} missing")
        return self._descr, self._fortran_order, self._shape

    def _read_value(self, key: str) -> None:
        token = next(self._tokens)
        if key == "descr":
            if token in {"[", "(", "{"}:
                raise NpyHeaderError(
                    "it holds records of several fields (a structured dtype)", "Save each field as an array of its own."
                )
            self._descr = self._string(token)
        elif key == "fortran_order":
            if token not in {"True", "False"}:
                raise self._unexpected(token)
            self._fortran_order = token == "True"
        elif token == "(":
            self._shape = tuple(self._sizes())
        else:
            raise self._unexpected(token)

    def _sizes(self) -> Iterator[int]:
        count = 0
        while (token := next(self._tokens)) != ")":
            # Comparing lengths first keeps a number of ten thousand digits cheap.
            if not token.isdecimal() or len(token) > len(str(_MAX_INT)) or str(int(token)) != token:
                raise self._unexpected(token)
            yield int(token)
            count += 1
            token = next(self._tokens)
            # One number in parentheses is a number; a tuple of one has a comma.
            if token == ")" and count > 1:
                return
            if token != ",":
                raise self._unexpected(token)

    def _expect(self, wanted: str) -> None:
        token = next(self._tokens)
        if token != wanted:
            raise self._unexpected(token)

    def _string(self, token: str) -> str:
        if len(token) < _QUOTED or token[0] not in {"'", '"'}:
            raise self._unexpected(token)
        return token[1:-1]

    def _unexpected(self, token: str) -> NpyHeaderError:
        shown = printable(token, 100) if token else "end"
        return NpyHeaderError(f"its header is not valid: unexpected {shown} in {printable(self._text.strip(), 200)}")

    def _split(self) -> Iterator[str]:
        """Tokens, text with its quotes; an empty one at the end, forever."""
        position = 0
        while match := _TOKEN.match(self._text, position):
            position = match.end()
            # A number without the suffix that Python 2 gave to large ones.
            yield match[2] or match[0].strip(" \t\r\n")
        while True:
            yield ""
