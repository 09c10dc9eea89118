"""A mapping spec as data: two sides, and the rules that carry the elements of one to the other.

Nothing here depends on a checkpoint; `bind.py` joins a spec to a config, `planner.py` to tensors. Swapping the sides is
the inverse, of a rule as of a spec, so nobody writes a second spec for the way back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal

from msgspec import Struct, field
from msgspec.structs import replace

from converters.config_mapping import ConfigMapping
from converters.dims import Expression
from converters.errors import Location, Problem, SpecError
from converters.layout import WHOLE, Layout
from converters.located import Located
from converters.operations import Elementwise, OneWay, Operation, TensorOperation
from converters.operations.fill import Fill
from converters.parts import Part
from converters.pattern import KeyPattern, Kind, swap_kind

LANGUAGE_VERSION = 1

CONFIG_FILE = "config.json"
"""What nearly every layout calls its config."""

Sharing = Literal["one", "copy", "tie", "inputs"]
"""How a term's keys share one tensor.

`one`: there is one key. `copy`: every key holds it; reading demands that all are there and equal. `tie`: a checkpoint
stores it once, under the first key; reading takes whichever are there and demands that they are equal. `inputs`: each
key holds one of the tensors that make it up, in the order of `Rule.inputs`.
"""


class Term(Struct, frozen=True):
    """One tensor of a rule: its key pattern (several where keys share it), its label and its layout."""

    keys: tuple[KeyPattern, ...]
    label: str | None = None
    layout: Layout = WHOLE
    sharing: Sharing = "one"

    def swap_configs(self) -> Term:
        """The term with `config` and `target_config` exchanged in its keys."""
        return replace(self, keys=tuple(key.swap_configs() for key in self.keys))

    def __str__(self) -> str:
        keys = (" + " if self.sharing == "inputs" else " = ").join(map(str, self.keys))
        return f"{self.label}: {keys}" if self.label else keys


class Rule(Located, frozen=True, dict=True):
    """Source terms and target terms that hold the same elements, and the operations between them.

    Without source terms the targets are made by `fill`; without target terms the sources must hold what `fill` makes.

    Attributes:
        operations: in the order of the way there. Only the first can be a `TensorOperation`.
        dtype: of the tensors that `fill` makes: a dtype's name, or None for the dtype of the tensors around.
        shape: of the tensors that `fill` makes, as expressions over `dims`.
        when: a condition on the config; where it is false the rule is off.
        optional: whether its keys may be absent.
        filled: blocks that only one side has, by label: made when it is the target, compared when it is the source.
        dropped: blocks that only the source has, by label, and why they can be left out.
        parts: where every term is several tensors: what a spec calls them, the elements first, then the grids that lie
            over them, each with the size of a block along each dimension of a source, or of a target with `parts_of`.
        location: where it stands in the YAML.
    """

    sources: tuple[Term, ...]
    targets: tuple[Term, ...]
    operations: tuple[Operation, ...] = ()
    fill: Fill | None = None
    shape: tuple[Expression, ...] = ()
    dtype: str | None = None
    when: Expression | None = None
    optional: bool = False
    filled: tuple[tuple[str, Fill], ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()
    parts: tuple[tuple[str, tuple[Expression, ...]], ...] = ()
    parts_of: Literal["from", "to"] = "from"
    location: Location | None = None
    path: str = ""

    NOT_COMPARED: ClassVar[frozenset[str]] = frozenset({"location", "path"})

    # The next two are asked for each tensor of a checkpoint, and what kind an operation is takes long to tell.

    @cached_property
    def tensor_operation(self) -> TensorOperation | None:
        """What makes the tensors that its layouts see, of those under the source's keys; None without."""
        first = self.operations[0] if self.operations else None
        return first if isinstance(first, TensorOperation) else None

    @cached_property
    def elementwise(self) -> tuple[Elementwise, ...]:
        """What each value goes through."""
        return tuple(operation for operation in self.operations if isinstance(operation, Elementwise))

    @property
    def inputs(self) -> tuple[str, ...]:
        """What a spec calls the tensors that make up each source term; empty where it is a single one."""
        if self.parts:
            return tuple(name for name, _ in self.parts)
        return self.tensor_operation.inputs if self.tensor_operation is not None else ()

    @property
    def text(self) -> str:
        """The rule in one line."""
        sources = ", ".join(map(str, self.sources)) or f"fill {self.fill.value if self.fill else ''}"
        return f"{sources} -> {', '.join(map(str, self.targets)) or 'nothing (made anew on the way back)'}"

    @property
    def kind(self) -> str:
        """What it does, in a word: `rename`, `layout`, `copy`, `tie`, `fill`, or the name of its first operation."""
        if self.fill is not None:
            return "fill"
        if self.operations:
            return self.operations[0].name
        terms = (*self.sources, *self.targets)
        for sharing in ("copy", "tie"):
            if any(term.sharing == sharing for term in terms):
                return sharing
        return "rename" if all(term.layout == WHOLE for term in terms) else "layout"

    @property
    def exactness(self) -> str:
        """`exact`, `approximate` or `one-way`: what is left of the source after the way there and back."""
        return "one-way" if self.dropped else weakest(operation.exactness for operation in self.operations)

    def inverse(self) -> Rule:
        """The rule for the way back; `rule.inverse().inverse() == rule`.

        Raises:
            SpecError: an operation has no inverse, or a block is dropped; the message says why.
        """
        one_way = f"{self.path}: this rule is one-way: {self.text}"
        if self.dropped:
            reasons = "; ".join(f"block '{label}' is dropped: {reason}" for label, reason in self.dropped)
            raise SpecError(one_way, self.location, reasons)
        operations = []
        for operation in reversed(self.operations):
            inverse = operation.inverse()
            if isinstance(inverse, OneWay):
                raise SpecError(one_way, self.location, inverse.reason)
            operations.append(inverse)
        return replace(
            self,
            sources=tuple(term.swap_configs() for term in self.targets),
            targets=tuple(term.swap_configs() for term in self.sources),
            operations=tuple(operations),
            when=self.when.swap_configs() if self.when else None,
            shape=tuple(size.swap_configs() for size in self.shape),
            parts=tuple((name, tuple(size.swap_configs() for size in block)) for name, block in self.parts),
            parts_of="to" if self.parts and self.parts_of == "from" else "from",
        )


