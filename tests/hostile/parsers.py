"""The parsers that read what strangers wrote, and how to feed them: each must end in a value or a documented error."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Final

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from converters.dims import parse_expression
from converters.errors import CheckpointError
from converters.layout import parse_layout
from converters.pattern import parse_kind, parse_pattern
from converters.spec_file import parse_spec
from converters.storage.dcp_metadata import parse_metadata
from converters.storage.npy_header import NpyHeaderError, header_nbytes, parse_npy_header
from converters.storage.safetensors_header import parse_header, parse_length
from converters.storage.safetensors_index import parse_index
from converters.storage.strict_json import StrictJsonError, parse_object
from converters.storage.torch_archive import read_zip_header
from converters.storage.torch_legacy import read_legacy_header
from converters.storage.torch_zip import read_directory
from converters.yaml_nodes import load_yaml
from tests.hostile.build import FLOATS, entry, legacy_file, npy, npz, safetensors, torch_file, torch_file_of
from tests.hostile.cases_dcp import HALVES, one
from tests.hostile.cases_specs import HEAD
from tests.pickles import Raw, call, name, pickled, storage, tensor

Feed = Callable[[bytes], object]


def _reader(content: bytes) -> Callable[[int, int], bytes]:
    """Reads a file in memory as files are read: what lies outside of it is cut off."""

    def read(position: int, nbytes: int) -> bytes:
        if position < 0 or nbytes < 0 or position + nbytes > len(content):
            raise CheckpointError("the file was truncated while it was read", "file")
        return content[position : position + nbytes]

    return read


def _safetensors(content: bytes) -> object:
    length = parse_length(content[:512], len(content), "file")
    return parse_header(content[8 : 8 + length], len(content), "file")


def _npy(content: bytes) -> object:
    try:
        return parse_npy_header(content[: header_nbytes(content[:12])])
    except NpyHeaderError as error:
        raise CheckpointError(str(error), "file", error.hint) from None


def _json(content: bytes) -> object:
    try:
        return parse_object(content)
    except StrictJsonError as error:
        raise CheckpointError(str(error), "file") from None


def _text(parse: Callable[[str], object]) -> Feed:
    return lambda content: parse(content.decode("utf-8", "replace"))


SPEC: Final = (
    HEAD.encode()
    + b"""\
dims: {L: config.num_layers, H: config.heads or 4}
placeholders: {i: 0..L}
rename: {"a.{i}.{p:weight|bias}": "b.{i+1}.{p}"}
rules:
  - from: {q: "q.{i}", k: "k.{i}"}
    to: {copy: ["qk.{i}", "other.{i}"]}
    layout: {q: (H D) i, k: D i, to: "(q: H D | k: D) i"}
    when: not config.tied and i % 2 == 0
  - {fill: zeros, to: z, shape: [config.a or 3, 1], dtype: F32}
