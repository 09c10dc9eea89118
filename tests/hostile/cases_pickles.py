"""Files of torch.save: pickles that want to run something, or say what can't be."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.hostile.build import FLOATS, LEGACY_MAGIC, legacy_file, torch_file, torch_file_of, write
from tests.hostile.case import CHECKPOINT, Case
from tests.hostile.payloads import OLD_WAYS, PAYLOADS, run_command
from tests.pickles import Raw, call, name, opcodes, pickled, storage, tensor

KIND: Final = "pickle"
FILE: Final = "in/pytorch_model.bin"
LOCAL: Final = "pytorch_model.bin"


BROKEN: Final[dict[str, tuple[bytes, str]]] = {
    "empty": (b"", "the pickle is cut off"),
    "only a protocol": (b"\x80\x02", "the pickle is cut off"),
    "of protocol 255": (b"\x80\xff.", "of protocol 255"),
    "text, of protocol 0": (pickle.dumps({"a": 1}, protocol=0), "which torch never writes"),
    "nothing on its stack": (b"\x80\x02.", "takes what it never made"),
    "a mark that was never set": (b"\x80\x02t.", "a mark that it never set"),
    "a value that was never kept": (b"\x80\x02h\x07.", "recalls what it never kept"),
    "an unknown opcode": (b"\x80\x02\xff.", "the opcode 0xff"),
    "a text longer than it": (b"\x80\x02X\xff\xff\xff\x7fabc.", "the pickle is cut off"),
    "a text of 2**63 bytes": (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.", "the pickle is cut off"),
    "bytes of 2**64": (b"\x80\x04\x8e" + b"\xff" * 8 + b".", "the pickle is cut off"),
    "a number of a gigabyte": (b"\x80\x02\x8b\0\0\0\x40.", "a number of 1,073,741,824 bytes"),
    "a number of minus one byte": (b"\x80\x02\x8b\xff\xff\xff\xff.", "a number of"),
    "text that is no UTF-8": (b"\x80\x02X\x01\0\0\0\xff.", "text that is not UTF-8"),
    "a key twice": (pickled(Raw(b"}(" + opcodes("a") + b"N" + opcodes("a") + b"Nu")), "a key twice"),
    "a list as a key": (pickled(Raw(b"}]Ns")), "neither text nor a number"),
    "a list that holds itself": (b"\x80\x02]q\0h\0a.", "expected a state dict"),
    "a dict that holds itself": (b"\x80\x02}q\0" + opcodes("model") + b"h\0s.", "nests deeper than 64"),
    "tuples in tuples, doubled 60 times": (b"\x80\x02N" + b"2\x86" * 60 + b".", "expected a state dict"),
    "a key of doubled tuples": (b"\x80\x02}N" + b"2\x86" * 60 + b"Ns.", "neither text nor a number"),
    "memo slots up to 2**32": (b"\x80\x02" + b"Nr\xff\xff\xff\xff" * 1000 + b".", "expected a state dict"),
    "a million marks": (b"\x80\x02" + b"(" * 1_000_000 + b".", "takes what it never made"),
}


def _tensor_faults() -> dict[str, tuple[object, str]]:
    return {
        "past the end of its storage": (tensor(shape=(2, 4)), "reaches past the end of its storage"),
        "an offset past the end": (tensor(offset=1), "reaches past the end of its storage"),
        "an offset of 2**62": (tensor(offset=2**62), "reaches past the end of its storage"),
        "an offset of 2**400": (tensor(offset=2**400), "larger than any memory"),
        "strides of 2**40": (tensor(strides=(2**40, 1)), "reaches past the end of its storage"),
        "strides of zero, 4 TiB": (tensor(shape=(2**40,), strides=(0,)), "repeat the same bytes more than"),
        "a negative stride": (tensor(strides=(-3, 1)), "none of them negative"),
        "a negative size": (tensor(shape=(-2, -3)), "none of them negative"),
        "a negative offset": (tensor(offset=-1), "needs a storage, and an offset in it"),
        "true as its offset": (tensor(offset=True), "needs a storage, and an offset in it"),
        "a size of 2.0": (tensor(shape=(2.0, 3)), "must be whole numbers"),
        "fewer strides than sizes": (tensor(strides=(1,)), "2 sizes, but 1 strides"),
        "100 dimensions": (tensor(shape=(1,) * 100, strides=(1,) * 100), "100 dimensions"),
        "sizes of 2**400": (tensor(shape=(2**400, 0)), "larger than any memory"),
        "a storage that is not there": (tensor(key="7"), "storage 7 is not in the file"),
        "a storage larger than its data": (tensor(size=7), "should have 28 bytes, but the file has 24"),
        "a storage of 2**62": (tensor(size=2**62), "but the file has 24"),
        "a storage of -1": (tensor(size=-1), "a persistent id is no storage"),
        "a storage of two sizes": (
            {"a": tensor(), "b": tensor(size=5, shape=(5,), strides=(1,))},
            "two sizes or dtypes",
        ),
        "a key with a path": (tensor(key="../../../etc/passwd"), "is not in the file"),
        "an unknown storage": (tensor(kind="EvilStorage"), "torch.EvilStorage"),
        "quantized": (tensor(kind="QInt8Storage"), "not supported"),
        "complex numbers of 128 bits": (
            tensor(kind="ComplexDoubleStorage", size=1, shape=(1,), strides=(1,)),
            "not supported",
        ),
        "sparse": (call("torch._utils", "_rebuild_sparse_tensor", 0, ()), "a sparse tensor"),
        "on the meta device": (call("torch._utils", "_rebuild_meta_tensor_no_storage", 0), "without data"),
        "too many arguments": (call("torch._utils", "_rebuild_tensor_v2", *range(30)), "with 30 arguments"),
        "text in place of its storage": (
            call("torch._utils", "_rebuild_tensor", "0", 0, (6,), (1,)),
            "needs a storage",
        ),
        "a parameter of nothing": (call("torch._utils", "_rebuild_parameter", None, True, ()), "holds no tensor"),  # noqa: FBT003 - requires_grad
    }


STATE_DICTS: Final[dict[str, tuple[object, str]]] = {
    "a single tensor": (tensor(), "expected a state dict, got a single tensor"),
    "nothing": (None, "expected a state dict"),
    "an empty dict": ({}, "expected a state dict, got a dict without tensors"),
    "a list of tensors": ([tensor()], "expected a state dict, got a list"),
    "two state dicts": ({"model": {"a": tensor()}, "state_dict": {"a": tensor()}}, "several state dicts"),
    "names that collide once joined": (
        {"a.b": tensor(), "a": {"b": tensor()}},
        "two of its tensors would be called a.b",
    ),
    "keys that command the terminal": ({"\x1b[2J": 1}, r"\x1b[2J"),
}


def _amplified() -> dict[str, tuple[bytes, str]]:
    """A few bytes that stand for a lot of work, since the pickle refers to the same large value again and again."""
    list_of = b"]q\2(" + b"h\1" * 50_000 + b"e0"
    pair = b"K\1K\2\x86q\1"
    ints = b"".join(opcodes(factor * (2**61 - 1)) + b"N" for factor in range(1, 20_001))
    keys = b"".join(b"U\6%06dh\2" % key for key in range(5000))
    state_dict = Raw(b"Nq\x010" + list_of + b"}(" + opcodes("a") + tensor() + keys + b"u")
    lists = b"".join(b"U\6%06d]h\2a" % key for key in range(5000))
    in_lists = Raw(b"Nq\x010" + list_of + b"}(" + opcodes("a") + tensor() + lists + b"u")
    long_shape = b"(" + b"K\1" * 50_000 + b"tq\x010" + storage() + b"q\x020"
    rebuild = name("torch._utils", "_rebuild_tensor") + b"q\x030"
    one = b"h\3(h\2K\0h\1h\1tR0"
    return {
        "5,000 dicts of the same long list": (
            b"\x80\2"
            + pair
            + b"0"
            + list_of
            + name("collections", "OrderedDict")
            + b"q\x030"
            + b"h\3h\2\x85R0" * 5000
            + b"N.",
            "LOCAL",
        ),
        "5,000 shapes of the same long list": (
            b"\x80\2K\1q\x010" + list_of + name("torch", "Size") + b"q\x030(" + b"h\3h\2\x85R" * 5000 + b"lN.",
            "LOCAL",
        ),
        "5,000 tensors of the same long shape": (b"\x80\2" + long_shape + rebuild + one * 5000 + b"N.", "LOCAL"),
        "5,000 dicts with the same long key": (
            b"\x80\2K\1q\x010(" + b"h\1" * 50_000 + b"tq\x020" + b"}h\2Ns0" * 5000 + b"N.",
            "LOCAL",
        ),
        "20,000 keys with the same hash": (b"\x80\2}(" + ints + b"u.", "LOCAL"),
        "5,000 names for the same long list": (pickled(state_dict), ""),
        "5,000 lists of the same long list": (pickled(in_lists), ""),
    }


def _refused() -> Iterator[Case]:
    for what, (payload, says) in PAYLOADS.items():
        yield Case(KIND, f"runs {what}", _with_payload(payload), CHECKPOINT, (LOCAL, says, "nothing was run"))
    for what, payload in OLD_WAYS.items():
        yield Case(KIND, f"opcode {what}", _with_payload(payload), CHECKPOINT, (LOCAL, "pickle"))
    yield Case(
        KIND,
        "runs os.system, in a file of old",
        lambda root: write(root / FILE, legacy_file({"a": tensor(), "b": run_command(root)})),
        CHECKPOINT,
        (LOCAL, "posix.system", "nothing was run"),
    )
    yield Case(
        KIND,
        "runs os.system where a file of old tells its version",
        lambda root: write(root / FILE, legacy_file({"a": tensor()}, version=pickled(run_command(root)))),
        CHECKPOINT,
        (LOCAL, "posix.system", "nothing was run"),
    )
    yield Case(
        KIND,
        "a bare pickle that runs os.system",
        lambda root: write(root / FILE, pickled(run_command(root))),
        CHECKPOINT,
        (LOCAL, "torch.save did not write this file"),
    )
    yield Case(
        KIND,
        "twenty forbidden names at once",
        {FILE: torch_file([name("evil", f"f{place}") for place in range(40)])},
        CHECKPOINT,
        ("20 problems", "evil.f0", "evil.f19"),
    )
    for what, (data, says) in BROKEN.items():
        yield Case(KIND, what, {FILE: torch_file_of(data)}, CHECKPOINT, (LOCAL, says))
    for what, (value, says) in _tensor_faults().items():
        whole = value if isinstance(value, dict) else {"a": value}
        yield Case(KIND, f"tensor: {what}", {FILE: torch_file(whole)}, CHECKPOINT, (LOCAL, says))
    for what, (value, says) in STATE_DICTS.items():
        yield Case(KIND, f"holds {what}", {FILE: torch_file(value)}, CHECKPOINT, (LOCAL, says))
    for what, (data, says) in _amplified().items():
        if says:
            yield Case(KIND, what, {FILE: torch_file_of(data)}, CHECKPOINT, (LOCAL,))
        else:
            yield Case(KIND, what, {FILE: torch_file_of(data)}, holds={"a": FLOATS})
    deep = Raw((b"}" + opcodes("x")) * 500 + opcodes({"a": tensor()}) + b"s" * 500)
    yield Case(KIND, "dicts nested 500 times", {FILE: torch_file(deep)}, CHECKPOINT, (LOCAL, "nests deeper than 64"))
    deep = Raw((b"}" + opcodes("x")) * 100_000 + b"N" + b"s" * 100_000)
    yield Case(
        KIND, "dicts nested 100,000 times", {FILE: torch_file(deep)}, CHECKPOINT, (LOCAL, "nests deeper than 64")
    )
    yield from _refused_of_old()


def _refused_of_old() -> Iterator[Case]:
    good = {"a": tensor()}
    files: dict[str, tuple[bytes, str]] = {
        "cut off after its magic number": (LEGACY_MAGIC, "don't end within"),
        "cut off in its data": (legacy_file(good)[:-1], "is not there"),
        "bytes at its end": (legacy_file(good) + b"x", "1 bytes at its end"),
        "another size before its data": (legacy_file(good, data=struct.pack("<Q", 5) + FLOATS), "has 5"),
        "a storage twice": (legacy_file(good, ("0", "0"), (struct.pack("<Q", 6) + FLOATS) * 2), "is not there"),
        "no keys": (legacy_file(good, (), b""), "is not in the file"),
        "keys that are numbers": (legacy_file(good, (1,)), "doesn't say which storages"),
        "big-endian": (legacy_file(good, system={"little_endian": False}), "not little-endian"),
    }
    for what, (content, says) in files.items():
        yield Case(KIND, f"of old: {what}", {FILE: content}, CHECKPOINT, (LOCAL, says))


def _with_payload(payload: Callable[[Path], Raw]) -> Callable[[Path], None]:
    return lambda root: write(root / FILE, torch_file({"a": tensor(), "b": payload(root)}))


def _accepted() -> Iterator[Case]:
    parameter = call("torch._utils", "_rebuild_parameter", tensor(), True, call("collections", "OrderedDict"))  # noqa: FBT003 - requires_grad
    transposed = struct.pack("<6f", *(struct.unpack("<6f", FLOATS)[place] for place in (0, 3, 1, 4, 2, 5)))
    ordered = Raw(call("collections", "OrderedDict") + b"(" + opcodes("a") + tensor() + b"u")
    files: dict[str, tuple[bytes, dict[str, bytes]]] = {
        "a plain state dict": (torch_file({"a": tensor()}), {"a": FLOATS}),
        "an OrderedDict with attributes": (torch_file(Raw(ordered + opcodes({"_metadata": {}}) + b"b")), {"a": FLOATS}),
        "a parameter": (torch_file({"a": parameter}), {"a": FLOATS}),
        "no dimension": (torch_file({"a": tensor((), (), 5)}), {"a": FLOATS[20:]}),
        "an empty tensor": (torch_file({"a": tensor((0, 3), (3, 1)), "b": tensor()}), {"a": b"", "b": FLOATS}),
        "an empty tensor far away": (
            torch_file({"a": tensor((0,), (2**40,), 5), "b": tensor()}),
            {"a": b"", "b": FLOATS},
        ),
        "a transposed view": (torch_file({"a": tensor((3, 2), (1, 3))}), {"a": transposed}),
        "a view that repeats": (torch_file({"a": tensor((3, 1), (0, 1))}), {"a": FLOATS[:4] * 3}),
        "two tensors on one storage": (
            torch_file({"a": tensor(), "b": tensor((3,), (1,), 3)}),
            {"a": FLOATS, "b": FLOATS[12:]},
        ),
        "a wrapper, and training state": (
            torch_file({"state_dict": {"a": tensor()}, "epoch": 3, "optimizer": {"m": tensor()}}),
            {"a": FLOATS},
        ),
        "a name with everything in it": (torch_file({"é\n\x1b模": tensor()}), {"é\n\x1b模": FLOATS}),
        "numbers as names": (torch_file({0: tensor(), 1: tensor()}), {"0": FLOATS, "1": FLOATS}),
        "a pickle of protocol 4": (
            torch_file_of(b"\x80\4\x95" + struct.pack("<Q", 9999) + opcodes({"a": tensor()}) + b"."),
            {"a": FLOATS},
        ),
        "a storage without a tensor": (
            torch_file({"a": tensor()}, {"0": FLOATS, "1": b"unused"}),
            {"a": FLOATS},
        ),
        "a file of old": (legacy_file({"a": tensor()}), {"a": FLOATS}),
    }
    for what, (content, holds) in files.items():
        yield Case(KIND, what, {FILE: content}, holds=holds)
    many = {f"layers.{place}.weight": tensor() for place in range(5000)}
    yield Case(KIND, "5,000 tensors", {FILE: torch_file(many)}, holds=dict.fromkeys(many, FLOATS))


CASES: Final = (*_refused(), *_accepted())
