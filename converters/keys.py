"""Compiled key patterns: from a key to what its placeholders stand for, and back."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

from msgspec import Struct

from converters.errors import Location, SpecError
from converters.index_form import PLAIN, IndexForm, index_form, is_solvable, solve_index
from converters.pattern import Choice, Hole, Index, KeyPattern, Kind, Path

Binding = Mapping[str, int | str]
"""What each placeholder of a pattern stands for in one key."""

MAX_DIGITS = 18
"""Digits of an index in a key: the largest still fits 64 bits."""


def is_index(text: str) -> bool:
    """Whether the text is a whole number as it is written in a key: ASCII digits, no leading zero."""
    return len(text) <= MAX_DIGITS and text.isascii() and text.isdigit() and (text[0] != "0" or len(text) == 1)


class CompiledHole(Struct, frozen=True):
    """A placeholder's occurrence with its kind, and for an index its arithmetic, worked out."""

    name: str
    kind: Kind
    form: IndexForm = PLAIN

    def accepts(self, text: str) -> bool:
        """Whether the text can stand here."""
        if isinstance(self.kind, Index):
            return is_index(text)
        if isinstance(self.kind, Choice):
            return text in self.kind.names
        return bool(text)

    def longest(self) -> int | None:
        """Characters of the longest text that can stand here; None where there is no limit."""
        if isinstance(self.kind, Index):
            return MAX_DIGITS
        return max(map(len, self.kind.names)) if isinstance(self.kind, Choice) else None


CompiledPart = str | CompiledHole


class CompiledPattern:
    """A pattern whose placeholders have their kinds, and whose dims have their values."""

    def __init__(
        self, pattern: KeyPattern, kinds: Mapping[str, Kind], dims: Mapping[str, int], location: Location | None
    ) -> None:
        """Compile.

        Raises:
            SpecError: a placeholder's value couldn't be worked out from a key, or its arithmetic can't be undone.
        """
        self.pattern = pattern
        self.segments: tuple[tuple[CompiledPart, ...], ...] = tuple(
            tuple([self._compile(part, kinds, dims, location) if isinstance(part, Hole) else part for part in segment])
            for segment in pattern.segments
        )
        self.holes = [part for segment in self.segments for part in segment if isinstance(part, CompiledHole)]
        self.names = tuple(dict.fromkeys(hole.name for hole in self.holes))
        self.simple = len(self.holes) == len(self.names) and all(hole.form.plain for hole in self.holes)
        dotted = (index for index, segment in enumerate(self.segments) if any(map(_is_dotted, segment)))
        self.dotted = next(dotted, None)
        """The number of the segment with a placeholder that dots may stand in."""
        self._alone = self._segments_of_holes() if self.simple and self.dotted is None else None
        self._numeric = tuple((hole.name, isinstance(hole.kind, Index)) for hole in self.holes)
        self._pieces, self._slots = self._in_pieces()
        self._template = self._text_template()
        self._values = operator.itemgetter(*[name for _, name, _ in self._slots] or [""])
        for name in self.names:
            forms = [hole.form for hole in self.holes if hole.name == name]
            if not is_solvable(forms):
                raise SpecError(
                    f"the value of {name} can't be worked out from a key like '{pattern}'",
                    location,
                    f"write the remainder {{{name} % c}} beside {{{name} // c}}",
                )

    @staticmethod
    def _compile(
        hole: Hole, kinds: Mapping[str, Kind], dims: Mapping[str, int], location: Location | None
    ) -> CompiledHole:
        if hole.plain and str(hole.expression) in kinds:
            name = str(hole.expression)
            return CompiledHole(name, kinds[name])
        name = next(iter(sorted(hole.expression.names() & kinds.keys())))
        return CompiledHole(name, kinds[name], index_form(hole.expression, name, dims, location))

    def _segments_of_holes(self) -> tuple[tuple[str, bool, int], ...] | None:
        """Name, whether it is a number, and segment of each placeholder; None where one shares its segment."""
        found: list[tuple[str, bool, int]] = []
        for number, segment in enumerate(self.segments):
            for part in segment:
                if isinstance(part, CompiledHole):
                    if len(segment) > 1:
                        return None
                    found.append((part.name, isinstance(part.kind, Index), number))
        return tuple(found)

    def bind_segments(self, texts: Sequence[str]) -> Binding | None:
        """What the placeholders stand for in a key of these segments, if each fits; None where they disagree."""
        if self._alone is not None:
            return {name: int(texts[at]) if numeric else texts[at] for name, numeric, at in self._alone}
        return self._captured(texts)

    def _captured(self, texts: Sequence[str]) -> Binding | None:
        """What the placeholders stand for in a key of these segments; None where one of them doesn't fit."""
        captures: tuple[str, ...] = ()
        for parts, text in zip(self.segments, texts, strict=True):
            captured = match_segment(parts, text)
            if captured is None:
                return None
            captures += captured
        return self.bind(captures)

    def bind(self, captures: Sequence[str]) -> Binding | None:
        """What the placeholders stand for, from the text of each occurrence in order; None where they disagree."""
        if self.simple:
            return {
                name: int(text) if numeric else text
                for (name, numeric), text in zip(self._numeric, captures, strict=True)
            }
        binding: dict[str, int | str] = {}
        for name in self.names:
            found = [(hole, text) for hole, text in zip(self.holes, captures, strict=True) if hole.name == name]
            if isinstance(found[0][0].kind, Index):
                index = solve_index([(hole.form, int(text)) for hole, text in found])
                if index is None:
                    return None
                binding[name] = index
            elif len({text for _, text in found}) > 1:
                return None
            else:
                binding[name] = found[0][1]
        return binding

    def format(self, binding: Binding) -> str | None:
        """The key for a binding; None where arithmetic would make a negative number."""
        if self._template is not None:
            key = self._template % self._values(binding) if self._slots else self._template
            if "-" not in key:  # else a number may be negative
                return key
        pieces = self._pieces.copy()
        for position, name, form in self._slots:
            value = binding[name]
            if isinstance(value, int):
                if form is not None:
                    value = form.value(value)
                if value < 0:
                    return None
            pieces[position] = str(value)
        return "".join(pieces)

    def _text_template(self) -> str | None:
        """The key with `%s` in place of each placeholder; None where a number is computed with."""
        if any(form is not None for _, _, form in self._slots):
            return None
        if not self._slots:
            return "".join(self._pieces)
        pieces = [piece.replace("%", "%%") for piece in self._pieces]
        for position, _, _ in self._slots:
            pieces[position] = "%s"
        return "".join(pieces)

    def _in_pieces(self) -> tuple[list[str], list[tuple[int, str, IndexForm | None]]]:
        """The key in pieces, and which of them stand for placeholders; a form where a number is computed with."""
        pieces: list[str] = []
        slots: list[tuple[int, str, IndexForm | None]] = []
        for number, segment in enumerate(self.segments):
            for part in (".", *segment) if number else segment:
                if isinstance(part, CompiledHole):
                    slots.append((len(pieces), part.name, None if part.form.plain else part.form))
                pieces.append(part if isinstance(part, str) else "")
        return pieces, slots

    def match(self, key: str) -> Binding | None:
        """What the placeholders stand for in this key; None where it doesn't match."""
        texts = key.split(".")
        if self.dotted is not None:
            after = len(self.segments) - self.dotted - 1
            if len(texts) <= self.dotted + after:
                return None
            rest = len(texts) - after
            texts = [*texts[: self.dotted], ".".join(texts[self.dotted : rest]), *texts[rest:]]
        elif len(texts) != len(self.segments):
            return None
        return self._captured(texts)


