"""Opcodes that would run something, if a pickle were run: each leaves a marker file, or asks for what nobody needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.hostile.case import MARKER
from tests.pickles import Raw, call, name, opcodes, storage


def run_command(root: Path) -> Raw:
    """Opcodes that leave the marker, if anything runs them."""
    return call("posix", "system", f"touch '{root / MARKER}'")


def _open(root: Path) -> Raw:
    return call("builtins", "open", str(root / MARKER), "w")


def _exec(root: Path, module: str = "builtins") -> Raw:
    return call(module, "exec", f"open({str(root / MARKER)!r}, 'w')")


def _by_stack(root: Path) -> Raw:
    words = opcodes("posix") + opcodes("system") + b"\x93"
    return Raw(words + opcodes((f"touch '{root / MARKER}'",)) + b"R")


def _instance(root: Path) -> Raw:
    return Raw(b"(" + opcodes(f"touch '{root / MARKER}'") + b"iposix\nsystem\n")


def _object(root: Path) -> Raw:
    return Raw(b"(" + name("posix", "system") + opcodes(f"touch '{root / MARKER}'") + b"o")


def _new(root: Path) -> Raw:
    return Raw(name("posix", "system") + opcodes((f"touch '{root / MARKER}'",)) + b"\x81")


def _new_with_names(root: Path) -> Raw:
    return Raw(name("subprocess", "Popen") + opcodes((["touch", str(root / MARKER)],)) + opcodes({}) + b"\x92")


def _built(root: Path) -> Raw:
    return Raw(call("collections", "OrderedDict") + opcodes({"__setstate__": run_command(root)}) + b"b")


def _thrown_away(root: Path) -> Raw:
    return Raw(run_command(root) + b"0" + opcodes(1))


def _by_getattr(root: Path) -> Raw:
    system = call("builtins", "getattr", Raw(call("builtins", "__import__", "os")), "system")
    return Raw(system + opcodes((f"touch '{root / MARKER}'",)) + b"R")


def _in_persistent_id(root: Path) -> Raw:
    return Raw(opcodes(("storage", run_command(root), "0", "cpu", 6)) + b"Q")


def _in_tensor(root: Path) -> Raw:
    return call("torch._utils", "_rebuild_tensor_v2", storage(), 0, (6,), (1,), False, run_command(root))  # noqa: FBT003 - requires_grad


def _by_dotted_name(root: Path) -> Raw:
    return call("torch.serialization", "os.system", f"touch '{root / MARKER}'")


PAYLOADS: Final[dict[str, tuple[Callable[[Path], Raw], str]]] = {
    "os.system": (run_command, "posix.system"),
    "open": (_open, "builtins.open"),
    "exec": (_exec, "builtins.exec"),
    "exec of Python 2": (lambda root: _exec(root, "__builtin__"), "__builtin__.exec"),
    "eval": (lambda root: call("builtins", "eval", f"open({str(root / MARKER)!r}, 'w')"), "builtins.eval"),
    "a name from the stack": (_by_stack, "posix.system"),
    "getattr of an import": (_by_getattr, "builtins.getattr"),
    "a call that is thrown away": (_thrown_away, "posix.system"),
    "a call among a tensor's arguments": (_in_tensor, "posix.system"),
    "a call in a persistent id": (_in_persistent_id, "posix.system"),
    "a call in an object's attributes": (_built, "posix.system"),
    "a class that is made": (_new, "posix.system"),
    "a name with dots": (_by_dotted_name, "torch.serialization.os.system"),
    "subprocess": (lambda root: call("subprocess", "Popen", ["touch", str(root / MARKER)]), "subprocess.Popen"),
    "runpy": (lambda _: call("runpy", "_run_code", "1", {}), "runpy._run_code"),
    "torch.load": (lambda _: call("torch", "load", "http://example.org/x.bin"), "torch.load"),
    "torch.hub": (lambda _: call("torch.hub", "load", "a/b", "c"), "torch.hub.load"),
    "a class of the file's own": (lambda _: call("my_model", "Model"), "my_model.Model"),
    "numpy.load": (lambda _: call("numpy", "load", "x.npy", None, True), "numpy.load"),  # noqa: FBT003 - allow_pickle
    "functools.partial": (lambda root: call("functools", "partial", run_command(root)), "functools.partial"),
    "operator.attrgetter": (lambda _: call("operator", "attrgetter", "__class__"), "operator.attrgetter"),
    "an import of a name with a line break": (lambda _: Raw(b"X\x03\0\0\0a\nbX\x01\0\0\0c\x93"), r"a\x0ab.c"),
    "a name that commands the terminal": (lambda _: name("\x1b[2J\u202e", "b"), r"\x1b[2J\u202e.b"),
}
OLD_WAYS: Final[dict[str, Callable[[Path], Raw]]] = {
    "INST": _instance,
    "OBJ": _object,
    "NEWOBJ_EX": _new_with_names,
    "REDUCE without a tuple": lambda _: Raw(name("torch", "Size") + b"NR"),
    "REDUCE of what is no function": lambda _: Raw(b"N)R"),
    "EXT1": lambda _: Raw(b"\x82\x01"),
    "PERSID": lambda _: Raw(b"Pposix\n"),
    "NEXT_BUFFER": lambda _: Raw(b"\x97"),
}
