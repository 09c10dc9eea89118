from __future__ import annotations

import builtins
import os
import pickle
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from converters.storage import torch_pickle
from converters.storage.pickle_stack import PickleCutOffError
from converters.storage.torch_descriptions import Other, PickleFault, Tensor
from converters.storage.torch_globals import CALLS
from converters.storage.torch_pickle import read_pickle
from tests.pickles import Raw, call, pickled, tensor
from tests.storage.torch_files import refusal, torch_file

PLAIN = {
    "none": None,
    "flags": [True, False],
    "numbers": [0, 1, 255, 256, 65535, 65536, -1, 2**31, -(2**40), 2**100, 1.5, -0.0],
    "text": ["", "a", "ключ", "x" * 300, b"bytes", b"y" * 300],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "dicts": {"empty": {}, "one": {"a": 1}, 3: 4, 2.5: 5, ("a", "b"): 6, None: 7},
    "many": list(range(3000)),
    "ordered": OrderedDict(b=1, a=2),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("pickler", [pickle.dumps, pickle._dumps])  # type: ignore[attr-defined] # the one in Python
def test_plain_values_are_what_pickle_makes_of_them(protocol: int, pickler: object) -> None:
    plain = PLAIN if protocol > 2 else {**PLAIN, "text": ["", "a", "ключ"]}  # bytes are a call in protocol 2
    data = pickler(plain, protocol)  # type: ignore[operator]
    unpickled = read_pickle(data + b"more")
    assert unpickled.value == plain
    assert unpickled.end == len(data)
    assert not unpickled.forbidden
    assert not unpickled.storages


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
        lambda inner: (
            st.lists(inner)
            | st.lists(inner).map(tuple)
            | st.dictionaries(st.text() | st.integers(-(2**63), 2**63), inner)
        ),
        max_leaves=20,
    ),
    st.sampled_from([3, 4, 5]),
)
def test_any_plain_value_is_what_pickle_makes_of_it(value: object, protocol: int) -> None:
    assert read_pickle(pickle.dumps(value, protocol)).value == value


def test_values_of_no_interest_are_neither_made_nor_refused() -> None:
    for value in (Counter("aab"), {1, 2}, frozenset([3]), 2 + 3j, torch.device("cpu"), torch.strided):
        assert isinstance(read_pickle(pickle.dumps(value, 2)).value, Other), value
    assert read_pickle(pickle.dumps(defaultdict(list, a=[1]), 2)).value == {"a": [1]}
    assert read_pickle(pickle.dumps(torch.Size([2, 3]), 2)).value == (2, 3)


# --- hostile ---------------------------------------------------------------------------------------------------------


