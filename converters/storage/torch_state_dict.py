"""Finds the state dict in what `torch.save` was given: alone, or among the optimizer and all else of a training run.

A state dict maps names to tensors. Where it holds further dicts, their names are joined with dots. Attributes of a
state dict, such as the version numbers of its modules (`_metadata`), are no entries, and are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct, field

from converters.storage.torch_descriptions import Tensor, Unreadable
from converters.text import printable

MAX_NESTING: Final = 64
"""Deepest nesting of dicts in a file."""

MAX_JOINED: Final = 100_000_000
"""Characters that the names of tensors in nested dicts may have together: each repeats those of all dicts above it."""

WRAPPERS: Final = ("state_dict", "model", "module", "model_state_dict")
"""The keys under which training code keeps the model's state dict."""

_TRAINING: Final = ("optimizer", "optim", "scheduler", "lr_scheduler", "scaler", "rng", "ema", "callbacks", "loops")
"""How the keys of what training code keeps beside a state dict begin."""

_LISTED: Final = 5


class StateDictFault(ValueError):  # noqa: N818 - it says what is wrong with a file; the caller adds where
    """Why there is no state dict; `hint` says what to do."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.hint = hint


class StateDict(Struct):
    """The tensors of a file, by name.

    Attributes:
        tensors: each tensor, or why it can't be read, in the order of the file.
        notes: what was left out, or put together, in sentences.
    """

    tensors: dict[str, Tensor | Unreadable] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def find_state_dict(value: object) -> StateDict:
    """Find the one state dict in what a file holds.

    Raises:
        StateDictFault: there is none, or more than one.
    """
    return _Search().find(value)


class _Search:
    def __init__(self) -> None:
        self.found = StateDict()
        self.left: list[str] = []
        self.joined: list[str] = []
        self.joined_characters = 0
        self.collected: set[int] = set()
        self.holding: dict[int, bool] = {}
        self.counted: set[int] = set()

    def find(self, value: object) -> StateDict:
        """See `find_state_dict`."""
        path: list[str] = []
        while isinstance(value, dict) and (inner := self._unwrap(value, path)) is not None:
            path.append(inner)
            value = value[inner]
            if len(path) > MAX_NESTING:
                raise _too_deep()
        if not isinstance(value, dict):
            raise _no_state_dict(value, path)
        if path:
            self.found.notes.append(f"its state dict is under '{_joined(path)}'")
        self._collect(value, [])
        if not self.found.tensors:
            raise _no_state_dict(value, path)
        if self.joined:
            self.found.notes.append(f"it holds dicts in dicts; their names were joined with dots: {_list(self.joined)}")
        if self.left:
            self.found.notes.append(f"left out, since no part of the state dict: {_list(self.left)}")
        return self.found

    def _unwrap(self, value: Mapping[Any, object], path: list[str]) -> str | None:
        """The key of the state dict in what training code saved, or None if this is one itself."""
        candidates = [key for key in WRAPPERS if self._holds_tensors(value.get(key))]
        if not candidates:
            # A training run may be saved under one name, as in torch's tutorial: {"app": {"model": ..., "optim": ...}}.
            only = next(iter(value)) if len(value) == 1 else None
            return only if isinstance(only, str) and _is_training_run(value[only]) else None
        if len(candidates) > 1:
            raise StateDictFault(
                f"there are several state dicts in it: {', '.join(candidates)}",
                "Save the one that you mean by itself: "
                f'torch.save(torch.load(FILE, weights_only=True)["{candidates[0]}"], NEW_FILE).',
            )
        others = {key: other for key, other in value.items() if key != candidates[0]}
        # What only training needs is left out; a further model's weights are nothing to leave out.
        more = [key for key, other in others.items() if isinstance(other, dict) and not _is_training(key)]
        if more := [printable(str(key)) for key in more if self._holds_tensors(others[key])]:
            raise StateDictFault(
                f"beside the state dict under {candidates[0]} there are tensors under {_list(more)}",
                "Save the one that you mean by itself: "
                f'torch.save(torch.load(FILE, weights_only=True)["{candidates[0]}"], NEW_FILE).',
            )
        for key, other in others.items():
            self._leave([*path, key], other)
        return candidates[0]

    def _leave(self, path: list[Any], value: object) -> None:
        count = self._count_tensors(value)
        name = _joined(path)
        self.left.append(f"{name} ({count:,} tensor{'s' if count != 1 else ''})" if count else name)

    def _count_tensors(self, value: object) -> int:
        """How many tensors are in a value, in containers of all kinds; what was counted before isn't counted again."""
        count = 0
        waiting = [value]
        while waiting:
            item = waiting.pop()
            if isinstance(item, Tensor | Unreadable):
                count += 1
            elif isinstance(item, dict | list | tuple) and id(item) not in self.counted:
                self.counted.add(id(item))
                waiting.extend(item.values() if isinstance(item, dict) else item)
        return count

    def _collect(self, value: Mapping[Any, object], path: list[str]) -> None:
        if id(value) in self.collected:
            raise StateDictFault(
                f"one dict of it has two names, and the second is {_joined(path)}", "Save it once, under one name."
            )
        self.collected.add(id(value))
        for key, item in value.items():
            if type(key) is not str and type(key) is not int:
                self._leave([*path, key], item)
            elif isinstance(item, Tensor | Unreadable):
                self._add([*path, str(key)], item)
            elif not self._holds_tensors(item) or (not path and _is_training(key)):
                self._leave([*path, key], item)
            elif isinstance(item, dict):
                self.joined.append(_joined([*path, key]))
                self._collect(item, [*path, str(key)])

    def _add(self, path: list[str], tensor: Tensor | Unreadable) -> None:
        name = path[0]
        if len(path) > 1:
            self.joined_characters += sum(map(len, path)) + len(path) - 1
            if self.joined_characters > MAX_JOINED:
                raise StateDictFault(
                    f"the names of its tensors, joined with dots, have more than {MAX_JOINED:,} characters",
                    "Save the state dict under names of its own.",
                )
            name = ".".join(path)
        if name in self.found.tensors:
            raise StateDictFault(
                f"two of its tensors would be called {printable(name)}, once names are joined with dots",
                "Save the state dict under names of its own.",
            )
        self.found.tensors[name] = tensor

    def _holds_tensors(self, value: object, depth: int = 0) -> bool:
        """Whether it is a dict that holds tensors, at any depth of dicts; each dict is looked at once."""
        if not isinstance(value, dict):
            return False
        known = self.holding.get(id(value))
        if known is None:
            if depth > MAX_NESTING:
                raise _too_deep()
            known = any(
                isinstance(item, Tensor | Unreadable) or self._holds_tensors(item, depth + 1) for item in value.values()
            )
            self.holding[id(value)] = known
        return known


def _is_training_run(value: object) -> bool:
    """Whether it is a dict of a state dict and of what only training needs."""
    return isinstance(value, dict) and any(key in value for key in WRAPPERS) and any(map(_is_training, value))


def _is_training(key: object) -> bool:
    return isinstance(key, str) and key.lower().startswith(_TRAINING)


def _joined(path: list[Any]) -> str:
    return ".".join(printable(str(part), 200) for part in path)


def _too_deep() -> StateDictFault:
    return StateDictFault(f"it nests deeper than {MAX_NESTING} levels", "Save the state dict alone.")


def _no_state_dict(value: object, path: list[str]) -> StateDictFault:
    if isinstance(value, dict):
        keys = _list([printable(str(key), 100) for key in value]) if value else "none"
        what = f"a dict without tensors (its keys: {keys})"
    elif isinstance(value, Tensor | Unreadable):
        what = "a single tensor"
    else:
        what = f"a {type(value).__name__}"
    at = f" under '{_joined(path)}'" if path else ""
    return StateDictFault(f"expected a state dict{at}, got {what}", "Save one: torch.save(model.state_dict(), FILE).")


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED:,} more"
