"""The arithmetic that a key may carry, in the one form that can be undone: `(a*i + b)`, or that `// c` or `% c`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal as OneOf

from msgspec import Struct

from converters.errors import Location, SpecError
from converters.expression_operators import Binary, Negation
from converters.expressions import Expression, Literal, Name


class IndexForm(Struct, frozen=True, gc=False):
    """`factor * i + offset`, divided by `divisor` or reduced modulo it where `operator` says so."""

    factor: int = 1
    offset: int = 0
    operator: OneOf["", "//", "%"] = ""
    divisor: int = 1

    @property
    def plain(self) -> bool:
        """Whether it is the placeholder itself."""
        return self == PLAIN

    def value(self, index: int) -> int:
        """The number that stands in the key for this index."""
        inner = self.factor * index + self.offset
        return inner // self.divisor if self.operator == "//" else inner % self.divisor if self.operator else inner


PLAIN = IndexForm()
"""The placeholder itself."""


def index_form(
    expression: Expression, placeholder: str, dims: Mapping[str, int], location: Location | None
) -> IndexForm:
    """The form of a placeholder's expression, with the values of the dims put in.

    Raises:
        SpecError: it can't be undone, or uses a name whose value isn't known.
    """
    if isinstance(expression, Binary) and expression.operator in ("//", "%"):
        factor, offset = _affine(expression.left, placeholder, dims, location)
        zero, divisor = _affine(expression.right, placeholder, dims, location)
        if zero or divisor < 1:
            raise SpecError(f"{{{expression}}} must divide by a positive number", location)
        form = IndexForm(factor, offset, "//" if expression.operator == "//" else "%", divisor)
    else:
        form = IndexForm(*_affine(expression, placeholder, dims, location))
    if form.factor == 0:
        raise SpecError(f"{{{expression}}} doesn't depend on {placeholder}", location)
    return form


def _affine(
    expression: Expression, placeholder: str, dims: Mapping[str, int], location: Location | None
) -> tuple[int, int]:
    match expression:
        case Name(name) if name == placeholder:
            return 1, 0
        case Name(name):
            if name not in dims:
                raise SpecError(f"the value of {name}, which {{{expression}}} needs, isn't known", location)
            return 0, dims[name]
        case Literal(value) if isinstance(value, int) and not isinstance(value, bool):
            return 0, value
        case Negation(operand):
            factor, offset = _affine(operand, placeholder, dims, location)
            return -factor, -offset
        case Binary(operator, left, right) if operator in ("+", "-"):
            sign = 1 if operator == "+" else -1
            (factor, offset), (other, more) = (_affine(side, placeholder, dims, location) for side in (left, right))
            return factor + sign * other, offset + sign * more
        case Binary("*", left, right):
            (factor, offset), (other, more) = (_affine(side, placeholder, dims, location) for side in (left, right))
            if not factor or not other:
                return factor * more + other * offset, offset * more
    raise SpecError(
        f"{{{expression}}} can't be undone", location, "use a*i + b, or that // c together with the same % c in one key"
    )


def solve_index(occurrences: list[tuple[IndexForm, int]]) -> int | None:
    """The index that gives all these numbers; None where there is none, or where they leave several."""
    found = None
    for form, value in occurrences:
        inner: int | None = None
        if not form.operator:
            inner = value
        elif form.operator == "//":
            same = (form.factor, form.offset, form.divisor)
            for other, remainder in occurrences:
                if other.operator == "%" and (other.factor, other.offset, other.divisor) == same:
                    inner = value * form.divisor + remainder
        if inner is not None:
            index, rest = divmod(inner - form.offset, form.factor)
            if rest or index < 0:
                return None
            found = index
            break
    if found is None or any(form.value(found) != value for form, value in occurrences):
        return None
    return found


def is_solvable(forms: list[IndexForm]) -> bool:
    """Whether the index can be worked out from a key with these forms in it."""
    if any(not form.operator for form in forms):
        return True
    halves = {(form.operator, form.factor, form.offset, form.divisor) for form in forms}
    return any(operator == "//" and ("%", *rest) in halves for operator, *rest in halves)
