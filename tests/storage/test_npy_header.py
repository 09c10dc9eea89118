"""The parser of numpy's headers against numpy itself, and on headers that numpy would refuse or evaluate."""

from __future__ import annotations

import io
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.lib import format as npy_format

from converters.storage.npy_header import (
    MAX_HEADER_NBYTES,
    PREFIX_NBYTES,
    NpyHeader,
    NpyHeaderError,
    header_nbytes,
    parse_npy_header,
)
from converters.tensor_info import DType

DTYPES = {
    "?": DType.BOOL, "i1": DType.I8, "u1": DType.U8, "i2": DType.I16, "u2": DType.U16, "f2": DType.F16,
    "i4": DType.I32, "u4": DType.U32, "f4": DType.F32, "i8": DType.I64, "u8": DType.U64, "f8": DType.F64,
    "c8": DType.C64,
}  # fmt: skip


def saved(array: Any, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    npy_format.write_array(file, array, version)
    return file.getvalue()


def parse(raw: bytes) -> NpyHeader:
    return parse_npy_header(raw[: header_nbytes(raw[:PREFIX_NBYTES])])


def header(text: str, version: int = 1) -> bytes:
    encoded = text.encode("utf-8" if version == 3 else "latin-1")
    length = len(encoded).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + encoded


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 4), (1, 5), (2, 1, 3, 4)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_reads_what_numpy_wrote(name: str, version: tuple[int, int], shape: tuple[int, ...], order: Any) -> None:
    array = np.zeros(shape, name, order=order)
    raw = saved(array, version)
    found = parse(raw)
    assert (found.shape, found.dtype) == (shape, DTYPES[name])
    assert found.data_start == len(raw) - array.nbytes
    assert found.nbytes == array.nbytes
    # Where both orders are the same bytes, there is nothing to put in order.
    assert found.fortran_order == (not array.flags.c_contiguous)
    assert not found.raw_bfloat16


def test_bfloat16_is_known_by_its_two_bytes() -> None:
    found = parse(saved(np.zeros((2, 3), ml_dtypes.bfloat16)))
    assert (found.dtype, found.shape, found.raw_bfloat16) == (DType.BF16, (2, 3), True)


@pytest.mark.parametrize("text", [
    "{'descr': '<f4', 'fortran_order': False, 'shape': (3L, 5L), }",  # by numpy in Python 2
    '{"shape": (3, 5,), "descr": "<f4", "fortran_order": False}\n',
    "  {'fortran_order':False,'shape':(3,5),'descr':'<f4'}  \t\n",
])  # fmt: skip
@pytest.mark.parametrize("version", [1, 2, 3])
def test_other_ways_to_write_it(text: str, version: int) -> None:
    assert parse(header(text, version)) == NpyHeader((3, 5), DType.F32, False, len(header(text, version)))  # noqa: FBT003


@pytest.mark.parametrize(("array", "message"), [
    (np.array([None, {}], dtype=object), "Python objects as a pickle"),
    (np.array(["text"]), "it holds text"),
    (np.array([b"text"]), "it holds text"),
    (np.array(["2020-01-01"], "M8[D]"), "it holds dates"),
    (np.zeros(3, [("a", "f4"), ("b", "i4")]), "records of several fields"),
    (np.zeros(3, [("a", "f4", (2,))]), "records of several fields"),
    (np.zeros(3, ">f4"), "big-endian"),
    (np.zeros(3, ">i8"), "big-endian"),
    (np.zeros(3, "c16"), "unsupported dtype '<c16'"),
    (np.zeros(3, "V3"), r"unsupported dtype '\|V3'"),
    (np.zeros(3, ml_dtypes.float8_e4m3fn), "doesn't say which"),
    (np.zeros(3, ml_dtypes.float8_e5m2), "doesn't say which"),
    (np.zeros(3, ml_dtypes.int4), "doesn't say which"),
])  # fmt: skip
def test_what_is_no_tensor_of_plain_numbers(array: Any, message: str) -> None:
    with pytest.raises(NpyHeaderError, match=message):
        parse(saved(array))


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 5), }"


