"""A mapping spec as data: two sides, and the rules that carry the elements of one to the other.

Nothing here depends on a checkpoint; `bind.py` joins a spec to a config, `planner.py` to tensors. Swapping the sides is
the inverse, of a rule as of a spec, so nobody writes a second spec for the way back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from converters.dims import Expression
from converters.errors import Location, Problem, SpecError
from converters.layout import WHOLE, Layout
from converters.operations import Elementwise, OneWay
from converters.operations.fill import Fill
from converters.pattern import KeyPattern, Kind

LANGUAGE_VERSION = 1

Sharing = Literal["one", "copy", "tie"]
"""How a term's keys share one tensor.

`one`: there is one key. `copy`: every key holds it; reading demands that all are there and equal. `tie`: a checkpoint
stores it once, under the first key; reading takes whichever are there and demands that they are equal.
"""


@dataclass(frozen=True, slots=True)
class Term:
    """One tensor of a rule: its key pattern (several where keys share it), its label and its layout."""

    keys: tuple[KeyPattern, ...]
    label: str | None = None
    layout: Layout = WHOLE
    sharing: Sharing = "one"

    def __str__(self) -> str:
        keys = " = ".join(map(str, self.keys))
        return f"{self.label}: {keys}" if self.label else keys


@dataclass(frozen=True, slots=True)
class Rule:
    """Source terms and target terms that hold the same elements, and the operations between them.

    Without source terms the targets are made by `fill`; without target terms the sources must hold what `fill` makes.

    Attributes:
        dtype: of the tensors that `fill` makes: a dtype's name, or None for the dtype of the tensors around.
        shape: of the tensors that `fill` makes, as expressions over `dims`.
        when: a condition on the config; where it is false the rule is off.
        optional: whether its keys may be absent.
        location: where it stands in the YAML.
    """

    sources: tuple[Term, ...]
    targets: tuple[Term, ...]
    operations: tuple[Elementwise, ...] = ()
    fill: Fill | None = None
    shape: tuple[Expression, ...] = ()
    dtype: str | None = None
    when: Expression | None = None
    optional: bool = False
    location: Location | None = field(default=None, compare=False)
    path: str = field(default="", compare=False)

    @property
    def text(self) -> str:
        """The rule in one line."""
        sources = ", ".join(map(str, self.sources)) or f"fill {self.fill.value if self.fill else ''}"
        return f"{sources} -> {', '.join(map(str, self.targets)) or 'nothing (made anew on the way back)'}"

    @property
    def kind(self) -> str:
        """What it does, in a word: `rename`, `layout`, `copy`, `tie`, `cast` or `fill`."""
        if self.fill is not None:
            return "fill"
        if self.operations:
            return "cast"
        terms = (*self.sources, *self.targets)
        for sharing in ("copy", "tie"):
            if any(term.sharing == sharing for term in terms):
                return sharing
        return "rename" if all(term.layout == WHOLE for term in terms) else "layout"

    @property
    def exactness(self) -> str:
        """`exact`, `approximate` or `one-way`: what is left of the source after the way there and back."""
        found = {operation.exactness for operation in self.operations}
        return next((grade for grade in ("one-way", "approximate") if grade in found), "exact")

    def inverse(self) -> Rule:
        """The rule for the way back; `rule.inverse().inverse() == rule`.

        Raises:
            SpecError: an operation has no inverse; the message says why.
        """
        operations = []
        for operation in reversed(self.operations):
            inverse = operation.inverse()
            if isinstance(inverse, OneWay):
                raise SpecError(f"{self.path}: this rule is one-way: {self.text}", self.location, inverse.reason)
            operations.append(inverse)
        return replace(
            self,
            sources=self.targets,
            targets=self.sources,
            operations=tuple(operations),
            when=self.when.swap_configs() if self.when else None,
            shape=tuple(size.swap_configs() for size in self.shape),
        )


@dataclass(frozen=True, slots=True)
class Drop:
    """Source keys that are left out, with the reason. A `*` stands for any text."""

    pattern: str
    reason: str
    location: Location | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two layouts.

    Attributes:
        layout: its name, such as `hf/phi`.
        config: what its config.json says: checked when reading, written when writing.
        strip_prefix: prefixes that training wrappers add to keys, taken off when reading.
        drop: keys that are left out when reading.
    """

    layout: str
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)
    strip_prefix: tuple[str, ...] = ()
    drop: tuple[Drop, ...] = ()


@dataclass(frozen=True, slots=True)
class ConfigSide:
    """What one side's config.json has beyond the keys that both share.

    Attributes:
        set: values that are written to it, and not carried from it.
        derive: values that are computed from the other side's config when writing it.
        default: likewise, but only where no value is carried; what it computes isn't checked on the way back.
        delete: keys that are left out when reading it, with reasons.
    """

    set: Mapping[str, Any] = field(default_factory=dict, hash=False)
    derive: Mapping[str, Expression] = field(default_factory=dict, hash=False)
    default: Mapping[str, Expression] = field(default_factory=dict, hash=False)
    delete: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class ConfigMapping:
    """How the source's config.json becomes the target's; keys that nothing names are carried as they are.

    `rename` pairs dotted paths of the source's config with those of the target's.
    """

    rename: tuple[tuple[str, str], ...] = ()
    source: ConfigSide = ConfigSide()
    target: ConfigSide = ConfigSide()

    def inverse(self) -> ConfigMapping:
        """The mapping for the way back."""
        return ConfigMapping(tuple((new, old) for old, new in self.rename), self.target, self.source)


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence that `plan` and `convert` say where its condition holds."""

    say: str
    when: Expression | None = None
    location: Location | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Dim:
    """A named integer."""

    name: str
    value: Expression
    location: Location | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Spec:
    """A mapping spec; `inverse` gives the way back.

    Attributes:
        digest: sha256 of the YAML it came from, in hexadecimal.
        reverse: whether it is the inverse of what the YAML says.
    """

    name: str
    source: Side
    target: Side
    rules: tuple[Rule, ...]
    dims: tuple[Dim, ...] = ()
    placeholders: tuple[tuple[str, Kind], ...] = ()
    config: ConfigMapping | None = None
    notes: tuple[Note, ...] = ()
    description: str = ""
    path: str = field(default="", compare=False)
    digest: str = field(default="", compare=False)
    reverse: bool = field(default=False, compare=False)

    def inverse(self) -> Spec:
        """The spec for the way back; `spec.inverse().inverse() == spec`.

        Raises:
            SpecError: rules that are one-way, all of them, each with its line and reason.
        """
        problems: list[Problem] = []
        rules = []
        for rule in self.rules:
            try:
                rules.append(rule.inverse())
            except SpecError as error:
                problems.extend(error.problems)
        if problems:
            raise SpecError(problems)
        return replace(
            self,
            source=self.target,
            target=self.source,
            rules=tuple(rules),
            dims=tuple(replace(dim, value=dim.value.swap_configs()) for dim in self.dims),
            config=self.config.inverse() if self.config else None,
            notes=tuple(replace(note, when=note.when.swap_configs() if note.when else None) for note in self.notes),
            reverse=not self.reverse,
        )

    @property
    def exactness(self) -> str:
        """The weakest of its rules' grades."""
        return weakest(rule.exactness for rule in self.rules)


def weakest(grades: Iterable[str]) -> str:
    """The weakest of `exact`, `approximate` and `one-way`."""
    found = set(grades)
    return next((grade for grade in ("one-way", "approximate") if grade in found), "exact")


def digest_of(text: bytes) -> str:
    """sha256 in hexadecimal."""
    return hashlib.sha256(text).hexdigest()
