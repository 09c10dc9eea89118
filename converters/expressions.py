"""The expressions of `dims:`, `when:` and config derivations, as a frozen tree; `expression_parser` makes them of text.

The language is closed: names, config keys, items of the config's lists, literals, arithmetic, comparison, `and`, `or`,
`not`, `in` and `int()`. It can't call or loop, so a spec from anywhere may be evaluated.

A value that isn't there is never guessed. A config key that is absent or null is None: `or` passes over it, `==` and
`not` may ask for it, and arithmetic with it gives `Unresolved`, which carries the reason to whoever needs the value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal as OneOf
from typing import TypeAlias

from converters.arithmetic import check_size, compute, contains, equal, in_order, item_of, negate, to_whole_number
from converters.expression_scope import Scope, Unresolved, Value

__all__ = [
    "OPERATORS",
    "Binary",
    "ConfigKey",
    "Expression",
    "Item",
    "Literal",
    "Name",
    "Negation",
    "Not",
    "Precedence",
    "Scope",
    "Unresolved",
    "Value",
    "WholeNumber",
    "known_value",
]

ConfigName: TypeAlias = OneOf["config", "target_config"]


class Precedence(IntEnum):
    """How tightly an operator binds; a higher value binds tighter."""

    OR = 1
    AND = 2
    NOT = 3
    COMPARISON = 4
    SUM = 5
    PRODUCT = 6
    NEGATION = 7
    ATOM = 8


OPERATORS: dict[str, Precedence] = {
    "or": Precedence.OR,
    "and": Precedence.AND,
    **dict.fromkeys(("==", "!=", "<", "<=", ">", ">=", "in"), Precedence.COMPARISON),
    **dict.fromkeys(("+", "-"), Precedence.SUM),
    **dict.fromkeys(("*", "/", "//", "%"), Precedence.PRODUCT),
}
"""The operators between two operands. Equals bind to the left; comparisons don't chain."""


class Expression:
    """An expression; `str()` gives text that parses back to an equal one."""

    __slots__ = ()

    def evaluate(
        self,
        names: Mapping[str, Value],
        config: Mapping[str, object] | None,
        target_config: Mapping[str, object] | None = None,
    ) -> Value:
        """The value: None for a config key that is absent or null, `Unresolved` for what can't be known.

        Args:
            names: the values of plain names, each of which may itself be `Unresolved`.
            config: the source's config.json; None when there is none, which leaves its keys unresolved.
            target_config: likewise, the config that the target gets.

        Raises:
            SpecError: an operator doesn't apply to its operands (text in arithmetic, a division by zero), or a
                number doesn't fit in 64 bits.
        """
        return self.value_in(Scope(names, config, target_config))

    def names(self) -> frozenset[str]:
        """The plain names that it uses."""
        return frozenset(part.name for part in self.parts() if isinstance(part, Name))

    def config_keys(self) -> frozenset[str]:
        """The config keys that it uses, such as `config.num_attention_heads` or `target_config.block`."""
        return frozenset(str(part) for part in self.parts() if isinstance(part, ConfigKey))

    def swap_configs(self) -> Expression:
        """The same expression with `config` and `target_config` exchanged; its own inverse."""
        return self

    def parts(self) -> Iterator[Expression]:
        """This expression and everything below it."""
        yield self
        for operand in self.operands():
            yield from operand.parts()

    def operands(self) -> tuple[Expression, ...]:
        """The expressions directly below it."""
        return ()

    def precedence(self) -> Precedence:
        """How tightly its parts hold together."""
        return Precedence.ATOM

    def value_in(self, scope: Scope) -> Value:
        """`evaluate` with its arguments in one."""
        raise NotImplementedError

    def why_none(self, scope: Scope) -> str:
        """Why its value in `scope` is None: which config keys have no value."""
        keys = [part for part in self.parts() if isinstance(part, ConfigKey) and part.value_in(scope) is None]
        if len(keys) == 1:
            return keys[0].why_none(scope)
        return f"none of {', '.join(map(str, keys))} has a value" if keys else f"{self} is null"


