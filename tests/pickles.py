"""Pickles put together opcode by opcode, right or wrong in every way; neither torch nor numpy is needed."""

from __future__ import annotations

import pickle


class Raw(bytes):
    """Opcodes that stand for themselves."""

    __slots__ = ()


def pickled(value: object, protocol: int = 2) -> bytes:
    """A pickle, put together by hand: `Raw` opcodes stand where they are, in dicts, lists and tuples, too."""
    return b"\x80" + bytes([protocol]) + opcodes(value) + b"."


def opcodes(value: object) -> bytes:
    """What pushes a value."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, dict):
        return b"}(" + b"".join(opcodes(part) for item in value.items() for part in item) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(opcodes, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(opcodes, value)) + b"t"
    return pickle.dumps(value, protocol=2)[2:-1].replace(b"q\x00", b"")


def name(module: str, attribute: str) -> Raw:
    """Looks a name up in a module."""
    return Raw(f"c{module}\n{attribute}\n".encode())


def call(module: str, attribute: str, *arguments: object) -> Raw:
    """Calls a function."""
    return Raw(name(module, attribute) + opcodes(arguments) + b"R")


def record(module: str, attribute: str, state: object) -> Raw:
    """An object of a class, and its attributes."""
    return Raw(name(module, attribute) + b")\x81" + opcodes(state) + b"b")


def storage(key: object = "0", size: object = 6, kind: str = "FloatStorage") -> Raw:
    """A storage, as torch refers to one."""
    return Raw(opcodes(("storage", name("torch", kind), key, "cpu", size)) + b"Q")


def tensor(
    shape: object = (2, 3),
    strides: object = (3, 1),
    offset: object = 0,
    size: object = 6,
    key: object = "0",
    kind: str = "FloatStorage",
) -> Raw:
    """A tensor, as torch pickles one."""
    hooks = call("collections", "OrderedDict")
    return call("torch._utils", "_rebuild_tensor_v2", storage(key, size, kind), offset, shape, strides, False, hooks)  # noqa: FBT003 - requires_grad