drop: {"*.inv_freq": computed}
config: {target: {derive: {x: H // 2}}}
"""
)

FEEDS: Final[dict[str, tuple[Feed, tuple[bytes, ...]]]] = {
    "safetensors": (
        _safetensors,
        (safetensors({"__metadata__": {"f": "pt"}, "a": entry(), "b": entry("U8", (0,), 24, 24)}, FLOATS),),
    ),
    "index": (
        lambda content: parse_index(content, "file"),
        (json.dumps({"metadata": {"total_size": 24}, "weight_map": {"a": "a.safetensors"}}).encode(),),
    ),
    "json": (_json, (b'{"a": [1, 2.5, true, null, "\\ud83e\\udd99", {"b": -0.0}]}',)),
    "zip": (
        lambda content: read_directory(_reader(content), len(content), "file"),
        (torch_file({"a": tensor()}), npz(a=npy(), b=npy())),
    ),
    "torch": (
        lambda content: read_zip_header(_reader(content), len(content), "file"),
        (torch_file({"a": tensor(), "b": {"c": call("torch._utils", "_rebuild_parameter", tensor(), True, ())}}),),  # noqa: FBT003
    ),
    "pickle": (
        lambda content: read_zip_header(_reader(file := _with_pickle(content)), len(file), "file"),
        (pickled({"a": tensor(), "b": [storage(), (1, 2.5, None, True), Raw(b"\x8f")]}),),
    ),
    "old torch": (
        lambda content: read_legacy_header(_reader(content), len(content), "file"),
        (legacy_file({"a": tensor(), "b": 1}),),
    ),
    "npy": (_npy, (npy(), npy(version=(3, 0), fortran_order="True", shape="(6,)"))),
    "distributed": (
        lambda content: parse_metadata(content, "file"),
        (one(), one(chunks=HALVES), pickled(name("torch", "float32"))),
    ),
    "yaml": (lambda content: load_yaml(content, "file"), (SPEC, b"a: &x [1, 'b', \"\\u00e9\"]\nc: {d: *x}\n")),
    "spec": (lambda content: parse_spec(content, "file"), (SPEC,)),
    "layout": (_text(parse_layout), (b"(q: H D | k: G D | _: 3) ... (a 2)", b"e (g: f | u: f) h")),
    "pattern": (_text(parse_pattern), (b"a.{i+1}.b{p:weight|bias}.{e:0..E}", b"{x//3}.{x%3}.{rest:path}")),
    "kind": (_text(parse_kind), (b"0..L-1", b"weight|bias", b"config.layers", b"weight&bias")),
    "expression": (
        _text(parse_expression),
        (b"config.a.b[i] or int(H // 2) * -3.5 % 7", b"not ('x' in config.y) and a != \"b\""),
    ),
}
"""For each parser: what takes bytes, and right input to start from."""

JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)
_HEADERS: Final = st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__", "\x1b"]),
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "U8", "F4", "x"]) | JSON,
            "shape": st.lists(st.integers(-1, 2**64), max_size=4) | JSON,
            "data_offsets": st.lists(st.integers(-1, 2**64), max_size=3) | JSON,
        }
    )
    | JSON,
    max_size=4,
)
_OPCODES: Final = st.sampled_from(
    [
        bytes([code])
        for code in b"().012NJKMGXUTBC]}lastudebRQcqrhj\x80\x81\x85\x86\x87\x88\x89\x8a\x8c\x8f\x90\x91\x93\x94\x95"
    ]
    + [
        bytes(each)
        for each in (
            name("torch", "FloatStorage"),
            name("torch._utils", "_rebuild_tensor_v2"),
            name("collections", "OrderedDict"),
            name("torch", "Size"),
            name("posix", "system"),
            storage(),
            tensor(),
            Raw(b"X\1\0\0\0a"),
            Raw(b"K\1"),
            Raw(b"q\1"),
            Raw(b"h\1"),
        )
    ]
)
_TOP: Final = (
    *("weightmap", "source", "target", "dims", "placeholders", "rename"),
    *("rules", "drop", "config", "notes", "proof", "models"),
)
_WORDS: Final = {
    "layout": "( ) | : ... _ a q H 2 1 0 99999999999999999999",
    "pattern": "{ } . a i i+1 i//3 i%3 L-1-i :path :name :0..L : weight|bias",
    "kind": "0 .. L int name path a|b config. & | . [ ]",
    "expression": "( ) [ ] + - * / // % or and not in == < > config. a . 'x' 1 2.5 1e9 null true int ,",
    "yaml": "\n : - [ ] { } , & * ! | > ' \" # a b 1 ~ no ... --- << %TAG\t",
}


def inputs(parser: str) -> SearchStrategy[bytes]:
    """What to feed a parser: anything; right input with bytes changed; and input that is nearly well-formed."""
    _, right = FEEDS[parser]
    found = st.binary(max_size=200) | st.sampled_from(right).flatmap(_changed)
    if parser in {"safetensors", "index", "json"}:
        found |= JSON.map(lambda value: json.dumps(value).encode())
    if parser == "safetensors":
        found |= st.builds(safetensors, _HEADERS, st.binary(max_size=50))
    if parser == "index":
        files = st.dictionaries(st.text(max_size=3), st.text(max_size=9) | JSON, max_size=4)
        found |= st.builds(
            lambda files, metadata: json.dumps({"weight_map": files, "metadata": metadata}).encode(), files, JSON
        )
    if parser in {"pickle", "distributed"}:
        found |= st.lists(_OPCODES, max_size=60).map(lambda parts: b"\x80\2" + b"".join(parts) + b".")
    words = _WORDS.get("yaml" if parser == "spec" else parser)
    if words is not None:
        found |= st.lists(st.sampled_from(words.split(" ")), max_size=40).map(lambda parts: " ".join(parts).encode())
        found |= st.lists(st.sampled_from(words.split(" ")), max_size=40).map(lambda parts: "".join(parts).encode())
        found |= st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))
    if parser == "spec":
        found |= JSON.map(lambda value: json.dumps({"weightmap": 1, "source": value, "rules": [value]}).encode())
        found |= st.dictionaries(
            st.sampled_from(_TOP),
            JSON | st.just({"layout": "a"}) | st.just(1),
        ).map(lambda value: json.dumps(value).encode())
    return found


def _changed(right: bytes) -> SearchStrategy[bytes]:
    """Right input with a few bytes replaced, removed, added or repeated, or cut off."""
    places = st.integers(0, len(right))
    edits = st.tuples(
        places, places, st.binary(max_size=6) | st.sampled_from([b"\xff" * 4, b"\0" * 8, b"-", b"{", b"1e9"])
    )
    return st.lists(edits, min_size=1, max_size=4).map(lambda changes: _edit(right, changes))


def mutated(parser: str, random: Random) -> bytes:
    """Right input with a few bytes changed, much faster than hypothesis makes it."""
    right = random.choice(FEEDS[parser][1])
    changes = [
        (random.randint(0, len(right)), random.randint(0, len(right)), random.randbytes(random.randint(0, 4)))
        for _ in range(random.randint(1, 4))
    ]
    return _edit(right, changes)


def _edit(right: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for start, stop, new in changes:
        # Mostly a byte or two, sometimes all between two places.
        end = stop if start % 5 == 0 and stop > start else start + len(new) % 3
        right = right[:start] + new + right[end:]
    return right


def _with_pickle(content: bytes) -> bytes:
    return torch_file_of(content)