def known_value(expression: Expression, scope: Scope) -> Value:
    """The value of an expression where a value is needed: None becomes `Unresolved`."""
    value = expression.value_in(scope)
    return Unresolved(expression.why_none(scope)) if value is None else value


def _bound(expression: Expression, at_least: Precedence) -> str:
    return str(expression) if expression.precedence() >= at_least else f"({expression})"


@dataclass(frozen=True, slots=True, eq=False)
class Literal(Expression):
    """A number that isn't negative, a text that doesn't hold both kinds of quotes, true, false or null."""

    value: bool | int | float | str | None

    def __eq__(self, other: object) -> bool:
        # 1, 1.0 and true are equal to Python and different here.
        return isinstance(other, Literal) and type(self.value) is type(other.value) and self.value == other.value

    def __hash__(self) -> int:
        return hash((type(self.value), self.value))

    def __str__(self) -> str:
        if isinstance(self.value, str):
            return f'"{self.value}"' if "'" in self.value else f"'{self.value}'"
        if self.value is None:
            return "null"
        return str(self.value).lower() if isinstance(self.value, bool) else repr(self.value)

    def value_in(self, scope: Scope) -> Value:  # noqa: ARG002 - a constant needs nothing
        """The constant."""
        return self.value


@dataclass(frozen=True, slots=True)
class Name(Expression):
    """A plain name: a dim."""

    name: str

    def __str__(self) -> str:
        return self.name

    def value_in(self, scope: Scope) -> Value:
        """What the scope says."""
        return scope.names[self.name] if self.name in scope.names else Unresolved(f"no dim is called {self.name}")


@dataclass(frozen=True, slots=True)
class ConfigKey(Expression):
    """A value of a config, by its path through nested mappings."""

    config: ConfigName
    path: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join((self.config, *self.path))

    def swap_configs(self) -> ConfigKey:
        """The same path in the other config."""
        return ConfigKey("target_config" if self.config == "config" else "config", self.path)

    def value_in(self, scope: Scope) -> Value:
        """The config's value; numbers are checked here once, since JSON can hold any."""
        found = self._lookup(scope, self.path)
        if isinstance(found, bool | str | Sequence | Mapping | Unresolved) or found is None:
            return found
        return check_size(found, str(self)) if isinstance(found, int | float) else None

    def why_none(self, scope: Scope) -> str:
        """Whether the key is absent or null."""
        place = "config.json" if self.config == "config" else "the target's config"
        parent = self._lookup(scope, self.path[:-1])
        is_null = isinstance(parent, Mapping) and self.path[-1] in parent
        return f"{self} is {'null' if is_null else 'not'} in {place}"

    def _lookup(self, scope: Scope, path: tuple[str, ...]) -> object:
        found: object = scope.config if self.config == "config" else scope.target_config
        if found is None:
            missing = "config.json" if self.config == "config" else "config of the target"
            return Unresolved(f"{self} is not known, since there is no {missing}")
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found


@dataclass(frozen=True, slots=True)
class Item(Expression):
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


@dataclass(frozen=True, slots=True)
class _Unary(Expression):
    operand: Expression

    def operands(self) -> tuple[Expression, ...]:
        """Its only one."""
        return (self.operand,)

    def swap_configs(self) -> Expression:
        """The same with its operand swapped."""
        return type(self)(self.operand.swap_configs())


@dataclass(frozen=True, slots=True)
class Not(_Unary):
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


@dataclass(frozen=True, slots=True)
class Negation(_Unary):
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


@dataclass(frozen=True, slots=True)
class WholeNumber(_Unary):
    """`int(x)`."""

    def __str__(self) -> str:
        return f"int({self.operand})"

    def value_in(self, scope: Scope) -> Value:
        """The nearest whole number when it is within 1e-9, else the next one below; see `to_whole_number`."""
        value = known_value(self.operand, scope)
        return value if isinstance(value, Unresolved) else to_whole_number(value, str(self))


@dataclass(frozen=True, slots=True)
class Binary(Expression):
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
