"""Watching modules run: what each was called with and what came out, and calling it again with another input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module.

    Attributes:
        primary: the input that it transforms, its first tensor (hidden states or token ids); a copy, since models
            may change tensors in place. `args` and `kwargs` hold this same object.
        output: its output, or the first tensor of it; a copy.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    primary: Tensor
    output: Tensor

    def arguments(self, primary: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same arguments, with another tensor in place of `primary`, wherever that stands."""
        args = tuple(primary if each is self.primary else each for each in self.args)
        return args, {name: primary if each is self.primary else each for name, each in self.kwargs.items()}

    def repeat(self, module: Callable[..., Any], primary: Tensor | None = None) -> Tensor | None:
        """Call a module like this, if wished with another input; its output, or the first tensor of it."""
        args, kwargs = self.arguments(self.primary if primary is None else primary)
        return first_tensor(module(*args, **kwargs))


@dataclass(slots=True)
class Recording:
    """Calls by module, and the order in which modules came to an end."""

    calls: dict[str, list[Call]] = field(default_factory=dict)
    order: dict[str, int] = field(default_factory=dict)


@contextmanager
def recording(modules: Mapping[str, nn.Module], keep: Iterable[str]) -> Iterator[Recording]:
    """Watch modules while the body runs.

    Args:
        modules: whose order is noted, by name.
        keep: the names of those whose calls are kept, with inputs and outputs.
    """
    found, kept = Recording(), set(keep)
    handles = [
        module.register_forward_hook(_hook(found, name, keep=name in kept), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _hook(found: Recording, name: str, *, keep: bool) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: object) -> None:
        found.order.setdefault(name, len(found.order))
        primary, output = _primary(args, kwargs), first_tensor(out)
        if not keep or primary is None or output is None:
            return
        copy = primary.clone()
        call = Call(
            tuple(copy if each is primary else each for each in args),
            {key: copy if each is primary else each for key, each in kwargs.items()},
            copy,
            output.clone(),
        )
        found.calls.setdefault(name, []).append(call)

    return hook


def _primary(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    named = [kwargs[name] for name in ("hidden_states", "input", "x", "input_ids") if name in kwargs]
    candidates = (*args, *named, *kwargs.values())
    return next((each for each in candidates if isinstance(each, Tensor)), None)


def first_tensor(out: object) -> Tensor | None:
    """A module's output, or the first tensor of it; None where there is none."""
    if isinstance(out, Tensor):
        return out
    values: Iterable[object] = (
        out.values() if isinstance(out, Mapping) else out if isinstance(out, tuple | list) else ()
    )
    return next((each for each in values if isinstance(each, Tensor)), None)