@pytest.mark.parametrize(("text", "message"), [
    (GOOD.replace("(3, 5)", "(print('run'),)"), "unexpected print"),
    (GOOD.replace("False", "[].__class__"), "unexpected"),
    (GOOD.replace("False", "0"), "unexpected 0"),
    (GOOD.replace("(3, 5)", "[3, 5]"), r"unexpected \["),
    (GOOD.replace("(3, 5)", "(3)"), r"unexpected \)"),
    (GOOD.replace("(3, 5)", "(,)"), "unexpected ,"),
    (GOOD.replace("(3, 5)", "(-3, 5)"), "unexpected -"),
    (GOOD.replace("(3, 5)", "(3.0, 5)"), r"unexpected \."),
    (GOOD.replace("(3, 5)", "(0x3, 5)"), "unexpected x"),
    (GOOD.replace("(3, 5)", "(03, 5)"), "unexpected 03"),
    (GOOD.replace("(3, 5)", "(True, 5)"), "unexpected True"),
    (GOOD.replace("(3, 5)", "(²,)"), "unexpected ²"),
    (GOOD.replace("(3, 5)", f"({10**19},)"), f"unexpected {10**19}"),
    (GOOD.replace("(3, 5)", f"({'9' * 9000},)"), "unexpected 9999"),
    (GOOD.replace("(3, 5)", f"(0, {2**62}, {2**62})"), "larger than any memory"),
    (GOOD.replace("(3, 5)", f"({2**61}, 5)"), "larger than any memory"),
    (GOOD.replace("(3, 5)", f"({'1, ' * 65})"), "65 dimensions"),
    (GOOD.replace("'<f4'", "'<f4"), "not valid"),
    (GOOD.replace("'<f4'", "'<f\\x34'"), "not valid"),
    (GOOD.replace("'<f4'", "'<' 'f4'"), "unexpected 'f4'"),
    (GOOD.replace("'<f4'", "b'<f4'"), "unexpected b"),
    (GOOD.replace("'<f4'", "'=f4'"), "unsupported dtype '=f4'"),
    (GOOD.replace("'<f4'", "''"), "unsupported dtype ''"),
    (GOOD.replace("'shape'", "'descr'"), "'descr' occurs twice"),
    (GOOD.replace("'descr'", "'dtype'"), "the key 'dtype' is none of descr"),
    (GOOD.replace("'descr': '<f4', ", ""), "descr missing"),
    (GOOD.replace(", }", " }{"), "unexpected {"),
    (GOOD.replace(", }", ""), "unexpected end"),
    (GOOD.replace(":", "="), "unexpected ="),
    ("{}", "descr and fortran_order and shape missing"),
    ("", "unexpected end"),
    ("\x1b]0;title\x07", r"\\x1b"),
])  # fmt: skip
def test_other_text_is_refused_and_never_evaluated(text: str, message: str) -> None:
    with pytest.raises(NpyHeaderError, match=message):
        parse(header(text))


@pytest.mark.parametrize(("raw", "message"), [
    (b"", "no numpy array"),
    (b"PK\x03\x04", "no numpy array"),
    (b"\x93NUMPY", "cut off"),
    (b"\x93NUMPY\x01\x00\x05", "cut off"),
    (b"\x93NUMPY\x04\x00" + bytes(8), "version 4.0"),
    (b"\x93NUMPY\x01\x01" + bytes(8), "version 1.1"),
    (header(GOOD)[:-1], "cut off"),
    (header(" " * (MAX_HEADER_NBYTES + 1), 2), "at most 10,000"),
    (b"\x93NUMPY\x03\x00\x02\x00\x00\x00\xff\xff", "not UTF-8"),
])  # fmt: skip
def test_damaged_headers(raw: bytes, message: str) -> None:
    with pytest.raises(NpyHeaderError, match=message):
        parse_npy_header(raw[: header_nbytes(raw)])


@given(st.binary(max_size=200))
@example(b"{'descr':'" * 3)
def test_no_text_gives_any_other_error(text: bytes) -> None:
    raw = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    try:
        found = parse(raw)
    except NpyHeaderError:
        return
    assert_as_numpy_reads_it(raw, found)


PIECES = [
    "{",
    "}",
    "(",
    ")",
    ",",
    ":",
    "'descr'",
    "'shape'",
    "'fortran_order'",
    "True",
    "False",
    "'<f4'",
    "'|O'",
    "3",
    "0",
]


@given(st.lists(st.sampled_from([*PIECES, "7L", " ", "'", "'>i2'", "(3,)", "(2,3)", "['a']", "\n"]), max_size=24))
@example(["{", "'descr'", ":", "'<f4'", ",", "'fortran_order'", ":", "True", ",", "'shape'", ":", "(2,3)", "}"])
def test_what_is_accepted_numpy_reads_alike(pieces: list[str]) -> None:
    raw = header("".join(pieces))
    try:
        found = parse(raw)
    except NpyHeaderError:
        return
    assert_as_numpy_reads_it(raw, found)


def assert_as_numpy_reads_it(raw: bytes, found: NpyHeader) -> None:
    file = io.BytesIO(raw)
    npy_format.read_magic(file)
    shape, fortran_order, dtype = npy_format.read_array_header_1_0(file)
    assert found.shape == shape
    assert found.nbytes == dtype.itemsize * int(np.prod(shape, dtype=object))
    assert found.fortran_order <= fortran_order
    assert found.data_start == file.tell()
