"""Safetensors files: headers that lie, and headers that only look odd."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tests.hostile.build import FLOATS, entry, safetensors, tensors, write
from tests.hostile.case import CHECKPOINT, INSPECT, Case

KIND: Final = "safetensors"
FILE: Final = "in/model.safetensors"
GOOD: Final = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}
WIDTHS: Final = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}


def _with(**fields: str) -> str:
    """One tensor `a` of two bytes, its fields as JSON text."""
    values = {"dtype": '"U8"', "shape": "[2]", "data_offsets": "[0,2]", **fields}
    return '{"a":{' + ",".join(f'"{field}":{value}' for field, value in values.items()) + "}}"


def _entry(**changes: object) -> dict[str, Any]:
    return {"a": {**GOOD, **changes}}


NOT_SAFETENSORS: Final[dict[str, tuple[bytes, str]]] = {
    "an empty file": (b"", "an empty file"),
    "seven bytes": (b"\x02\0\0\0\0\0\0", "at least 8 bytes, this one has 7"),
    "only a length": (struct.pack("<Q", 640), "needs 640 bytes, but only 0"),
    "a length beyond the file": (struct.pack("<Q", 99) + b"{}", "needs 99 bytes, but only 2"),
    "a length above the limit": (struct.pack("<Q", 100_000_001) + b"{" * 9, "above the limit"),
    "a length of 2**63": (struct.pack("<Q", 2**63) + b"{}", "above the limit"),
    "a length of all ones": (b"\xff" * 8 + b"{}", "above the limit"),
    "a length of zero": (struct.pack("<Q", 0), "does not begin with '{'"),
    "a page of HTML": (b"<!DOCTYPE html><html><body>Sign in</body></html>", "an HTML page"),
    "a page of XML": (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "an XML page"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
    "a pickle": (b"\x80\x04\x95\x05\0\0\0\0\0\0\0}\x94.", "a pickle"),
    "a GGUF file": (b"GGUF\x03\0\0\0\0\0\0\0", "a GGUF file"),
    "an HDF5 file": (b"\x89HDF\r\n\x1a\n\0\0\0\0", "an HDF5 file"),
    "a gzip archive": (b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc", "a gzip archive"),
    "an error in JSON": (b'{"error": "Repository not found"}', "a JSON file"),
    "bytes of zero": (b"\0" * 4096, "does not begin with '{'"),
}
NOT_A_HEADER: Final[dict[str, tuple[str | bytes, str]]] = {
    "no UTF-8": (b'{"\xff\xfe":1}', "byte 2 is not UTF-8"),
    "UTF-8 of a surrogate": ('{"\ud800":1}', "not UTF-8"),
    "overlong UTF-8": (b'{"\xc0\xaf":1}', "not UTF-8"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "does not begin with '{'"),
    "a space before it": (" " + _with(), "does not begin with '{'"),
    "a list": (b"[1]", "does not begin with '{'"),
    "cut off": (b'{"a":', "not JSON"),
    "two objects": (b"{}{}", "not JSON: Extra data"),
    "padding of zero bytes": (b"{}\0\0", "not JSON"),
    "a trailing comma": (_with()[:-1] + ",}", "not JSON"),
    "a comment": (b"{/* */}", "not JSON"),
    "single quotes": (b"{'a':1}", "not JSON"),
    "a raw control character": (b'{"a\n":1}', "not JSON: Invalid control character"),
    "NaN": (_with(shape="[NaN]"), "NaN is not JSON"),
    "Infinity": (_with(shape="[-Infinity]"), "-Infinity is not JSON"),
    "a leading zero": (_with(shape="[02]"), "not JSON"),
    "a tensor twice": (_with()[:-1] + "," + _with()[1:], "the key 'a' occurs twice"),
    "a tensor twice, once escaped": (_with()[:-1] + ',"\\u0061":{}}', "the key 'a' occurs twice"),
    "a field twice": ('{"a":{"dtype":"U8","dtype":"I8"}}', "the key 'dtype' occurs twice"),
    "metadata twice": ('{"__metadata__":{},"__metadata__":{}}', "the key '__metadata__' occurs twice"),
    "a key twice in metadata": ('{"__metadata__":{"b":"1","b":"2"}}', "the key 'b' occurs twice"),
    "a lone surrogate": (b'{"\\ud800":1}', "lone surrogate"),
    "a lone surrogate in metadata": (b'{"__metadata__":{"a":"\\uDC00"}}', "lone surrogate"),
    "lists nested 200,000 times": (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
    "objects nested 100,000 times": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    "a number of 5,000 digits": (_with(shape=f"[{'9' * 5000}]"), "not JSON"),
    "a number of 4,000 digits": (_with(shape=f"[{'9' * 4000}]"), "list of whole numbers"),
    "metadata that is a list": (b'{"__metadata__":[]}', "must map strings to strings, got a list"),
    "metadata that is text": (b'{"__metadata__":"pt"}', 'must map strings to strings, got "pt"'),
    "a number in metadata": (b'{"__metadata__":{"format":1}}', "'format' is 1"),
    "an object in metadata": (b'{"__metadata__":{"a":{}}}', "'a' is an object"),
    "metadata that is a tensor": ({"__metadata__": GOOD}, "must map strings to strings"),  # type: ignore[dict-item]
}
NOT_A_TENSOR: Final[dict[str, tuple[str | Mapping[str, Any], str]]] = {
    "null": ('{"a":null}', "got null"),
    "a number": ('{"a":1}', "got 1"),
    "a list": ('{"a":["U8",[2],[0,2]]}', "got a list of 3"),
    "an empty object": ('{"a":{}}', "dtype and shape and data_offsets are missing"),
    "no dtype": ('{"a":{"shape":[2],"data_offsets":[0,2]}}', "its dtype is missing"),
    "an unknown field": (_entry(stride=[1]), "no field 'stride'"),
    "an unknown dtype": (_entry(dtype="F128"), 'unknown dtype "F128"'),
    "a dtype in lower case": (_entry(dtype="u8"), 'unknown dtype "u8"'),
    "a list as its dtype": (_entry(dtype=["U8"]), "unknown dtype a list"),
    "shape [2.0]": (_with(shape="[2.0]"), "list of whole numbers, got 2.0"),
    "shape [2e0]": (_with(shape="[2e0]"), "list of whole numbers, got 2.0"),
    "shape [1e999]": (_with(shape="[1e999]"), "1e999 is too large"),
    "shape [true, 2]": (_with(shape="[true,2]"), "list of whole numbers, got true"),
    "shape [-1, -2]": (_with(shape="[-1,-2]"), "list of whole numbers, got -1"),
    "shape [-0]": (_with(shape="[-0]"), "-0 is not an integer"),
    "a shape of text": (_with(shape='["2"]'), 'list of whole numbers, got "2"'),
    "a shape that is a number": (_with(shape="2"), "list of whole numbers, got 2"),
    "a shape in a shape": (_with(shape="[[2]]"), "got a list of 1"),
    "a product that overflows to the right size": (_entry(shape=[2**32, 2**32, 2]), "larger than any memory"),
    "a product that overflows before a zero": (
        _entry(shape=[2**62, 2**62, 0], data_offsets=[0, 0]),
        "larger than any memory",
    ),
    "a size beyond 64 bits": (_entry(shape=[2**64]), "got 18446744073709551616"),
    "65 dimensions": (_entry(shape=[1] * 64 + [2]), "65 dimensions"),
    "a hundred thousand dimensions": (_entry(shape=[2**62] * 10**5), "100,000 dimensions"),
    "offsets the wrong way round": (_entry(data_offsets=[2, 0]), "[2, 0] are not a range"),
    "a negative offset": (_entry(data_offsets=[-1, 1]), "two whole numbers, got -1"),
    "an offset of 2.0": (_with(data_offsets="[0,2.0]"), "two whole numbers, got 2.0"),
    "an offset of true": (_with(data_offsets="[true,3]"), "two whole numbers, got true"),
    "one offset": (_entry(data_offsets=[0]), "two whole numbers, got a list of 1"),
    "three offsets": (_entry(data_offsets=[0, 2, 2]), "two whole numbers, got a list of 3"),
    "an offset beyond 64 bits": (_entry(data_offsets=[0, 2**70]), "got 1180591620717411303424"),
    "too few bytes": (_entry(shape=[3]), "takes 3 bytes, but data_offsets give 2"),
    "too many bytes": (_entry(shape=[1]), "takes 1 bytes, but data_offsets give 2"),
    "half a byte": (_entry(dtype="F4", shape=[3]), "ends within a byte (12 bits)"),
    "a name that commands the terminal": ({"\x1b[2J\x07\u202e": {**GOOD, "dtype": "F9"}}, r"\x1b[2J\x07\u202e"),
    "a name with line breaks": ({"a\nError: b": {**GOOD, "dtype": "F9"}}, r"a\nError: b".replace(r"\n", r"\x0a")),
    "a name of 100,000 characters": ({"k" * 100_000: {**GOOD, "dtype": "F9"}}, "(100,000 characters)"),
    "5,000 wrong tensors": ({f"t{i}": {**GOOD, "dtype": "F9"} for i in range(5000)}, "more problems of this file"),
}
NOT_TILED: Final[dict[str, tuple[Mapping[str, Any], bytes, str]]] = {
    "data missing": (_entry(), b"x", "need 2 bytes, but it holds 1"),
    "a terabyte missing": (_entry(shape=[10**12], data_offsets=[0, 10**12]), b"x", "1.00 TB are missing"),
    "data appended": (_entry(), b"xxx", "1 bytes at its end belong to no tensor"),
    "data without tensors": ({}, b"x", "1 bytes at its end belong to no tensor"),
    "a hole at the start": (_entry(data_offsets=[1, 3]), b"xxx", "no tensor owns bytes 0 to 1"),
    "a hole": ({"a": GOOD, "b": {**GOOD, "data_offsets": [3, 5]}}, b"xxxxx", "no tensor owns bytes 2 to 3"),
    "an overlap": ({"a": GOOD, "b": {**GOOD, "data_offsets": [1, 3]}}, b"xxx", "bytes 1 to 3 overlap those of 'a'"),
    "the same bytes twice": ({"a": GOOD, "b": GOOD}, b"xx", "overlap those of 'a'"),
    "one tensor inside another": (
        {"a": {**GOOD, "shape": [4], "data_offsets": [0, 4]}, "b": {**GOOD, "data_offsets": [1, 3]}},
        b"xxxx",
        "overlap those of 'a'",
    ),
    "an empty tensor inside another": (
        {"a": GOOD, "e": {**GOOD, "shape": [0], "data_offsets": [1, 1]}},
        b"xx",
        "e: its bytes 1 to 1 overlap those",
    ),
    "20,000 tensors on the same bytes": ({f"t{i}": GOOD for i in range(20_000)}, b"xx", "overlap those of"),
}


def _refused() -> Iterator[Case]:
    for what, (content, says) in NOT_SAFETENSORS.items():
        yield Case(KIND, what, {FILE: content}, CHECKPOINT, ("model.safetensors", says))
    for what, (header, says) in NOT_A_HEADER.items():
        yield Case(KIND, f"header: {what}", {FILE: safetensors(header, b"xx")}, CHECKPOINT, ("model.safetensors", says))
    for what, (described, says) in NOT_A_TENSOR.items():
        content = safetensors(described, b"xx")
        yield Case(KIND, f"tensor: {what}", {FILE: content}, CHECKPOINT, ("model.safetensors", says))
    for what, (tiles, data, says) in NOT_TILED.items():
        yield Case(KIND, what, {FILE: safetensors(tiles, data)}, CHECKPOINT, ("model.safetensors", says))
    yield Case(KIND, "a file of 200 GB with a hole", _sparse, CHECKPOINT, ("belong to no tensor",))
    yield Case(
        KIND,
        "99 MB of one header",
        lambda root: write(root / FILE, safetensors(b'{"a":"' + b"x" * 99_000_000 + b'"}')),
        CHECKPOINT,
        ("expected an object with dtype",),
        large=True,
    )
    yield Case(
        KIND,
        "a million commas",
        {FILE: safetensors(b'{"a":[' + b"1," * 1_000_001 + b"1]}")},
        CHECKPOINT,
        ("more than 1,000,000 values",),
    )
    yield Case(
        KIND,
        "100,000 tensors, one of them wrong",
        lambda root: write(root / FILE, _many(100_000, wrong=True)),
        CHECKPOINT,
        ("overlap those of",),
        large=True,
    )


def _sparse(root: Path) -> None:
    write(root / FILE, tensors("a"))
    with (root / FILE).open("r+b") as file:
        file.truncate(200_000_000_000)


def _many(count: int, *, wrong: bool = False) -> bytes:
    header = {f"model.layers.{i}.weight": {**GOOD, "data_offsets": [2 * i, 2 * i + 2]} for i in range(count)}
    if wrong:
        header[f"model.layers.{count // 2}.weight"]["data_offsets"] = [0, 2]
    return safetensors(json.dumps(header, separators=(",", ":")), b"ab" * count)


def _accepted() -> Iterator[Case]:
    for label, bits in WIDTHS.items():
        data = bytes(range(4 * bits // 8))
        if label == "BOOL":
            data = b"\0\1\1\0"
        content = safetensors({"a": entry(label, (4,), 0, len(data))}, data)
        yield Case(KIND, f"dtype {label}", {FILE: content}, holds={"a": data})
    one = {"a": FLOATS}
    plain = {"a": entry()}
    odd: dict[str, tuple[bytes, Mapping[str, bytes]]] = {
        "no dimension": (safetensors({"a": entry(shape=(), end=4)}, FLOATS[:4]), {"a": FLOATS[:4]}),
        "64 dimensions": (safetensors({"a": entry(shape=(1,) * 62 + (2, 3))}, FLOATS), one),
        "a size of zero": (safetensors({"a": entry(shape=(0, 3), end=0)}), {"a": b""}),
        "a size of zero among large ones": (safetensors({"a": entry(shape=(2**30, 0, 2**30), end=0)}), {"a": b""}),
        "empty tensors before, between and after": (
            safetensors(
                {
                    "e": entry(shape=(0,), end=0),
                    "a": entry(),
                    "f": entry(shape=(0,), begin=24, end=24),
                    "b": entry(begin=24, end=48),
                    "g": entry(shape=(0,), begin=48, end=48),
                },
                FLOATS + FLOATS[::-1],
            ),
            {"e": b"", "a": FLOATS, "f": b"", "b": FLOATS[::-1], "g": b""},
        ),
        "tensors in another order than their data": (
            safetensors({"b": entry(begin=24, end=48), "a": entry()}, FLOATS + FLOATS[::-1]),
            {"a": FLOATS, "b": FLOATS[::-1]},
        ),
        "data that isn't aligned": (
            safetensors({"u": entry("U8", (1,), 0, 1), "a": entry(begin=1, end=25)}, b"x" + FLOATS),
            {"u": b"x", "a": FLOATS},
        ),
        "a header of odd length": (safetensors(json.dumps(plain).replace(" ", "") + " ", FLOATS), one),
        "no metadata": (safetensors(plain, FLOATS), one),
        "metadata of null": (safetensors({"__metadata__": None, **plain}, FLOATS), one),
        "metadata that is empty": (safetensors({"__metadata__": {}, **plain}, FLOATS), one),
        "metadata at the end": (safetensors({**plain, "__metadata__": {"format": "pt"}}, FLOATS), one),
        "metadata with braces": (safetensors({"__metadata__": {"a": '{"b": {}}'}, **plain}, FLOATS), one),
        "a megabyte of metadata": (safetensors({"__metadata__": {"a": "x" * 1_000_000}, **plain}, FLOATS), one),
        "white space in the header": (safetensors(json.dumps(plain, indent=9), FLOATS), one),
        "a megabyte of padding": (safetensors(json.dumps(plain) + " " * 1_000_000, FLOATS), one),
        "fields in another order": (
            safetensors('{"a":{"data_offsets":[0,24],"shape":[2,3],"dtype":"F32"}}', FLOATS),
            one,
        ),
        "a name in escapes": (safetensors(json.dumps(plain).replace('"a"', '"\\u0061"'), FLOATS), one),
        "NaN and Infinity as values": (
            safetensors(plain, struct.pack("<6f", *[float("nan"), float("inf"), float("-inf")] * 2)),
            {"a": struct.pack("<6f", *[float("nan"), float("inf"), float("-inf")] * 2)},
        ),
    }
    names = {
        "a name in Chinese": "模型.层.0.权重",
        "a name of emoji": "🦙.🧠.weight",
        "a name with an escaped pair of surrogates": "\U0001f999",
        "a name of 60,000 characters": "k" * 60_000,
        "a name of 200 levels": ".".join("abcdefghij" * 20),
        "a name with blanks": " a b ",
        "a name like a path": "../../etc/passwd",
        "a name like a format": "{0.__class__}%s%n${HOME}",
        "a name like HTML": "<script>alert(1)</script>",
        "a name like Markdown": "[a](javascript:b)|`c`",
        "a name with a line break": "a\nb",
        "a name that commands the terminal": "\x1b[2J\x1b]0;owned\x07",
        "a name written from right to left": "\u202eabc",
        "a name with quotes and backslashes": '"\\',
        "a name like a field": "dtype",
        "a name like metadata": "__metadata__ ",
        "a name with a zero": "a\0b",
    }
    for what, key in names.items():
        odd[what] = (tensors(key), {key: FLOATS})
    for what, (content, holds) in odd.items():
        yield Case(KIND, what, {FILE: content}, holds=holds)
    yield Case(KIND, "an empty name", {FILE: tensors("")}, words=INSPECT)
    yield Case(KIND, "names that are dots", {FILE: tensors(".", "..", "a..b", ".a", "a.")}, words=INSPECT)
    yield Case(KIND, "no tensors", {FILE: safetensors("{}")}, says=("0 tensors",), words=INSPECT)
    yield Case(
        KIND, "50,000 tensors", lambda root: write(root / FILE, _many(50_000)), says=("50,000 tensors",), words=INSPECT
    )
    yield Case(
        KIND,
        "50,000 tensors in 50,000 folders",
        lambda root: write(root / FILE, _many(50_000).replace(b"model.layers.", b"model_layers-")),
        says=("50,000 tensors",),
        words=INSPECT,
    )
    terminal = ("\x1b[2J\x1b]0;owned\x07", "\u202eabc", "a\nb\rc", "\x9b31m", "<script>alert(1)</script>")
    yield Case(KIND, "names that command the terminal, shown", {FILE: tensors(*terminal)}, words=INSPECT)
    shown = safetensors({"__metadata__": dict.fromkeys(terminal, "\x1b[2J")} | {"a": entry()}, FLOATS)
    yield Case(KIND, "metadata that commands the terminal, shown", {FILE: shown}, words=INSPECT)
    machine = ("inspect", "--json", "@in")
    yield Case(KIND, "names that command the terminal, as JSON", {FILE: tensors(*terminal)}, words=machine)


CASES: Final = (*_refused(), *_accepted())