class Drop(Located, frozen=True):
    """Source keys that are left out, with the reason. A `*` stands for any text."""

    pattern: str
    reason: str
    location: Location | None = None


class Side(Struct, frozen=True):
    """One of the two layouts.

    Attributes:
        layout: its name, such as `hf/phi`.
        config: what its config.json says: checked when reading, written when writing.
        strip_prefix: prefixes that training wrappers add to keys, taken off when reading.
        drop: keys that are left out when reading.
        files: where each file has a name of its own, what it is called; its keys begin with its label then.
        config_file: the name of its config; empty where the layout has none.
        file: the one file that its weights are always in; empty where any name will do, and several files.
        configs: further configs, by the name under which the spec reaches their keys, and their files.
    """

    layout: str
    config: Mapping[str, Any] = field(default_factory=dict)
    strip_prefix: tuple[str, ...] = ()
    drop: tuple[Drop, ...] = ()
    files: tuple[Part, ...] = ()
    config_file: str = CONFIG_FILE
    file: str = ""
    configs: tuple[tuple[str, str], ...] = ()

    def __hash__(self) -> int:
        return hash(self.layout)  # mappings have no hash


class Note(Located, frozen=True):
    """A sentence that `plan` and `convert` say where its condition holds."""

    say: str
    when: Expression | None = None
    location: Location | None = None


class Proof(Struct, frozen=True):
    """What a spec's two sides were compared with; it changes nothing of what is converted.

    Attributes:
        oracles: implementations of the layouts that whoever wrote the spec didn't write.
        compares: what of them must agree, such as `logits`.
        tolerance: by how much at most, as an absolute difference in float32.
    """

    oracles: tuple[str, ...]
    compares: str
    tolerance: float


class Dim(Located, frozen=True):
    """A named integer.

    Attributes:
        from_keys: it is how many indices a placeholder has in the source's keys, whose range it ends; `value` is only
            for the way on which the source's keys don't have that placeholder.
    """

    name: str
    value: Expression
    location: Location | None = None
    from_keys: bool = False


class Spec(Located, frozen=True):
    """A mapping spec; `inverse` gives the way back.

    Attributes:
        models: names that people know the models of these layouts by.
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
    models: tuple[str, ...] = ()
    proof: Proof | None = None
    path: str = ""
    digest: str = ""
    reverse: bool = False

    NOT_COMPARED: ClassVar[frozenset[str]] = frozenset({"path", "digest", "reverse"})

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
            placeholders=tuple((name, swap_kind(kind)) for name, kind in self.placeholders),
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
    import hashlib  # it takes longer to import than a spec to read

    return hashlib.sha256(text).hexdigest()
