"""The header's parser against hostile bytes, and against the safetensors library in both directions."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from converters.errors import CheckpointError, OutputError
from converters.storage import safetensors_extents, safetensors_header
from converters.storage.safetensors_header import (
    MAX_HEADER_NBYTES,
    SafetensorsHeader,
    build_header,
    parse_header,
    parse_length,
)
from converters.storage.safetensors_scan import scan_header
from converters.tensor_info import DType, TensorInfo

WHERE = "model.safetensors"
GOOD = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


def pack(header: str | bytes | dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header) if isinstance(header, dict) else header
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw + data


def parse(content: bytes) -> SafetensorsHeader:
    length = parse_length(content[:512], len(content), WHERE)
    return parse_header(content[8 : 8 + length], len(content), WHERE)


def entry(**changes: object) -> dict[str, object]:
    return {**GOOD, **changes}


def text_of(**fields: str) -> str:
    """One tensor `a`, its fields as raw JSON text."""
    values = {"dtype": '"U8"', "shape": "[2]", "data_offsets": "[0,2]", **fields}
    return '{"a":{' + ",".join(f'"{field}":{value}' for field, value in values.items()) + "}}"


HOSTILE = {
    # name: content, what the message must say, whether the library refuses it, too
    "length beyond the file": (struct.pack("<Q", 99) + b"{}", "needs 99 bytes, but only 2", True),
    "length above the limit": (struct.pack("<Q", MAX_HEADER_NBYTES + 1) + b"{" * 9, "above the limit", True),
    "length of all ones": (b"\xff" * 8 + b"{}", "above the limit", True),
    "length zero": (struct.pack("<Q", 0), "does not begin with '{'", True),
    "only a length": (struct.pack("<Q", 640), "needs 640 bytes, but only 0", True),
    "seven bytes": (b"\x02\0\0\0\0\0\0", "at least 8 bytes, this one has 7", True),
    "not utf-8": (pack(b'{"\xff\xfe":1}'), "byte 2 is not UTF-8", True),
    "utf-8 of a surrogate": (pack('{"\ud800":1}'), "not UTF-8", True),
    "overlong utf-8": (pack(b'{"\xc0\xaf":1}'), "not UTF-8", True),
    "byte order mark": (pack(b"\xef\xbb\xbf{}"), "does not begin", True),
    "leading space": (pack(" " + text_of(), b"xx"), "does not begin", False),
    "a list": (pack(b"[1]"), "does not begin", True),
    "a string": (pack(b'"a"'), "does not begin", True),
    "cut off": (pack(b'{"a":'), "not JSON", True),
    "two objects": (pack(b"{}{}"), "not JSON: Extra data at byte 2", True),
    "padded with zero bytes": (pack(b"{}\0\0"), "not JSON", True),
    "trailing comma": (pack(text_of()[:-1] + ",}", b"xx"), "not JSON", True),
    "a comment": (pack(b"{/* */}"), "not JSON", True),
    "single quotes": (pack(b"{'a':1}"), "not JSON", True),
    "raw control character": (pack(b'{"a\n":1}'), "not JSON: Invalid control character", True),
    "NaN": (pack(text_of(shape="[NaN]"), b"xx"), "NaN is not JSON", True),
    "Infinity": (pack(text_of(shape="[-Infinity]"), b"xx"), "-Infinity is not JSON", True),
    "leading zero": (pack(text_of(shape="[02]"), b"xx"), "not JSON", True),
    "duplicate tensor": (
        pack(f'{{"a":{json.dumps(GOOD)},"a":{json.dumps(GOOD)}}}', b"xx"),
        "the key 'a' occurs twice",
        False,
    ),
    "duplicate tensor in the usual form": (
        pack((text_of()[:-1] + "," + text_of()[1:]), b"xx"),
        "the key 'a' occurs twice",
        False,
    ),
    "duplicate tensor, spelled differently": (
        pack(text_of()[:-1] + ',"\\u0061":' + json.dumps(GOOD) + "}", b"xx"),
        "the key 'a' occurs twice",
        False,
    ),
    "duplicate field": (pack('{"a":{"dtype":"U8","dtype":"I8"}}'), "the key 'dtype' occurs twice", True),
    "duplicate metadata": (
        pack('{"__metadata__":{},"__metadata__":{}}'),
        "the key '__metadata__' occurs twice",
        True,
    ),
    "duplicate key in metadata": (pack('{"__metadata__":{"b":"1","b":"2"}}'), "the key 'b' occurs twice", False),
    "lone surrogate in a name": (pack(b'{"\\ud800":1}'), "lone surrogate", True),
    "lone surrogate in metadata": (pack(b'{"__metadata__":{"a":"\\uDC00"}}'), "lone surrogate", True),
    "nested deeply": (pack(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "nested too deeply", True),
    "objects nested deeply": (pack(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "nested too deeply", True),
    "nested a little": (pack(text_of(shape="[[[[2]]]]"), b"xx"), "got a list of 1", True),
    "a number of 5000 digits": (pack(text_of(shape=f"[{'9' * 5000}]"), b"xx"), "not JSON", True),
    "a number of 4000 digits": (pack(text_of(shape=f"[{'9' * 4000}]"), b"xx"), "list of whole numbers", True),
    "metadata a list": (pack(b'{"__metadata__":[]}'), "must map strings to strings, got a list", True),
    "metadata a string": (pack(b'{"__metadata__":"pt"}'), 'must map strings to strings, got "pt"', True),
    "metadata with a number": (pack(b'{"__metadata__":{"format":1}}'), "'format' is 1", True),
    "metadata with null": (pack(b'{"__metadata__":{"format":null}}'), "'format' is null", True),
    "metadata nested": (pack(b'{"__metadata__":{"a":{}}}'), "'a' is an object", True),
    "metadata that is a tensor": (pack({"__metadata__": GOOD}, b"xx"), "must map strings to strings", True),
    "tensor null": (pack('{"a":null}'), "got null", True),
    "tensor a number": (pack('{"a":1}'), "got 1", True),
    "tensor a list": (pack('{"a":["U8",[2],[0,2]]}', b"xx"), "got a list of 3", False),
    "no dtype": (pack('{"a":{"shape":[2],"data_offsets":[0,2]}}', b"xx"), "its dtype is missing", True),
    "empty tensor entry": (pack('{"a":{}}'), "dtype and shape and data_offsets are missing", True),
    "unknown field": (pack({"a": entry(stride=[1])}, b"xx"), "no field 'stride'", False),
    "unknown dtype": (pack({"a": entry(dtype="F128")}, b"xx"), 'unknown dtype "F128"; known are BOOL', True),
    "dtype in lower case": (pack({"a": entry(dtype="u8")}, b"xx"), 'unknown dtype "u8"', True),
    "dtype a list": (pack({"a": entry(dtype=["U8"])}, b"xx"), "unknown dtype a list", True),
    "dtype an object": (pack({"a": entry(dtype={})}, b"xx"), "unknown dtype an object", True),
    "dtype null": (pack({"a": entry(dtype=None)}, b"xx"), "unknown dtype null", True),
    "shape 2.0": (pack(text_of(shape="[2.0]"), b"xx"), "list of whole numbers, got 2.0", True),
    "shape 2e0": (pack(text_of(shape="[2e0]"), b"xx"), "list of whole numbers, got 2.0", True),
    "shape 1e999": (pack(text_of(shape="[1e999]"), b"xx"), "1e999 is too large", True),
    "shape true": (pack(text_of(shape="[true,2]"), b"xx"), "list of whole numbers, got true", True),
    "shape -1": (pack(text_of(shape="[-1,-2]"), b"xx"), "list of whole numbers, got -1", True),
    "shape -0": (pack(text_of(shape="[-0]", data_offsets="[0,0]")), "-0 is not an integer", True),
    "shape a string": (pack(text_of(shape='"2"'), b"xx"), 'list of whole numbers, got "2"', True),
    "shape of strings": (pack(text_of(shape='["2"]'), b"xx"), 'list of whole numbers, got "2"', True),
    "shape null": (pack(text_of(shape="null"), b"xx"), "list of whole numbers, got null", True),
    "shape a number": (pack(text_of(shape="2"), b"xx"), "list of whole numbers, got 2", True),
    "shape an object": (pack(text_of(shape='{"0":2}'), b"xx"), "list of whole numbers, got an object", True),
    "product overflows to the right size": (
        pack({"a": entry(shape=[2**32, 2**32, 2])}, b"xx"),
        "larger than any memory",
        True,
    ),
    "product overflows before a zero": (
        pack({"a": entry(shape=[2**62, 2**62, 0], data_offsets=[0, 0])}),
        "larger than any memory",
        True,
    ),
    "size beyond 64 bits": (pack({"a": entry(shape=[2**64])}, b"xx"), "got 18446744073709551616", True),
    "65 dimensions": (pack({"a": entry(shape=[1] * 64 + [2])}, b"xx"), "65 dimensions", False),
    "a hundred thousand dimensions": (pack({"a": entry(shape=[2**62] * 10**5)}, b"xx"), "100,000 dimensions", True),
    "offsets swapped": (pack({"a": entry(data_offsets=[2, 0])}, b"xx"), "[2, 0] are not a range", True),
    "offset -1": (pack({"a": entry(data_offsets=[-1, 1])}, b"xx"), "two whole numbers, got -1", True),
    "offset 2.0": (pack(text_of(data_offsets="[0,2.0]"), b"xx"), "two whole numbers, got 2.0", True),
    "offset true": (pack(text_of(data_offsets="[true,3]"), b"xxx"), "two whole numbers, got true", True),
    "offset -0": (pack(text_of(data_offsets="[-0,2]"), b"xx"), "-0 is not an integer", True),
    "one offset": (pack({"a": entry(data_offsets=[0])}, b"xx"), "two whole numbers, got a list of 1", True),
    "three offsets": (pack({"a": entry(data_offsets=[0, 2, 2])}, b"xx"), "two whole numbers, got a list of 3", True),
    "offsets a string": (pack({"a": entry(data_offsets="02")}, b"xx"), 'two whole numbers, got "02"', True),
    "offsets null": (pack({"a": entry(data_offsets=None)}, b"xx"), "two whole numbers, got null", True),
    "offset beyond 64 bits": (pack({"a": entry(data_offsets=[0, 2**70])}, b"xx"), "got 1180591620717411303424", True),
    "size too small": (pack({"a": entry(shape=[1])}, b"xx"), "takes 1 bytes, but data_offsets give 2", True),
    "size too large": (pack({"a": entry(dtype="F32")}, b"xx"), "takes 8 bytes, but data_offsets give 2", True),
    "half a byte": (pack({"a": entry(dtype="F4", shape=[3])}, b"xx"), "ends within a byte (12 bits)", True),
    "six bits": (pack({"a": entry(dtype="F6_E2M3", shape=[2])}, b"xx"), "ends within a byte (12 bits)", True),
    "data missing": (pack({"a": GOOD}, b"x"), "need 2 bytes, but it holds 1", True),
    "data cut off at a terabyte": (
        pack({"a": entry(shape=[10**12], data_offsets=[0, 10**12])}, b"x"),
        "1.00 TB are missing",
        True,
    ),
    "data appended": (pack({"a": GOOD}, b"xxx"), "1 bytes at its end belong to no tensor", True),
    "data without tensors": (pack("{}", b"x"), "1 bytes at its end belong to no tensor", True),
    "hole at the start": (pack({"a": entry(data_offsets=[1, 3])}, b"xxx"), "no tensor owns bytes 0 to 1", True),
    "hole": (pack({"a": GOOD, "b": entry(data_offsets=[3, 5])}, b"xxxxx"), "no tensor owns bytes 2 to 3", True),
    "overlap": (pack({"a": GOOD, "b": entry(data_offsets=[1, 3])}, b"xxx"), "b: its bytes 1 to 3 overlap those", True),
    "the same bytes twice": (pack({"a": GOOD, "b": GOOD}, b"xx"), "overlap those of 'a'", True),
    "one tensor inside another": (
        pack({"a": entry(shape=[4], data_offsets=[0, 4]), "b": entry(data_offsets=[1, 3])}, b"xxxx"),
        "overlap those of 'a'",
        True,
    ),
    "an empty tensor inside another": (
        pack({"a": GOOD, "e": entry(shape=[0], data_offsets=[1, 1])}, b"xx"),
        "e: its bytes 1 to 1 overlap those",
        True,
    ),
    "an empty tensor beyond the end": (
        pack({"a": GOOD, "e": entry(shape=[0], data_offsets=[9, 9])}, b"xx"),
        "no tensor owns bytes 2 to 9",
        True,
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused_and_the_message_says_why(case: str) -> None:
    content, message, refused_by_library = HOSTILE[case]
    with pytest.raises(CheckpointError) as refusal:
        parse(content)
    assert message in str(refusal.value)
    assert all(str(problem.where).startswith(WHERE) for problem in refusal.value.problems if problem.where)
    assert len(str(refusal.value)) < 3000

    if refused_by_library:
        with pytest.raises(safetensors.SafetensorError):
            safetensors.deserialize(content)
    else:
        safetensors.deserialize(content)  # we are stricter, on purpose


def test_all_problems_of_a_header_come_at_once_up_to_a_bound() -> None:
    with pytest.raises(CheckpointError) as refusal:
        parse(pack({f"t{i}": entry(dtype="F99") for i in range(50)}))
    assert len(refusal.value.problems) == safetensors_extents.MAX_REPORTED + 1
    assert "and 30 more" in str(refusal.value)


def test_a_name_is_escaped_where_it_is_printed() -> None:
    with pytest.raises(CheckpointError) as refusal:
        parse(pack({"\x1b[2J\u202e": entry(dtype="F99")}))
    assert r"\x1b[2J\u202e" in str(refusal.value)
    assert "\x1b" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "an HTML page"),
        (b"\xef\xbb\xbf\n <HTML><head>", "an HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML page"),
        (b"PK\x03\x04\x14\0\0\0\0\0archive/data.pkl", "a zip archive"),
        (b"\x80\x02}q\0(X\x05\0\0\0model", "a pickle"),
        (b"\x80\x04\x95\x05\0\0\0\0\0\0\0}\x94.", "a pickle"),
        (b"GGUF\x03\0\0\0\0\0\0\0", "a GGUF file"),
        (b'{"error": "Repository not found"}', "a JSON file"),
        (b"\x89HDF\r\n\x1a\n\0\0\0\0", "an HDF5 file"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc", "a gzip archive"),
    ],
)
def test_a_wrong_file_is_called_by_its_name(content: bytes, what: str) -> None:
    with pytest.raises(CheckpointError, match=what):
        parse_length(content[:512], len(content), WHERE)


def test_a_lfs_pointer_comes_with_the_command_to_run() -> None:
    with pytest.raises(CheckpointError, match="git lfs pull"):
        parse_length(b"version https://git-lfs.github.com/spec/v1\n", 120, WHERE)


@pytest.mark.parametrize("length", [0x0280, 0x4B50, 0x8B1F, 0x7B, 0x227B])
def test_a_truncated_file_is_not_mistaken_for_a_format_that_its_length_looks_like(length: int) -> None:
    for start in (struct.pack("<Q", length), struct.pack("<Q", length) + b'{"a":'):
        with pytest.raises(CheckpointError, match="bytes, but only"):
            parse_length(start, len(start), WHERE)


@pytest.mark.parametrize(
    "content",
    [
        pack("{}"),
        pack("{}   "),
        pack("{} \n\t"),
        pack('{"__metadata__":{}}'),
        pack('{"__metadata__":{"format":"pt","a":"}{\\"\\u00e9"}}'),
        pack('{"__metadata__":null}'),
        pack({"a": GOOD}, b"xx"),
        pack(json.dumps({"a": GOOD}, indent=4), b"xx"),
        pack({"": GOOD}, b"xx"),
        pack({"b": entry(data_offsets=[2, 4]), "a": GOOD}, b"xxxx"),
        pack({"e": entry(shape=[0], data_offsets=[2, 2]), "a": GOOD}, b"xx"),
        pack({"s": entry(shape=[], data_offsets=[0, 1])}, b"x"),
        pack({"a": entry(shape=[1] * 63 + [2])}, b"xx"),
        pack({"a": {"data_offsets": [0, 2], "shape": [2], "dtype": "U8"}}, b"xx"),
        pack({"model-0": GOOD}, b"xx"),
        pack('{"\\ud83e\\udd17":' + json.dumps(GOOD) + "}", b"xx"),
        pack('{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', b"xx"),
        pack('{"__metadata__":{"format":"pt"},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}   ', b"xx"),
        pack('{"__metadata__":{"format":"}"},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', b"xx"),
        pack(
            '{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
            b"x",
        ),
    ],
)
def test_a_valid_header_is_read_as_the_library_reads_it(content: bytes) -> None:
    header = parse(content)
    expected = dict(safetensors.deserialize(content))
    assert set(header.tensors) == set(expected)
    for name, info in header.tensors.items():
        assert list(info.shape) == expected[name]["shape"]
        assert info.dtype.label == expected[name]["dtype"]
        begin = header.data_start + header.offsets[name]
        assert content[begin : begin + info.nbytes] == bytes(expected[name]["data"])
    assert list(header.offsets.values()) == sorted(header.offsets.values())
    assert header.file_nbytes == len(content)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.just(2**64)
    | st.floats(allow_nan=False)
    | st.text('a"\\\n', max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=5,
)
field_values = {
    "dtype": st.sampled_from([dtype.label for dtype in DType]) | json_values,
    "shape": st.lists(st.integers(0, 4), max_size=3) | json_values,
    "data_offsets": st.lists(st.integers(0, 6), min_size=2, max_size=2) | json_values,
}
headers = st.dictionaries(
    st.text('ab"\\é', max_size=2) | st.just("__metadata__"),
    st.fixed_dictionaries(field_values)
    | st.dictionaries(st.text("ab", max_size=1), st.text("{}", max_size=2))
    | json_values,
    max_size=3,
)


@given(headers, st.integers(0, 12), st.sampled_from([(",", ":"), (", ", ": ")]), st.integers(0, 3))
def test_whatever_the_library_refuses_we_refuse_too(
    header: dict[str, Any], data_nbytes: int, separators: tuple[str, str], padding: int
) -> None:
    text = json.dumps(header, ensure_ascii=False, separators=separators) + " " * padding
    content = pack(text, bytes(data_nbytes))
    try:
        expected = dict(safetensors.deserialize(content))
    except safetensors.SafetensorError:
        expected = None
    try:
        found = parse(content)
    except CheckpointError:
        return
    assert expected is not None
    assert {name: list(info.shape) for name, info in found.tensors.items()} == {
        name: value["shape"] for name, value in expected.items()
    }


USUAL, _ = build_header([TensorInfo("w", (3, 2), DType.F32), TensorInfo("b", (10,), DType.BF16)])


@given(st.integers(0, len(USUAL) - 9), st.integers(0, 3), st.text('{}[]",:0123456789-+.eE \\UFa\0\n\u20ac', max_size=3))
def test_the_fast_way_through_a_header_never_differs_from_the_strict_one(at: int, cut: int, inserted: str) -> None:
    raw = USUAL[8:]
    raw = raw[:at] + inserted.encode() + raw[at + cut :]
    quick = safetensors_header._parse_quickly(raw, 8 + len(raw))
    if quick is not None:
        assert quick == safetensors_header._parse_strictly(raw, 8 + len(raw), quick.file_nbytes, WHERE)


ENTRY = '"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}'


@pytest.mark.parametrize(
    "text",
    [
        f"{{{ENTRY},{ENTRY}}}",
        '{"a":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}}',
        '{"a":{"dtype":"U8","shape":[3],"shape":[2],"data_offsets":[0,2]}}',
        '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2],"x":1}}',
        '{"a":{"dtype":"U8","shape":[2.0],"data_offsets":[0,2]}}',
        '{"a":{"dtype":"U8","shape":[true,2],"data_offsets":[0,2]}}',
        '{"a":{"dtype":"U8","shape":["2"],"data_offsets":[0,2]}}',
        '{"a":{"dtype":"U8","shape":[2],"data_offsets":[-0,2]}}',
        '{"a":{"dtype":"U8","shape":[-1,-2],"data_offsets":[0,2]}}',
        '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2,2]}}',
        '{"a":{"dtype":"U9","shape":[2],"data_offsets":[0,2]}}',
        '{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}',
        f'{{"__metadata__":{{}},"__metadata__":{{}},{ENTRY}}}',
        f'{{"__metadata__":{{"a":"b","a":"b"}},"__metadata__":{ENTRY[4:]}}}',
        f'{{{ENTRY},"\\u0062":{ENTRY[4:].replace("0,2", "2,4")}}}',
        f'{{{ENTRY},"b":{ENTRY[4:].replace("0,2", "1,3")}}}',
        f'{{{ENTRY},"b":{ENTRY[4:].replace("0,2", "3,5")}}}',
        '{"a":{"dtype":"U8","shape":[' + "1," * 5_000_000 + '2],"data_offsets":[0,2]}}',
    ],
)
def test_what_the_fast_way_leaves_to_the_strict_one(text: str) -> None:
    assert scan_header(f"{{{ENTRY}}}".encode()) is not None
    assert scan_header(text.encode()) is None


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_our_error(raw: bytes) -> None:
    for content in (raw, pack(raw), pack(b"{" + raw)):
        with suppress(CheckpointError):
            parse(content)


@given(
    st.lists(
        st.builds(
            TensorInfo,
            name=st.text(max_size=12).filter(lambda name: name != "__metadata__"),
            shape=st.lists(st.integers(0, 9), max_size=4).map(tuple),
            dtype=st.sampled_from(list(DType)),
        ).filter(lambda info: info.size * info.dtype.bits % 8 == 0),
        unique_by=lambda info: info.name,
        max_size=12,
    ),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
def test_what_we_build_is_read_back_by_us_and_by_the_library(
    tensors: list[TensorInfo], metadata: dict[str, str]
) -> None:
    start, header = build_header(tensors, metadata)
    data = bytes(range(256)) * (header.data_nbytes // 256 + 1)
    content = start + data[: header.data_nbytes]

    assert parse(content) == header
    assert safetensors_header._parse_strictly(start[8:], header.data_start, len(content), WHERE) == header
    assert header.metadata == metadata
    assert header.data_start % 8 == 0
    assert all(
        (header.data_start + header.offsets[name]) % max(1, info.dtype.bits // 8) == 0
        for name, info in header.tensors.items()
    )
    library = dict(safetensors.deserialize(content))
    assert set(library) == {info.name for info in tensors}
    for info in tensors:
        begin = header.data_start + header.offsets[info.name]
        assert library[info.name]["dtype"] == info.dtype.label
        assert library[info.name]["shape"] == list(info.shape)
        assert bytes(library[info.name]["data"]) == content[begin : begin + info.nbytes]


def test_the_order_given_is_kept_within_a_width() -> None:
    infos = [
        TensorInfo(name, (4,), dtype)
        for name, dtype in [("z", DType.F16), ("f4", DType.F4), ("y", DType.F32), ("a", DType.BF16), ("i", DType.I64)]
    ]
    _, header = build_header(infos)
    assert list(header.tensors) == ["i", "y", "z", "a", "f4"]


def test_the_metadata_comes_first_and_says_pt() -> None:
    start, _ = build_header([TensorInfo("a", (1,), DType.U8)])
    assert start[8:].startswith(b'{"__metadata__":{"format":"pt"},"a":')
    assert len(start) % 8 == 0


@pytest.mark.parametrize(
    ("infos", "message"),
    [
        ([TensorInfo("__metadata__", (1,), DType.U8)], "no tensor can have this name"),
        ([TensorInfo("a", (1,), DType.U8), TensorInfo("a", (2,), DType.U8)], "two tensors"),
        ([TensorInfo("\ud800", (1,), DType.U8)], "lone surrogate"),
        ([TensorInfo("a", (3,), DType.F4)], "ends within a byte"),
    ],
)
def test_a_target_that_safetensors_cannot_hold_is_refused(infos: list[TensorInfo], message: str) -> None:
    with pytest.raises(OutputError, match=message):
        build_header(infos)


def test_a_header_that_no_reader_would_accept_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_header, "MAX_HEADER_NBYTES", 100)
    with pytest.raises(OutputError, match="readers accept 100"):
        build_header([TensorInfo("a" * 100, (1,), DType.U8)])


TORCH_DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.float16, torch.bfloat16, torch.int32,
    torch.uint32, torch.float32, torch.complex64, torch.float64, torch.int64, torch.uint64, torch.float8_e5m2,
    torch.float8_e4m3fn, torch.float8_e8m0fnu, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float4_e2m1fn_x2,
]  # fmt: skip


def test_every_dtype_that_the_library_writes_is_read() -> None:
    state = {str(dtype): torch.zeros(3, 8, dtype=torch.uint8).view(dtype) for dtype in TORCH_DTYPES}
    state["scalar"] = torch.tensor(1.5)
    state["empty"] = torch.zeros(0, 3)
    content = safetensors.torch.save(state, {"format": "pt"})
    header = parse(content)
    assert set(header.tensors) == set(state)
    assert header.metadata == {"format": "pt"}
    assert scan_header(content[8 : header.data_start]) is not None
    for name, tensor in state.items():
        assert header.tensors[name].nbytes == tensor.nbytes
    assert header.tensors["torch.float4_e2m1fn_x2"].shape == (3, 16)
    # torch has no six-bit floats; the parametrized and property tests cover those.
    assert {info.dtype for info in header.tensors.values()} == set(DType) - {DType.F6_E2M3, DType.F6_E3M2}


def test_a_hundred_thousand_tensors_take_the_fast_path() -> None:
    infos = [
        TensorInfo(f"model.layers.{i // 900}.mlp.experts.{i}.gate_proj-0.weight", (2, i % 7), DType.BF16)
        for i in range(100_000)
    ]
    start, header = build_header(infos)
    assert len(parse_header(start[8:], header.file_nbytes, WHERE).tensors) == 100_000
    assert scan_header(start[8:]) is not None


def test_a_large_hostile_header_is_refused() -> None:
    """Text on which a pattern that backtracks, or a sum of growing numbers, would run for hours."""
    for text in (
        '{"a":{"dtype":"U8","shape":[' + "1," * 2_000_000,
        '{"' + "a" * 4_000_000,
        '{"__metadata__":{' + '"' * 4_000_000,
        "{" + '"":' * 1_000_000,
        '{"a":{"dtype":"U8","shape":[' + ",".join(["9223372036854775807"] * 200_000) + '],"data_offsets":[0,1]}}',
    ):
        with pytest.raises(CheckpointError):
            parse(pack(text, b"x"))


def test_a_header_of_very_many_values_is_refused_before_it_takes_the_memory() -> None:
    with pytest.raises(CheckpointError, match="more than 1,000,000 values"):
        parse(pack('{"a":[' + "{}," * 1_000_000 + "1]}"))