class Payload:
    """Pickles as a call of anything."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


def test_no_payload_ever_runs(tmp_path: Path) -> None:
    trap = tmp_path / "trapped"
    run = f"open({str(trap)!r}, 'w').close()"
    payloads = [
        (Payload(os.system, f"touch {trap}"), "posix.system"),
        (Payload(builtins.eval, run), "builtin"),
        (Payload(builtins.exec, run), "builtin"),
        (Payload(builtins.open, str(trap), "w"), "open"),
        (Payload(subprocess.call, ["touch", str(trap)]), ".call"),
        (Payload(getattr, 5, "bit_length"), "getattr"),
        (Payload(torch.hub.load, "x/y", "z"), "torch.hub.load"),
        (Payload(torch.load, str(trap)), "torch.serialization.load"),
        (Payload(torch.storage._load_from_bytes, b""), "torch.storage._load_from_bytes"),
    ]
    for protocol in (2, 4):
        for number, (payload, name) in enumerate(payloads):
            data = pickle.dumps({"w": [1.0], "evil": payload}, protocol)
            path = tmp_path / f"{protocol}-{number}.pt"
            text = refusal(torch_file(path, Raw(data[2:-1])))
            assert name in text
            assert "which no tensor needs; nothing was run" in text
            assert "weights_only=False" in text
    assert not trap.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cos\nsystem\n(X\x04\x00\x00\x00truetR",
        b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93(X\x04\x00\x00\x00truetR",
        b"cos\nsystem\n)\x81",
        b"c__builtin__\neval\n(X\x01\x00\x00\x001tR",
        b"cbuiltins\n__import__\n(X\x02\x00\x00\x00ostR",
        b"cbuiltins\ngetattr\n(X\x01\x00\x00\x00xX\x01\x00\x00\x00ytR",
        b"ctorch\nnn.functional\n)R",
        b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n)R",
        b"ccollections\nOrderedDict.__reduce__\n)R",
        b"ccollections\n__builtins__\n)R",
        b"c\n\n)R",
        b"c\xd0\xbe\xd1\x81\nsystem\n)R",
        b"cos\nsystem\n(S'true'\ntR",
    ],
)
def test_a_forbidden_name_is_named_and_never_imported(opcodes: bytes, tmp_path: Path) -> None:
    data = b"\x80\x04}(X\x01\x00\x00\x00a" + opcodes + b"u."
    before = set(sys.modules)
    unpickled = read_pickle(data)
    assert len(unpickled.forbidden) == 1
    text = refusal(torch_file(tmp_path / "m.pt", Raw(data[2:-1])))
    assert "its pickle asks for " in text
    assert set(sys.modules) == before


def test_all_forbidden_names_are_listed_at_once_up_to_a_limit(tmp_path: Path) -> None:
    value = {f"k{number}": call(f"evil{number}", "run") for number in range(30)}
    text = refusal(torch_file(tmp_path / "m.pt", value))
    assert text.count("which no tensor needs") == torch_pickle.MAX_NAMED
    assert "evil0.run" in text


def test_terminal_control_characters_are_not_printed(tmp_path: Path) -> None:
    text = refusal(torch_file(tmp_path / "m.pt", {"a": Raw(b"cevil\x1b[2J\nrun\n")}))
    assert "\x1b" not in text
    assert "evil\\x1b[2J.run" in text


def test_every_allowed_call_gives_a_description_whatever_its_arguments() -> None:
    """No global of the table reaches a function of another module."""
    odd: list[object] = [(), ("x",), (["x"],), ({},), (1, 2, 3), (object(), "x", [1], None, True, {}, 7)]
    for function in CALLS:
        for arguments in odd:
            try:
                made = torch_pickle.call(function, arguments)  # type: ignore[arg-type]
            except PickleFault:
                continue
            assert type(made).__module__ in {"builtins", "converters.storage.torch_descriptions"}
            assert type(made).__name__ in {"dict", "tuple", "Other", "Tensor", "Unreadable"}


SIZE = Raw(b"ctorch\nSize\n")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x06.", "protocol 6"),
        (b"\x80\x02I1\n.", "the opcode 'I'"),
        (b"\x80\x02\xff.", "0xff"),
        (b"\x80\x02(i__main__\nx\n.", "the opcode 'i'"),
        (b"\x80\x02\x82\x01.", "opcode"),
        (b"\x80\x05\x97.", "opcode"),
        (b"\x80\x02.", "takes what it never made"),
        (b"\x80\x02R.", "takes what it never made"),
        (b"\x80\x02(0.", "takes what it never made"),
        (b"\x80\x02K\x01(a.", "takes what it never made"),
        (b"\x80\x02t.", "a mark that it never set"),
        (b"\x80\x02h\x05.", "recalls what it never kept"),
        (b"\x80\x02K\x01K\x02a.", "appends to what is no list"),
        (b"\x80\x02K\x01K\x02K\x03s.", "sets items of what is no dict"),
        (b"\x80\x02}(K\x01u.", "sets items of what is no dict"),
        (b"\x80\x02}(]K\x01u.", "the key of a dict is neither text nor a number"),
        (b"\x80\x02}(X\x01\x00\x00\x00aNX\x01\x00\x00\x00aNu.", "a key twice"),
        (b"\x80\x02ccollections\nOrderedDict\nNR.", "without a tuple of arguments"),
        (b"\x80\x02K\x01)R.", "calls what is no function"),
        (b"\x80\x02NNb.", "sets attributes of what has none"),
        (b"\x80\x02NQ.", "a persistent id is no storage"),
        (b"\x80\x02)Q.", "a persistent id is no storage"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "text that is not UTF-8"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f.", "a number of 2,147,483,647 bytes"),
        (b"\x80\x02K\x01K\x02\x93.", "a name that is no text"),
        (pickled(call("torch._utils", "_rebuild_tensor_v2")), "with 0 arguments"),
        (pickled(call("torch._utils", "_rebuild_parameter", 1)), "a parameter holds no tensor"),
        (pickled(call("collections", "OrderedDict", [(1,)])), "no list of pairs"),
        (pickled(call("torch", "Size", ["x"])), "must be whole numbers"),
        (
            pickled(call("torch._tensor", "_rebuild_from_type_v2", SIZE, SIZE, (), {})),
            "a class that is not torch's own",
        ),
    ],
)
def test_a_pickle_that_is_damaged_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(PickleFault, match=message):
        read_pickle(data)


def test_a_pickle_that_is_cut_off_anywhere_is_told_apart() -> None:
    data = pickle.dumps(PLAIN, 4)
    for length in range(0, len(data), 11):
        with pytest.raises(PickleCutOffError):
            read_pickle(data[:length])
    for huge in (b"X\xff\xff\xff\xff", b"\x8d" + b"\xff" * 8, b"B\xff\xff\xff\x7f", b"\x96" + b"\xff" * 8, b"\x95"):
        with pytest.raises(PickleCutOffError):
            read_pickle(b"\x80\x05" + huge)


def test_operations_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_pickle.MAX_OPERATIONS == 10_000_000
    monkeypatch.setattr(torch_pickle, "MAX_OPERATIONS", 100)
    read_pickle(b"\x80\x02" + b"N0" * 48 + b"N.")
    with pytest.raises(PickleFault, match="more than 100 operations"):
        read_pickle(b"\x80\x02" + b"N0" * 50 + b"N.")


def test_numbers_in_the_tuple_of_a_key_become_text() -> None:
    """Numbers can be chosen such that all such keys have one hash; text can't."""
    assert read_pickle(pickle.dumps({(1, "b", 2.5, None): 6}, 2)).value == {("1", "b", "2.5", "None"): 6}


