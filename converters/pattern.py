"""Key patterns: literal text with placeholders, that match a key to indices and write a key from indices.

There are no regular expressions: a pattern must work in both directions. What a placeholder can stand for is its kind:
a whole number (`{i}`, or `{e:0..E}` where a gap is an error), a choice (`{p:weight|bias}`, or `{p:weight&bias}` where
a missing one is an error), any one segment (`{p:name}`), or a dotted rest (`{rest:path}`). Whole numbers can be
computed with where that can be undone: `{i+1}`, `{L-1-i}`, and `{i//3}` beside `{i%3}`.
"""

from __future__ import annotations

from functools import cached_property

from msgspec import Struct
from msgspec.structs import replace

from converters.dims import Expression, parse_expression
from converters.errors import Location, SpecError


class Index(Struct, frozen=True):
    """A whole number, without leading zeros; with `stop`, every number of `start..stop-1` must occur.

    With `listed`, an expression for a list of the config, it is one of its numbers, each of which must occur.
    """

    start: Expression | None = None
    stop: Expression | None = None
    listed: Expression | None = None

    def __str__(self) -> str:
        if self.listed is not None:
            return str(self.listed)
        return "int" if self.stop is None else f"{self.start}..{self.stop}"

    def swap_configs(self) -> Index:
        """The same with `config` and `target_config` exchanged."""
        return Index(*(each.swap_configs() if each else None for each in (self.start, self.stop, self.listed)))


class Name(Struct, frozen=True, gc=False):
    """Any text without a dot."""

    def __str__(self) -> str:
        return "name"


class Choice(Struct, frozen=True, gc=False):
    """One of a few names; with `every`, each of them must occur."""

    names: tuple[str, ...]
    every: bool = False

    def __str__(self) -> str:
        return ("&" if self.every else "|").join(self.names)


class Path(Struct, frozen=True, gc=False):
    """One or more segments, dots included."""

    def __str__(self) -> str:
        return "path"


Kind = Index | Name | Choice | Path


class Hole(Struct, frozen=True):
    """A placeholder's occurrence: a plain name or something computed from one, and its kind where one is written."""

    expression: Expression
    kind: Kind | None = None

    @property
    def plain(self) -> bool:
        """Whether it is the placeholder itself, nothing computed from it."""
        return str(self.expression).isidentifier()

    def __str__(self) -> str:
        return f"{{{self.expression}}}" if self.kind is None else f"{{{self.expression}:{self.kind}}}"


Part = str | Hole


class KeyPattern(Struct, frozen=True, dict=True):
    """A pattern, as the parts of its dot-separated segments."""

    segments: tuple[tuple[Part, ...], ...]

    def __str__(self) -> str:
        return ".".join("".join(map(str, segment)) for segment in self.segments)

    @cached_property
    def _holes(self) -> tuple[Hole, ...]:
        return tuple([part for segment in self.segments for part in segment if isinstance(part, Hole)])

    def holes(self) -> tuple[Hole, ...]:
        """Its placeholders' occurrences, from left to right; they are asked for again and again."""
        return self._holes

    def swap_configs(self) -> KeyPattern:
        """The pattern with `config` and `target_config` exchanged in the kinds that are written in it."""
        return KeyPattern(
            tuple(
                tuple(
                    replace(part, kind=swap_kind(part.kind)) if isinstance(part, Hole) and part.kind else part
                    for part in segment
                )
                for segment in self.segments
            )
        )

    def names(self) -> frozenset[str]:
        """All the names in its placeholders: placeholders and dims alike."""
        return frozenset(name for hole in self.holes() for name in hole.expression.names())


def parse_kind(text: str, location: Location | None = None) -> Kind:
    """Parse what follows the colon of `{e:0..E}`: `int`, `name`, `path`, a range, or names separated by `|` or `&`.

    Raises:
        SpecError: it is none of these.
    """
    text = text.strip()
    if text == "int":
        return Index()
    if text == "name":
        return Name()
    if text == "path":
        return Path()
    if ".." in text:
        start, _, stop = text.partition("..")
        return Index(parse_expression(start.strip() or "0", location), parse_expression(stop.strip(), location))
    every = "&" in text
    names = tuple(name.strip() for name in text.split("&" if every else "|"))
    are_names = all(name and not set(name) & {".", "|"} for name in names)
    if are_names and len(set(names)) == len(names) > 1:
        return Choice(names, every)
    if text.startswith(("config.", "target_config.")):
        return Index(listed=parse_expression(text, location))
    raise SpecError(
        f"{text!r} is no kind of placeholder",
        location,
        "write int, name, path, a range such as 0..L, a list such as config.layers, or a choice: weight|bias, or "
        "weight&bias if both must be there",
    )


def swap_kind(kind: Kind) -> Kind:
    """The kind with `config` and `target_config` exchanged in its expressions."""
    return kind.swap_configs() if isinstance(kind, Index) else kind


def parse_pattern(text: str, location: Location | None = None) -> KeyPattern:
    """Parse a key pattern such as `model.layers.{i}.mlp.fc1.{p}`.

    Raises:
        SpecError: braces that don't match, an empty segment, or placeholders that can't be told apart.
    """
    if not text:
        raise SpecError("a key pattern can't be empty", location)
    segments: list[list[Part]] = [[]]
    position = 0
    while position < len(text):
        char = text[position]
        if char == "{":
            end = text.find("}", position)
            inner = text[position + 1 : end] if end > 0 else ""
            if end < 0 or "{" in inner:
                raise SpecError(f"the brace at column {position + 1} of {text!r} isn't closed", location)
            if segments[-1] and isinstance(segments[-1][-1], Hole):
                raise SpecError(f"two placeholders of {text!r} touch: nothing tells where one ends", location)
            segments[-1].append(_parse_hole(inner, text, location))
            position = end + 1
        elif char == "}":
            raise SpecError(f"a closing brace without an opening one at column {position + 1} of {text!r}", location)
        elif char == ".":
            segments.append([])
            position += 1
        else:
            stop = position
            while stop < len(text) and text[stop] not in "{}.":
                stop += 1
            segments[-1].append(text[position:stop])
            position = stop
    if any(not segment for segment in segments):
        raise SpecError(f"{text!r} has an empty segment between two dots", location)
    return KeyPattern(tuple(tuple(segment) for segment in segments))


def _parse_hole(inner: str, text: str, location: Location | None) -> Hole:
    name, colon, kind = inner.partition(":")
    if not name.strip():
        raise SpecError(f"an empty placeholder in {text!r}", location, "write a name, as in {i}")
    expression = parse_expression(name, location)
    hole = Hole(expression, parse_kind(kind, location) if colon else None)
    if expression.config_keys():
        raise SpecError(
            f"the placeholder {{{inner}}} of {text!r} reads the config",
            location,
            "name the value in 'dims' and use that name",
        )
    if not expression.names():
        raise SpecError(f"the placeholder {{{inner}}} of {text!r} names nothing", location)
    return hole
