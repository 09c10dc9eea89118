"""Operations by name: those in this package, and those that other packages bring along as entry points.

A spec names an operation, and never code. A package adds one by an entry point in the group `weightmap.operations`,
whose name is the operation's; it is loaded when a spec first uses it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from converters.errors import SpecError
from converters.operations import Elementwise, Operation, TensorOperation
from converters.operations.options import Options
from converters.text import printable

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "weightmap.operations"
"""The entry points that packages add operations by."""

_OWN = {
    "affine": "converters.operations.affine:Affine",
    "cast": "converters.operations.cast:Cast",
    "dequantize": "converters.operations.dequantize:Dequantize",
    "dequantize_mxfp4": "converters.operations.dequantize_mxfp4:DequantizeMxfp4",
    "mean": "converters.operations.mean:Mean",
    "neglog": "converters.operations.logarithm:NegativeLogarithm",
    "negexp": "converters.operations.logarithm:NegativeExponential",
}


def operation_names() -> list[str]:
    """All operations that a spec can name here."""
    from importlib.metadata import entry_points  # slow to import, and most specs name no operation

    return sorted({*_OWN, *(point.name for point in entry_points(group=GROUP))})


def operation_class(name: str) -> type[Operation]:
    """The operation of this name.

    Raises:
        SpecError: there is none, or the package that brings it along can't be loaded.
    """
    if name in _OWN:
        return _load_own(name)
    from importlib.metadata import entry_points

    found = tuple(entry_points(group=GROUP, name=name))
    if not found:
        import difflib  # only a mistake needs it

        names = operation_names()
        close = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        hint += f"there are: {', '.join(map(printable, names))}; a package can add one by an entry point in {GROUP!r}"
        raise SpecError(f"there is no operation {printable(name)!r}", None, hint)
    if len({point.value for point in found}) > 1:
        packages = " and ".join(printable(_package(point)) for point in found)
        raise SpecError(f"{packages} both bring an operation {printable(name)!r}", None, "uninstall one of them")
    return _load(found[0])


def make_operation(name: str, options: Mapping[str, object]) -> Operation:
    """The operation of this name with these options.

    Raises:
        SpecError: there is no such operation, or an option makes no sense.
    """
    read = Options(name, options)
    made = operation_class(name).from_options(read)
    read.finish()
    return made


def operation_to_json(operation: Operation) -> dict[str, object]:
    """Plain data, which is also how a spec writes it."""
    return {"op": operation.name, **operation.options()}


def operation_from_json(data: Mapping[str, Any]) -> Operation:
    """The operation that `operation_to_json` wrote.

    Raises:
        SpecError: the package that it comes from isn't there.
    """
    return make_operation(data["op"], {key: value for key, value in data.items() if key != "op"})


def operation_text(operation: Operation) -> str:
    """The operation in a few words: `affine add 1.0`."""
    words = [operation.name]
    for key, value in operation.options().items():
        words.append(f"{key} {' '.join(map(str, value)) if isinstance(value, list) else value}")
    return ", ".join([words[0] + (f" {words[1]}" if len(words) > 1 else ""), *words[2:]])


def elementwise_from_json(data: Mapping[str, Any]) -> Elementwise:
    """The operation that `operation_to_json` wrote, where it changes each value on its way.

    Raises:
        TypeError: it is of another kind.
    """
    made = operation_from_json(data)
    if not isinstance(made, Elementwise):
        raise TypeError(f"{made.name} doesn't change each value on its way")
    return made


def tensor_operation_from_json(data: Mapping[str, Any]) -> TensorOperation:
    """The operation that `operation_to_json` wrote, where it makes a tensor of others.

    Raises:
        TypeError: it is of another kind.
    """
    made = operation_from_json(data)
    if not isinstance(made, TensorOperation):
        raise TypeError(f"{made.name} doesn't make a tensor of others")
    return made


@cache
def _load_own(name: str) -> type[Operation]:
    module, _, attribute = _OWN[name].partition(":")
    found: type[Operation] = getattr(importlib.import_module(module), attribute)
    return found


@cache
def _load(point: EntryPoint) -> type[Operation]:
    name, package = printable(point.name), printable(_package(point))
    try:
        found: object = point.load()
    except Exception as error:  # whatever a foreign module raises while it is imported
        what = f"the operation {name!r} of {package} can't be loaded: {printable(str(error))}"
        raise SpecError(what, None, f"is {package} installed for this version of weightmap?") from error
    if not isinstance(found, type) or not any(_has_all(found, kind) for kind in (_ELEMENTWISE, _TENSOR)):
        raise SpecError(
            f"the operation {name!r} of {package} is neither an Elementwise nor a TensorOperation",
            None,
            f"an entry point in {GROUP!r} names a class that has all their methods; see converters.operations",
        )
    if getattr(found, "name", None) != point.name:
        raise SpecError(f"the operation {name!r} of {package} calls itself {getattr(found, 'name', None)!r}")
    checked: type[Operation] = found
    return checked


_COMMON = ("name", "from_options", "options", "exactness", "inverse")
_ELEMENTWISE = (*_COMMON, "output_dtype", "apply")
_TENSOR = (*_COMMON, "inputs", "over", "output", "make")


def _has_all(found: type, names: tuple[str, ...]) -> bool:
    return all(hasattr(found, name) for name in names)


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.module
