"""Reads the pickles that `torch.save` writes, without running them: an interpreter that can only build descriptions.

It knows the opcodes of protocols 2 to 5 as far as torch and plain containers need them, and calls nothing: a global is
looked up in a table (`torch_globals`), never imported. So a pickle can only make dicts, lists, tuples, text, numbers,
and descriptions of tensors; all else is an error that names it.

Source: the comments in Python's pickletools.py, which define every opcode.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Mapping
from typing import Final, NoReturn

from msgspec import Struct

from converters.errors import CheckpointError, Problem
from converters.storage.pickle_stack import PickleCutOffError, PickleStack
from converters.storage.safetensors_extents import MAX_RANK
from converters.storage.torch_descriptions import Global, Other, PickleFault, Record, Storage, Tensor, Unreadable
from converters.storage.torch_globals import call, look_up, storage_of
from converters.text import printable

MAX_PICKLE_NBYTES: Final = 100_000_000
"""Longest pickle that is read, in bytes: about 600,000 tensors."""

MAX_OPERATIONS: Final = 10_000_000
"""Most operations in a pickle: a tensor takes about 35."""

_DAMAGED: Final = "It was truncated or damaged; copy or download it again."
_RESAVE: Final = (
    "If you trust its source, save its tensors alone: "
    "torch.save(torch.load(FILE, weights_only=False).state_dict(), NEW_FILE), or the dict of tensors that is in it."
)

MAX_NAMED: Final = 20
"""How many forbidden names are listed."""


class Unpickled(Struct, frozen=True):
    """What a pickle describes.

    Attributes:
        value: dicts, lists, tuples and plain values, with `Tensor`s in them.
        storages: every storage that it refers to, by key.
        end: where the pickle ends, in bytes from the start of the data.
        forbidden: names that it asks for and that no tensor needs, the first few; `value` is of no use then.
    """

    value: object
    storages: Mapping[str, Storage]
    end: int
    forbidden: tuple[str, ...]


def read_pickle(
    data: bytes | bytearray | memoryview, start: int = 0, records: Collection[Global] = frozenset()
) -> Unpickled:
    """Read one pickle.

    Args:
        data: bytes that hold it.
        start: where in them it begins.
        records: classes whose objects become `Record`s, beside what tensors need.

    Raises:
        PickleCutOffError: it does not end within `data`.
        PickleFault: it is damaged, too long, or does what no file of torch needs.
    """
    return _Interpreter(bytes(data), start, records).run()


def unpickle(data: bytes, start: int, where: str) -> Unpickled:
    """Read one pickle of the file that errors name by `where`.

    Raises:
        PickleCutOffError: it does not end within `data`.
        CheckpointError: it is damaged, or asks for what no tensor needs.
    """
    try:
        unpickled = read_pickle(data, start)
    except PickleCutOffError:
        raise
    except PickleFault as fault:
        raise CheckpointError(str(fault), where, _DAMAGED) from None
    if unpickled.forbidden:
        raise CheckpointError(
            Problem(f"its pickle asks for {printable(name)}, which no tensor needs; nothing was run", where, _RESAVE)
            for name in unpickled.forbidden
        )
    return unpickled


class _Interpreter(PickleStack):
    def __init__(self, data: bytes, start: int, records: Collection[Global]) -> None:
        super().__init__(data, start)
        self.records = records
        self.storages: dict[str, Storage] = {}
        self.forbidden: dict[str, None] = {}
        self.globals: dict[tuple[str, str], object] = {}
        self.handed_items = 0

    def run(self) -> Unpickled:
        try:
            return self._run()
        except PickleFault:
            if not self.forbidden:
                raise
            # A forbidden name says more than what went wrong after it.
            return Unpickled(None, {}, self.position, tuple(self.forbidden))

    def _run(self) -> Unpickled:
        data, handlers = self.data, _HANDLERS
        try:
            for _ in range(MAX_OPERATIONS):
                opcode = data[self.position]
                self.position += 1
                if opcode == _STOP:
                    return Unpickled(self.pop(), self.storages, self.position, tuple(self.forbidden))
                handler = handlers[opcode]
                if handler is None:
                    self.unknown(opcode)
                handler(self)
        except (IndexError, struct.error):
            if self.position >= len(data):
                raise PickleCutOffError("the pickle is cut off") from None
            raise PickleFault(f"the pickle is damaged before byte {self.position:,}") from None
        raise PickleFault(f"the pickle has more than {MAX_OPERATIONS:,} operations")

    def unknown(self, opcode: int) -> NoReturn:
        text = chr(opcode)
        what = f"'{text}'" if text.isascii() and text.isprintable() else f"0x{opcode:02x}"
        raise PickleFault(f"the pickle has the opcode {what} at byte {self.position - 1:,}, which torch never writes")

    # --- what is looked up ---------------------------------------------------------------------------------------

    def look_up(self, module: str, name: str) -> None:
        found = self.globals.get((module, name))
        if found is None:
            try:
                asked = Global(module, name)
                found = asked if asked in self.records else look_up(module, name)
            except PickleFault:
                # Read on, so that all such names are reported at once; nothing of the value will be used.
                if len(self.forbidden) < MAX_NAMED:
                    self.forbidden[f"{module}.{name}"] = None
                found = Other("a forbidden name")
            self.globals[module, name] = found
        self.stack.append(found)

    def global_by_lines(self) -> None:
        module = self.line()
        self.look_up(module, self.line())

    def global_by_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleFault("the pickle looks up a name that is no text")
        self.look_up(module, name)

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(arguments, tuple):
            raise PickleFault("the pickle makes a call without a tuple of arguments")
        self.hand_over(arguments)
        if isinstance(function, Other):
            self.stack.append(function)
        elif isinstance(function, Global) and function in self.records:
            self.stack.append(Record(function, arguments))
        elif isinstance(function, Global):
            # What depends on a forbidden name is no fault of its own.
            self.stack.append(Other("a forbidden value") if self.forbidden else call(function, arguments))
        else:
            raise PickleFault("the pickle calls what is no function")

    def hand_over(self, arguments: tuple[object, ...]) -> None:
        """Count the items of what calls are given: more than the pickle has bytes can only be the same ones again.

        Calls look at each item, and a pickle needs two bytes to hand a list of a million of them to a call once more.
        """
        lengths = [len(each) for each in arguments[:MAX_RANK] if isinstance(each, list | tuple)]
        self.handed_items += sum(length for length in (len(arguments), *lengths) if length > MAX_RANK)
        if self.handed_items > len(self.data):
            raise PickleFault("the pickle hands the same values to calls again and again, as torch never does")

    def build(self) -> None:
        state = self.pop()
        record = self.top()
        if isinstance(record, Record):
            record.state = state
            return
        # Attributes, such as the version numbers (`_metadata`) of a state dict, or those of a Parameter.
        if not isinstance(record, dict | Other | Tensor | Unreadable):
            raise PickleFault("the pickle sets attributes of what has none")

    def persistent_id(self) -> None:
        parts = self.pop()
        if self.forbidden:
            self.stack.append(Other("a forbidden value"))
            return
        storage = storage_of(parts)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise PickleFault(f"its storage {printable(storage.key, 100)} is of two sizes or dtypes")
        self.stack.append(storage)


def _push(make: Callable[[_Interpreter], object]) -> Callable[[_Interpreter], None]:
    return lambda machine: machine.stack.append(make(machine))


_STOP: Final = ord(".")
_OPCODES: Final[dict[bytes, Callable[[_Interpreter], None]]] = {
    b"\x80": _Interpreter.protocol,
    b"\x95": _Interpreter.frame,
    b"(": _Interpreter.mark,
    b"0": _Interpreter.discard,
    b"1": _Interpreter.discard_to_mark,
    b"2": _Interpreter.duplicate,
    b"N": _push(lambda _: None),
    b"\x88": _push(lambda _: True),
    b"\x89": _push(lambda _: False),
    b"J": _push(lambda machine: machine.number(4, signed=True)),
    b"K": _push(lambda machine: machine.byte()),
    b"M": _push(lambda machine: machine.number(2)),
    b"\x8a": lambda machine: machine.big_int(machine.number(1)),
    b"\x8b": lambda machine: machine.big_int(machine.number(4)),
    b"G": _push(lambda machine: struct.unpack(">d", machine.take(8))[0]),
    b"T": lambda machine: machine.binary_text(machine.number(4)),
    b"U": lambda machine: machine.binary_text(machine.number(1)),
    b"X": _push(lambda machine: machine.text(machine.number(4))),
    b"\x8c": _push(lambda machine: machine.text(machine.number(1))),
    b"\x8d": _push(lambda machine: machine.text(machine.number(8))),
    b"B": _push(lambda machine: machine.take(machine.number(4))),
    b"C": _push(lambda machine: machine.take(machine.number(1))),
    b"\x8e": _push(lambda machine: machine.take(machine.number(8))),
    b"\x96": _push(lambda machine: machine.take(machine.number(8))),
    b"]": _push(lambda _: []),
    b"l": _push(lambda machine: machine.pop_to_mark()),
    b"a": _Interpreter.append,
    b"e": lambda machine: machine.extend(machine.pop_to_mark()),
    b")": _push(lambda _: ()),
    b"t": _push(lambda machine: tuple(machine.pop_to_mark())),
    b"\x85": lambda machine: machine.tuple_of(1),
    b"\x86": lambda machine: machine.tuple_of(2),
    b"\x87": lambda machine: machine.tuple_of(3),
    b"}": _push(lambda _: {}),
    b"d": _Interpreter.make_dict,
    b"s": _Interpreter.set_item,
    b"u": lambda machine: machine.set_items(machine.pop_to_mark()),
    b"\x8f": _Interpreter.make_set,
    b"\x90": _Interpreter.add_items,
    b"\x91": _Interpreter.make_frozenset,
    b"c": _Interpreter.global_by_lines,
    b"\x93": _Interpreter.global_by_stack,
    b"R": _Interpreter.reduce,
    b"\x81": _Interpreter.reduce,
    b"b": _Interpreter.build,
    b"Q": _Interpreter.persistent_id,
    b"q": lambda machine: machine.put(machine.byte()),
    b"r": lambda machine: machine.put(machine.number(4)),
    b"\x94": _Interpreter.memoize,
    b"h": lambda machine: machine.get(machine.byte()),
    b"j": lambda machine: machine.get(machine.number(4)),
}
_HANDLERS: Final = [_OPCODES.get(bytes([opcode])) for opcode in range(256)]
