"""Named integers: the `dims:` of a spec, evaluated against a config."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct

from converters.arithmetic import LARGEST_MAGNITUDE, describe, is_number
from converters.errors import Location, Problem, SpecError
from converters.expression_parser import RESERVED_WORDS, is_dim_name, parse_expression
from converters.expression_scope import Scope, Unresolved, Value
from converters.expressions import Expression, known_value
from converters.text import printable

__all__ = [
    "RESERVED_WORDS",
    "Dims",
    "Expression",
    "Unresolved",
    "Value",
    "evaluate_dims",
    "is_dim_name",
    "parse_expression",
]


class Dims(Struct, frozen=True):
    """What is known of the dims of a spec once a config is at hand.

    Attributes:
        values: the dims that have a value, each at least 0.
        reasons: the others, and why not; an error only for whoever needs one of them.
    """

    values: Mapping[str, int]
    reasons: Mapping[str, str]

    def names(self) -> dict[str, Value]:
        """All dims as names for `Expression.evaluate`."""
        return {**self.values, **{name: Unresolved(reason) for name, reason in self.reasons.items()}}


def evaluate_dims(
    dims: Mapping[str, Expression],
    locations: Mapping[str, Location],
    config: Mapping[str, object] | None,
    target_config: Mapping[str, object] | None = None,
    overrides: Mapping[str, int] | None = None,
) -> Dims:
    """Evaluates dims, which may refer to each other in any order.

    Args:
        dims: name to expression.
        locations: where each of them is written, for messages; may lack some.
        config: the source's config.json; None when there is none.
        target_config: the config that the target gets; None when it isn't known.
        overrides: values that take the place of expressions.

    Raises:
        SpecError: a dim refers to itself, to a name that is no dim, or comes out as something else than a whole
            number of at least 0; or an override is for no dim, or no such number. Holds every such problem.
    """
    evaluation = _Evaluation(dims, locations, overrides or {})
    for name in evaluation.in_order():
        evaluation.evaluate(name, config, target_config)
    if evaluation.problems:
        raise SpecError(sorted(evaluation.problems, key=_position))
    return Dims(
        {name: evaluation.values[name] for name in dims if name in evaluation.values},
        {name: evaluation.reasons[name] for name in dims if name in evaluation.reasons},
    )


class _Evaluation:
    """The state of `evaluate_dims`; overridden dims have no expression any more."""

    def __init__(
        self, dims: Mapping[str, Expression], locations: Mapping[str, Location], overrides: Mapping[str, int]
    ) -> None:
        self._dims = {name: expression for name, expression in dims.items() if name not in overrides}
        self._locations = locations
        self._scope: dict[str, Value] = {}
        self.values: dict[str, int] = {}
        self.reasons: dict[str, str] = {}
        self.problems: list[Problem] = []
        for name, value in overrides.items():
            if name in dims:
                self._keep(name, value, "given on its own", None)
            else:
                what = f"a value is given for {printable(name)}, and no dim is called that"
                self.problems.append(Problem(what, None, _nearest(name, dims)))

    def in_order(self) -> Iterator[str]:
        """The dims, each after those that it uses; dims in a circle, and dims that use them, are left out."""
        known = {*self._dims, *self._scope}
        waiting_for = {name: expression.names() & known for name, expression in self._dims.items()}
        for name, expression in self._dims.items():
            for unknown in sorted(expression.names() - known):
                self._note(name, f"dims.{name}: no dim is called {unknown}", _nearest(unknown, known))
        users: dict[str, list[str]] = {}
        for name, used in waiting_for.items():
            for other in used & self._dims.keys():
                users.setdefault(other, []).append(name)
        missing = {name: len(used & self._dims.keys()) for name, used in waiting_for.items()}
        ready = [name for name, count in missing.items() if count == 0]
        while ready:
            name = ready.pop()
            del missing[name]
            yield name
            for user in users.get(name, ()):
                missing[user] -= 1
                if missing[user] == 0:
                    ready.append(user)
        self._note_circles({name: waiting_for[name] & missing.keys() for name in missing})

    def _note_circles(self, waiting_for: Mapping[str, frozenset[str] | set[str]]) -> None:
        # Each of these waits for at least one other of them, so following the first leads into a circle.
        seen: set[str] = set()
        for start in waiting_for:
            path: dict[str, None] = {}
            name = start
            while name not in seen:
                seen.add(name)
                path[name] = None
                name = min(waiting_for[name])
            if name in path:
                steps = list(path)
                circle = " -> ".join([*steps[steps.index(name) :], name])
                self._note(name, f"dims.{name}: its value depends on itself: {circle}", "break the circle")

    def evaluate(
        self, name: str, config: Mapping[str, object] | None, target_config: Mapping[str, object] | None
    ) -> None:
        """Keeps the value of one dim, the reason why it has none, or the problem."""
        expression = self._dims[name]
        try:
            value = known_value(expression, Scope(self._scope, config, target_config))
        except SpecError as error:
            self._note(name, f"dims.{name}: {error}")
            self._scope[name] = Unresolved(f"{name} is not known")
            return
        if isinstance(value, Unresolved):
            # Whoever uses this dim hears of the first one that is missing, not of everything in between.
            is_first = all(self._scope.get(used) != value for used in expression.names())
            self._scope[name] = Unresolved(f"{name} is not known: {value.reason}") if is_first else value
            self.reasons[name] = value.reason
        else:
            self._keep(name, value, str(expression), self._locations.get(name))

    def _keep(self, name: str, value: Value, source: str, where: Location | None) -> None:
        if is_number(value) and isinstance(value, int) and 0 <= value <= LARGEST_MAGNITUDE:
            self._scope[name] = self.values[name] = value
            return
        what = f"dims.{name}: expected a whole number of at least 0, got {describe(value)} ({source})"
        self.problems.append(Problem(what, where, "write int(...) around it" if isinstance(value, float) else None))
        self._scope[name] = Unresolved(f"{name} is not known")

    def _note(self, name: str, what: str, hint: str | None = None) -> None:
        self.problems.append(Problem(what, self._locations.get(name), hint))


def _position(problem: Problem) -> tuple[int, int]:
    return (problem.where.line, problem.where.column) if isinstance(problem.where, Location) else (0, 0)


def _nearest(name: str, known: Iterable[str]) -> str | None:
    import difflib  # only a failure needs it

    close = difflib.get_close_matches(name, sorted(known), 1)
    if close:
        return f"did you mean {close[0]}?"
    return f"known are: {', '.join(sorted(known))}" if known else None
