"""Which indices a rule is for: lists of the config, and conditions that look at the indices of a match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from converters.errors import Location, SpecError
from converters.expressions import Expression, Scope, Unresolved, Value
from converters.text import printable


class Condition(Struct, frozen=True, eq=False):
    """A `when:` that looks at a rule's placeholders, and is decided for each of its matches."""

    expression: Expression
    scope: Scope
    path: str = ""
    location: Location | None = None

    def holds(self, binding: Mapping[str, int | str]) -> bool:
        """Whether the rule is on for these values of its placeholders.

        Raises:
            SpecError: that can't be decided.
        """
        names: dict[str, Value] = {**self.scope.names, **binding}
        value = self.expression.evaluate(names, self.scope.config, self.scope.target_config)
        if isinstance(value, Unresolved):
            at = ", ".join(f"{name}={printable(str(each))}" for name, each in binding.items())
            what = f"{self.path}: 'when: {self.expression}' can't be decided for {at}: {value.reason}"
            raise SpecError(what, self.location)
        return bool(value)

    def needs(self) -> frozenset[str]:
        """The placeholders that it looks at."""
        return self.expression.names() - self.scope.names.keys()


def listed_indices(expression: Expression, name: str, scope: Scope, *, is_known: bool) -> tuple[int, ...] | None:
    """The indices that a list of the config gives; None where there is no config at all.

    Args:
        expression: the list.
        name: the placeholder that it is for.
        scope: what the expression sees.
        is_known: whether there is a config.

    Raises:
        SpecError: it isn't there, or is no list of different whole numbers.
    """
    value = expression.value_in(scope)
    if value is None and is_known:
        value = Unresolved(expression.why_none(scope))
    if value is None or isinstance(value, Unresolved):
        if is_known and isinstance(value, Unresolved):
            raise SpecError(f"the indices of {{{name}}} need {expression}: {value.reason}")
        return None
    if isinstance(value, Sequence) and not isinstance(value, str):
        found = [each for each in value if isinstance(each, int) and not isinstance(each, bool) and each >= 0]
        if len(found) == len(value) == len(set(found)):
            return tuple(found)
    what = f"{expression} is {printable(repr(value))}, and must list the indices of {{{name}}}"
    raise SpecError(what, None, "a list of different whole numbers")
