"""The options that a spec gives an operation: each is read once, and what nobody reads is an error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from converters.errors import SpecError
from converters.tensor_info import DType, parse_dtype
from converters.text import printable


class Options:
    """The entries beside `op:`. Every method takes an option's name, and what it is where the spec doesn't say."""

    def __init__(self, op: str, data: Mapping[str, object]) -> None:
        self.op = op
        self._data = data
        self._known: list[str] = []

    def _take(self, name: str) -> object:
        self._known.append(name)
        return self._data.get(name)

    def _refuse(self, name: str, wanted: str) -> SpecError:
        found = self._data.get(name)
        got = "is missing" if found is None else f"is {printable(repr(found))}"
        return SpecError(f"{self.op}: '{name}' {got}, and must be {wanted}")

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number.

        Raises:
            SpecError: it is something else, or missing without a default.
        """
        found = self._take(name)
        if found is None and default is not None:
            return default
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            raise self._refuse(name, "a finite number")
        return float(found)

    def flag(self, name: str) -> bool:
        """True or false; false where the spec doesn't say.

        Raises:
            SpecError: it is something else.
        """
        found = self._take(name)
        if found is not None and not isinstance(found, bool):
            raise self._refuse(name, "true or false")
        return bool(found)

    def text(self, name: str) -> str:
        """A text.

        Raises:
            SpecError: it is something else, or missing.
        """
        found = self._take(name)
        if not isinstance(found, str) or not found:
            raise self._refuse(name, "text")
        return found

    def dtype(self, name: str) -> DType | None:
        """A dtype, None where the spec doesn't say.

        Raises:
            SpecError: there is no such dtype.
        """
        found = self._take(name)
        if found is None:
            return None
        if not isinstance(found, str):
            raise self._refuse(name, "a dtype such as F32")
        try:
            return parse_dtype(found)
        except ValueError as error:
            raise SpecError(f"{self.op}: {error}") from None

    def working_dtype(self) -> DType | None:
        """The option `dtype`: what is computed in; None where the spec doesn't say.

        Raises:
            SpecError: it is no float of at least 16 bits.
        """
        found = self.dtype("dtype")
        if found not in (None, DType.F16, DType.BF16, DType.F32, DType.F64):
            raise self._refuse("dtype", "what values are computed in: F16, BF16, F32 or F64")
        return found

    def sizes(self, name: str, word: str) -> tuple[int | None, ...]:
        """A list of whole numbers of at least 1, in which `word` stands for None.

        Raises:
            SpecError: it is something else, or missing.
        """
        found = self._take(name)
        wanted = f"a list of sizes, each a whole number or '{word}'"
        if not isinstance(found, Sequence) or isinstance(found, str) or not found:
            raise self._refuse(name, wanted)
        sizes: list[int | None] = []
        for size in found:
            if size == word:
                sizes.append(None)
            elif isinstance(size, int) and not isinstance(size, bool) and size > 0:
                sizes.append(size)
            else:
                raise self._refuse(name, wanted)
        return tuple(sizes)

    def finish(self) -> None:
        """Refuse what nobody has read: a misspelt option would be ignored in silence.

        Raises:
            SpecError: there is one.
        """
        for name in self._data:
            if name not in self._known:
                import difflib  # only a mistake needs it

                close = difflib.get_close_matches(name, self._known, 1)
                known = f"known are: {', '.join(self._known)}" if self._known else "it takes none"
                hint = f"did you mean {close[0]!r}?" if close else known
                raise SpecError(f"{self.op} has no option {printable(name)!r}", None, hint)