def nested_tuples(depth: int) -> bytes:
    """A tuple of two, each of which is the same tuple of two, and so on: hashing it would take 2**depth steps."""
    return b")" + b"2\x86" * depth


def nested_dicts(depth: int) -> bytes:
    """A dict that holds the next one twice, and so on."""
    levels = b"}q\x00"
    for _ in range(depth):
        levels += b"}q\x01(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00uq\x00"
    return levels


@pytest.mark.parametrize(
    "value",
    [
        {Raw(nested_tuples(60)): 1},
        {"a": Raw(nested_tuples(60))},
        {"a": Raw(nested_dicts(60))},
        {"a": Raw(nested_dicts(2000))},
        Raw(b"}q\x00(X\x05\x00\x00\x00modelh\x00u"),
        Raw(b"}q\x00(X\x01\x00\x00\x00ah\x00u"),
        Raw(b"]q\x00h\x00a"),
        {"a": Raw(b"(" * 100_000 + b"t" * 100_000)},
        {"a": Raw(b"]" * 100_000 + b"a" * 99_999)},
    ],
    ids=["tuple keys", "tuples", "dicts", "deep dicts", "model in itself", "dict in itself", "list in itself",
         "deep tuples", "deep lists"],
)  # fmt: skip
def test_structures_that_explode_end_soon(tmp_path: Path, value: object) -> None:
    """In seconds at the very most, not in the age of the universe; a thread of pytest would never come back."""
    path = torch_file(tmp_path / "m.pt", value)
    script = (
        "import sys\nfrom pathlib import Path\nfrom converters.errors import CheckpointError\n"
        "from converters.storage.checkpoint import open_checkpoint\n"
        f"try:\n    open_checkpoint(Path({str(path)!r}))\nexcept CheckpointError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "m.pt" in done.stdout
    assert not done.stderr


OPCODES = [bytes([opcode]) for opcode in range(256)]
SNIPPETS = [
    *OPCODES,
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch._tensor\n_rebuild_from_type_v2\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch\nFloatStorage\n",
    b"X\x07\x00\x00\x00storage",
    b"X\x01\x00\x00\x000",
    b"K\x01",
    b"K\x00",
    b"M\xff\xff",
    b"h\x00",
    b"q\x00",
    bytes(tensor()),
]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(SNIPPETS), max_size=40).map(b"".join))
@example(b"")
def test_whatever_opcodes_do_is_a_value_or_a_fault(opcodes: bytes) -> None:
    with suppress(PickleFault):
        read_pickle(b"\x80\x02" + opcodes + b".")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_pickle_of_torch_is_a_value_or_a_fault(data: st.DataObject) -> None:
    raw = bytearray(pickled({"a": tensor(), "b": {"c": tensor((3, 2), (1, 3))}, "d": [1, 2.5, (True, None)]}))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with suppress(PickleFault):
        read_pickle(raw)


def test_a_description_holds_what_the_file_says() -> None:
    value = read_pickle(pickled({"a": tensor((3, 2), (1, 3), 0)})).value
    assert isinstance(value, dict)
    found = value["a"]
    assert isinstance(found, Tensor)
    assert (found.shape, found.strides, found.offset, found.dtype) == ((3, 2), (1, 3), 0, "float32")
    assert (found.storage.key, found.storage.size) == ("0", 6)
