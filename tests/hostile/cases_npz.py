"""Archives of numpy arrays: headers that would be evaluated elsewhere, objects, and what only looks odd."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.hostile.build import FLOATS, Member, archive, npy, npz, write
from tests.hostile.case import CHECKPOINT, MARKER, Case
from tests.hostile.payloads import run_command
from tests.pickles import pickled

KIND: Final = "npz"
FILE: Final = "in/weights.npz"

HEADERS: Final[dict[str, tuple[bytes, str]]] = {
    "no magic": (b"NUMPY", "no numpy array"),
    "only its magic": (b"\x93NUMPY", "cut off"),
    "version 9.9": (npy(version=(9, 9)), "version 9.9"),
    "a header of 4 GB": (b"\x93NUMPY\2\0\xff\xff\xff\xff{", "at most 10,000"),
    "a header beyond its end": (b"\x93NUMPY\1\0\xff\x0f{", "cut off"),
    "an empty header": (npy(""), "unexpected end"),
    "a list": (npy("[]"), "unexpected ["),
    "nested 5,000 times": (npy("(" * 5000), "unexpected ("),
    "a call": (npy(shape="__import__('os').system('true')"), "not valid"),
    "an expression": (npy(shape="(2*3,)"), "unexpected *"),
    "an unknown key": (npy(strides="(1,)"), "'strides' is none of"),
    "a key twice": (npy("{'descr': '<f4', 'descr': '<f8'}"), "'descr' occurs twice"),
    "a key that is missing": (npy("{'descr': '<f4', 'fortran_order': False}"), "shape missing"),
    "text behind it": (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)} x"), "unexpected x"),
    "a size of -1": (npy(shape="(-1, 3)"), "unexpected -"),
    "a size of 2.0": (npy(shape="(2.0, 3)"), "not valid"),
    "a size of 1,000 digits": (npy(shape=f"({'9' * 1000},)"), "unexpected 999"),
    "a size with a leading zero": (npy(shape="(02, 3)"), "unexpected 02"),
    "a shape beyond memory": (npy(shape="(9223372036854775807, 9223372036854775807)"), "larger than any memory"),
    "a shape of 64 PB": (npy(shape="(16000000000000000,)"), "bytes"),
    "100 dimensions": (npy(shape="(" + "1, " * 100 + ")"), "100 dimensions"),
    "a number as shape": (npy(shape="(6)"), "not valid"),
    "fortran_order 1": (npy(fortran_order="1"), "unexpected 1"),
    "objects": (npy(descr="'|O'", shape="(1,)", data=b"x"), "could run code"),
    "text": (npy(descr="'<U8'"), "holds text"),
    "dates": (npy(descr="'<M8[s]'"), "holds dates"),
    "records": (npy(descr="[('a', '<f4')]"), "several fields"),
    "big-endian": (npy(descr="'>f4'"), "big-endian"),
    "an unknown dtype": (npy(descr="'<f3'"), "unsupported dtype '<f3'"),
    "complex numbers of 128 bits": (npy(descr="'<c16'"), "unsupported dtype"),
    "a dtype that commands the terminal": (
        npy("{'descr': \"\x9b2J\", 'fortran_order': False, 'shape': ()}"),
        "\\x9b2J",
    ),
    "an escape in text": (npy(descr=r"'\x3cf4'"), "not valid"),
    "data missing": (npy(data=FLOATS[:-1]), "bytes"),
    "data appended": (npy(data=FLOATS + b"x"), "bytes"),
    "no data": (npy(data=b""), "bytes"),
}


def _refused() -> Iterator[Case]:
    for what, (array, says) in HEADERS.items():
        yield Case(KIND, what, {FILE: npz(a=array)}, CHECKPOINT, ("weights.npz", says))
    yield Case(KIND, "objects that run os.system", _payload, CHECKPOINT, ("weights.npz", "could run code"))
    bomb = Member("a.npy", npy(shape="(100000000,)", descr="'|u1'", data=bytes(100_000_000)), method=8)
    yield Case(
        KIND, "100 MB of zeros in 100 kB", {FILE: archive(bomb)}, CHECKPOINT, ("more than 100 times",), large=True
    )
    liar = Member("a.npy", npy(), method=8, nbytes=4 * 10**9, local_nbytes=4 * 10**9)
    yield Case(KIND, "4 GB in 100 bytes, it says", {FILE: archive(liar)}, CHECKPOINT, ("weights.npz",))
    short = Member("a.npy", npy(), method=8, nbytes=50, local_nbytes=50)
    yield Case(KIND, "more than it says", {FILE: archive(short)}, CHECKPOINT, ("weights.npz",))
    yield Case(KIND, "a wrong CRC", {FILE: archive(Member("a.npy", npy(), crc=1))}, CHECKPOINT, ("CRC",))
    squeezed = Member("a.npy", npy(), method=8, crc=1)
    yield Case(KIND, "a wrong CRC of what is compressed", {FILE: archive(squeezed)}, CHECKPOINT, ("CRC",))
    yield Case(KIND, "an array twice", {FILE: archive(*[Member("a.npy", npy())] * 2)}, CHECKPOINT, ("have this name",))
    yield Case(KIND, "something else in it", {FILE: archive(Member("a.txt", b"x"))}, CHECKPOINT, ("weights.npz",))
    yield Case(KIND, "nothing in it", {FILE: archive()}, CHECKPOINT, ("weights.npz",))
    yield Case(KIND, "a lone array", {"in/weights.npz": npy()}, CHECKPOINT, ("a numpy array",))


def _payload(root: Path) -> None:
    array = npy(descr="'|O'", shape="(1,)", data=pickled(run_command(root)))
    write(root / FILE, npz(a=array))
    assert not (root / MARKER).exists()


def _accepted() -> Iterator[Case]:
    flipped = struct.pack("<6f", *(struct.unpack("<6f", FLOATS)[place] for place in (0, 2, 4, 1, 3, 5)))
    files: dict[str, tuple[bytes, dict[str, bytes]]] = {
        "a plain array": (npz(a=npy()), {"a": FLOATS}),
        "version 2.0": (npz(a=npy(version=(2, 0))), {"a": FLOATS}),
        "version 3.0": (npz(a=npy(version=(3, 0))), {"a": FLOATS}),
        "no dimension": (npz(a=npy(shape="()", data=FLOATS[:4])), {"a": FLOATS[:4]}),
        "an empty array": (npz(a=npy(shape="(0, 3)", data=b"")), {"a": b""}),
        "Fortran's order": (npz(a=npy(fortran_order="True")), {"a": flipped}),
        "Python 2's numbers": (npz(a=npy(shape="(2L, 3L)")), {"a": FLOATS}),
        "numbers of two bytes without a name": (npz(a=npy(descr="'|V2'", shape="(12,)")), {"a": FLOATS}),
        "compressed": (archive(Member("a.npy", npy(), method=8)), {"a": FLOATS}),
        "a name in Chinese": (archive(Member("模型.npy", npy(), flags=0x0800)), {"模型": FLOATS}),
        "names with slashes": (archive(Member("../a/b.npy", npy())), {"../a/b": FLOATS}),
    }
    for what, (content, holds) in files.items():
        yield Case(KIND, what, {FILE: content}, holds=holds)


CASES: Final = (*_refused(), *_accepted())