def _is_dotted(part: CompiledPart) -> bool:
    return isinstance(part, CompiledHole) and isinstance(part.kind, Path)


def match_segment(parts: tuple[CompiledPart, ...], text: str, start: int = 0) -> tuple[str, ...] | None:
    """The text of each placeholder in one segment, from `start` on; None where the segment doesn't match.

    A segment has text between any two placeholders, and one of unlimited length at most, so that the time it takes
    grows no faster than the text, whatever the text.
    """
    head = parts[0]
    if len(parts) == 1:
        return _match_last(head, text, start)
    if isinstance(head, str):
        return match_segment(parts[1:], text, start + len(head)) if text.startswith(head, start) else None
    separator = parts[1]
    if not isinstance(separator, str):
        raise AssertionError("the parser refuses placeholders that touch")  # noqa: TRY004 - a bug, not a wrong type
    if len(parts) == 2:  # noqa: PLR2004 - the separator ends the segment
        end = len(text) - len(separator)
        found = text[start:end] if end >= start and text.endswith(separator) else ""
        return (found,) if head.accepts(found) else None
    longest = head.longest()
    position = text.find(separator, start)
    while start <= position and (longest is None or position - start <= longest):
        if position > start if longest is None else head.accepts(text[start:position]):
            following = match_segment(parts[2:], text, position + len(separator))
            if following is not None:
                return (text[start:position], *following)
        position = text.find(separator, position + 1)
    return None


def _match_last(part: CompiledPart, text: str, start: int) -> tuple[str, ...] | None:
    if isinstance(part, str):
        return () if len(text) - start == len(part) and text.endswith(part) else None
    if start and (longest := part.longest()) is not None and len(text) - start > longest:
        return None
    return (text[start:],) if part.accepts(text[start:]) else None


def matches_drop(pattern: str, key: str) -> bool:
    """Whether a key matches a `drop` pattern, in which `*` stands for any text, dots included."""
    first, *rest = pattern.split("*")
    if not rest:
        return key == pattern
    if not key.startswith(first):
        return False
    *middle, last = rest
    position = len(first)
    for text in middle:
        position = key.find(text, position)
        if position < 0:
            return False
        position += len(text)
    return key.endswith(last) and len(key) - len(last) >= position
