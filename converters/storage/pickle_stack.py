"""The stack on which a pickle makes its values: containers, text and numbers; nothing here knows of globals.

Source: the comments in Python's pickletools.py, which define every opcode.
"""

from __future__ import annotations

from typing import Any, Final

from converters.storage.torch_descriptions import Other, PickleFault
from converters.storage.torch_globals import plain_key

_HIGHEST_PROTOCOL: Final = 5
_MAX_INT_NBYTES: Final = 64


class PickleCutOffError(PickleFault):
    """A pickle goes on beyond the bytes that are there."""


class PickleStack:
    """The bytes of a pickle, the values that it has made so far, and those that it keeps to use again."""

    def __init__(self, data: bytes, start: int) -> None:
        self.data = data
        self.position = start
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    # --- bytes of the pickle -----------------------------------------------------------------------------------------

    def take(self, nbytes: int) -> bytes:
        """The next bytes of the pickle."""
        start = self.position
        self.position = start + nbytes
        taken = self.data[start : start + nbytes]
        if len(taken) != nbytes:
            self.position = len(self.data)
            raise PickleCutOffError("the pickle is cut off")
        return taken

    def byte(self) -> int:
        """The next byte, as a number."""
        value = self.data[self.position]
        self.position += 1
        return value

    def number(self, nbytes: int, *, signed: bool = False) -> int:
        """A number of so many bytes, the lowest first."""
        return int.from_bytes(self.take(nbytes), "little", signed=signed)

    def text(self, nbytes: int) -> str:
        """Text of so many bytes."""
        try:
            return self.take(nbytes).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise PickleFault(f"the pickle holds text that is not UTF-8, before byte {self.position:,}") from None

    def line(self) -> str:
        """Text up to the end of the line."""
        end = self.data.find(b"\n", self.position)
        if end < 0:
            self.position = len(self.data)
            raise PickleCutOffError("the pickle is cut off")
        text = self.text(end - self.position)
        self.position += 1
        return text

    # --- the stack ---------------------------------------------------------------------------------------------------

    def pop(self) -> Any:  # noqa: ANN401 - whatever the pickle made
        """Take the last value, which must be above the last mark."""
        if not self.stack or (self.marks and self.marks[-1] == len(self.stack)):
            raise PickleFault(f"the pickle takes what it never made, before byte {self.position:,}")
        return self.stack.pop()

    def top(self) -> Any:  # noqa: ANN401 - whatever the pickle made
        """The last value, which must be above the last mark."""
        if not self.stack or (self.marks and self.marks[-1] == len(self.stack)):
            raise PickleFault(f"the pickle takes what it never made, before byte {self.position:,}")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        """Take all values above the last mark, and the mark."""
        if not self.marks:
            raise PickleFault(f"the pickle goes back to a mark that it never set, before byte {self.position:,}")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    # --- opcodes -----------------------------------------------------------------------------------------------------

    def protocol(self) -> None:
        """Check the protocol's number."""
        version = self.number(1)
        if version > _HIGHEST_PROTOCOL:
            raise PickleFault(f"the pickle is of protocol {version}; known are those up to {_HIGHEST_PROTOCOL}")

    def frame(self) -> None:
        """Frames only help to read ahead."""
        self.take(8)

    def mark(self) -> None:
        """Set a mark."""
        self.marks.append(len(self.stack))

    def discard(self) -> None:
        """Drop the last value, or a mark that is the last."""
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def discard_to_mark(self) -> None:
        """Drop all values above the last mark."""
        self.pop_to_mark()

    def duplicate(self) -> None:
        """Put the last value there again."""
        self.stack.append(self.top())

    def big_int(self, nbytes: int) -> None:
        """A number with a sign."""
        if nbytes > _MAX_INT_NBYTES:
            raise PickleFault(f"the pickle holds a number of {nbytes:,} bytes")
        self.stack.append(self.number(nbytes, signed=True))

    def binary_text(self, nbytes: int) -> None:
        """Python 2's strings: text in most files, bytes in a few."""
        raw = self.take(nbytes)
        try:
            self.stack.append(raw.decode("utf-8"))
        except UnicodeDecodeError:
            self.stack.append(raw)

    def tuple_of(self, count: int) -> None:
        """A tuple of the last values."""
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def extend(self, items: list[Any]) -> None:
        """Add items to the list that is the last value."""
        target = self.top()
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Other):
            raise PickleFault("the pickle appends to what is no list")

    def append(self) -> None:
        """Add the last value to the list below it."""
        item = self.pop()
        self.extend([item])

    def set_items(self, items: list[Any]) -> None:
        """Set keys and values, which take turns, in the dict that is the last value."""
        target = self.top()
        if isinstance(target, Other):
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleFault("the pickle sets items of what is no dict")
        for index in range(0, len(items), 2):
            key = items[index]
            if type(key) is not str:
                key = plain_key(key)
            if key in target:
                raise PickleFault("a dict in the pickle has a key twice")
            target[key] = items[index + 1]

    def set_item(self) -> None:
        """Set one key of a dict."""
        value = self.pop()
        key = self.pop()
        self.set_items([key, value])

    def make_dict(self) -> None:
        """A dict of all values above the last mark."""
        items = self.pop_to_mark()
        self.stack.append({})
        self.set_items(items)

    def make_set(self) -> None:
        """A set, whose items are of no interest."""
        self.stack.append(Other("a set"))

    def make_frozenset(self) -> None:
        """A set of all values above the last mark."""
        self.pop_to_mark()
        self.make_set()

    def add_items(self) -> None:
        """Add to a set."""
        self.pop_to_mark()
        if not isinstance(self.top(), Other):
            raise PickleFault("the pickle adds to what is no set")

    # --- what is kept ----------------------------------------------------------------------------------------------

    def put(self, index: int) -> None:
        """Keep the last value under a number."""
        self.memo[index] = self.top()

    def memoize(self) -> None:
        """Keep the last value under the next number."""
        self.memo[len(self.memo)] = self.top()

    def get(self, index: int) -> None:
        """Use a value again that was kept."""
        try:
            self.stack.append(self.memo[index])
        except KeyError:
            raise PickleFault(f"the pickle recalls what it never kept, before byte {self.position:,}") from None
