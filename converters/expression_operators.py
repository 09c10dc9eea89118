"""The expressions that are made of others: items of lists, signs, and operators between two operands."""

from __future__ import annotations

from converters.arithmetic import compute, contains, equal, in_order, item_of, negate, to_whole_number
from converters.expressions import Expression, Precedence, Scope, Unresolved, Value, known_value

OPERATORS: dict[str, Precedence] = {
    "or": Precedence.OR,
    "and": Precedence.AND,
    **dict.fromkeys(("==", "!=", "<", "<=", ">", ">=", "in"), Precedence.COMPARISON),
    **dict.fromkeys(("+", "-"), Precedence.SUM),
    **dict.fromkeys(("*", "/", "//", "%"), Precedence.PRODUCT),
}
"""The operators between two operands. Equals bind to the left; comparisons don't chain."""


def _bound(expression: Expression, at_least: Precedence) -> str:
    return str(expression) if expression.precedence() >= at_least else f"({expression})"


class Item(Expression, frozen=True):
    """One item of a list in a config, by its number from 0: `config.layer_types[i]`."""

    items: Expression
    number: Expression

    def __str__(self) -> str:
        return f"{self.items}[{self.number}]"

    def operands(self) -> tuple[Expression, ...]:
        """The list, and the number."""
        return (self.items, self.number)

    def swap_configs(self) -> Item:
        """The same with both of them swapped."""
        return Item(self.items.swap_configs(), self.number.swap_configs())

    def value_in(self, scope: Scope) -> Value:
        """The item; `Unresolved` where the list has none of this number."""
        items, number = known_value(self.items, scope), known_value(self.number, scope)
        if isinstance(items, Unresolved):
            return items
        return number if isinstance(number, Unresolved) else item_of(items, number, str(self))


class _Unary(Expression, frozen=True):
    operand: Expression

    def operands(self) -> tuple[Expression, ...]:
        """Its only one."""
        return (self.operand,)

    def swap_configs(self) -> Expression:
        """The same with its operand swapped."""
        return type(self)(self.operand.swap_configs())


class Not(_Unary, frozen=True):
    """`not x`."""

    def __str__(self) -> str:
        if isinstance(self.operand, Binary) and self.operand.operator == "in":
            return self.operand.text("not in")
        return f"not {_bound(self.operand, Precedence.NOT)}"

    def precedence(self) -> Precedence:
        """That of `not`."""
        return Precedence.NOT

    def value_in(self, scope: Scope) -> Value:
        """True or false, as in Python."""
        value = self.operand.value_in(scope)
        return value if isinstance(value, Unresolved) else not value


class Negation(_Unary, frozen=True):
    """`-x`."""

    def __str__(self) -> str:
        return f"-{_bound(self.operand, Precedence.NEGATION)}"

    def precedence(self) -> Precedence:
        """That of the sign."""
        return Precedence.NEGATION

    def value_in(self, scope: Scope) -> Value:
        """The number with the other sign."""
        value = known_value(self.operand, scope)
        return value if isinstance(value, Unresolved) else negate(value, str(self))


class WholeNumber(_Unary, frozen=True):
    """`int(x)`."""

    def __str__(self) -> str:
        return f"int({self.operand})"

    def value_in(self, scope: Scope) -> Value:
        """The nearest whole number when it is within 1e-9, else the next one below; see `to_whole_number`."""
        value = known_value(self.operand, scope)
        return value if isinstance(value, Unresolved) else to_whole_number(value, str(self))


class Binary(Expression, frozen=True):
    """Two operands, and one of `OPERATORS` between them."""

    operator: str
    left: Expression
    right: Expression

    def __str__(self) -> str:
        return self.text(self.operator)

    def text(self, symbol: str) -> str:
        """The expression with `symbol` for its operator."""
        own = self.precedence()
        tighter = Precedence(own + 1)
        left = _bound(self.left, tighter if own == Precedence.COMPARISON else own)
        return f"{left} {symbol} {_bound(self.right, tighter)}"

    def operands(self) -> tuple[Expression, ...]:
        """Both sides."""
        return (self.left, self.right)

    def precedence(self) -> Precedence:
        """That of its operator."""
        return OPERATORS[self.operator]

    def swap_configs(self) -> Binary:
        """The same with both operands swapped."""
        return Binary(self.operator, self.left.swap_configs(), self.right.swap_configs())

    def value_in(self, scope: Scope) -> Value:
        """The operator, applied; `and` and `or` give an operand as in Python, and leave the right one when they can."""
        if self.operator in ("or", "and"):
            left = self.left.value_in(scope)
            if isinstance(left, Unresolved) or bool(left) == (self.operator == "or"):
                return left
            return self.right.value_in(scope)
        takes_none = {"==": (True, True), "!=": (True, True), "in": (True, False)}.get(self.operator, (False, False))
        left, right = (
            side.value_in(scope) if none_is_fine else known_value(side, scope)
            for side, none_is_fine in zip(self.operands(), takes_none, strict=True)
        )
        if isinstance(left, Unresolved):
            return left
        return right if isinstance(right, Unresolved) else self._apply(left, right)

    def _apply(self, left: Value, right: Value) -> Value:
        if self.operator in ("==", "!="):
            return equal(left, right) == (self.operator == "==")
        if self.operator == "in":
            return contains(left, right, str(self))
        if self.precedence() == Precedence.COMPARISON:
            return in_order(self.operator, left, right, str(self))
        return compute(self.operator, left, right, str(self))
