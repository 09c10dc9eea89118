"""The expressions of `dims:`, `when:` and config derivations, as a frozen tree: what all share, and its leaves.

`expression_operators` has what stands above the leaves; `expression_parser` makes them of text.

The language is closed: names, config keys, items of the config's lists, literals, arithmetic, comparison, `and`, `or`,
`not`, `in` and `int()`. It can't call or loop, so a spec from anywhere may be evaluated.

A value that isn't there is never guessed. A config key that is absent or null is None: `or` passes over it, `==` and
`not` may ask for it, and arithmetic with it gives `Unresolved`, which carries the reason to whoever needs the value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Literal as OneOf
from typing import TypeAlias

from msgspec import Struct

from converters.arithmetic import check_size
from converters.expression_scope import Scope, Unresolved, Value

__all__ = ["ConfigKey", "Expression", "Literal", "Name", "Precedence", "Scope", "Unresolved", "Value", "known_value"]

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


class Expression(Struct, frozen=True):
    """An expression; `str()` gives text that parses back to an equal one."""

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


class Literal(Expression, frozen=True):
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


class Name(Expression, frozen=True):
    """A plain name: a dim."""

    name: str

    def __str__(self) -> str:
        return self.name

    def value_in(self, scope: Scope) -> Value:
        """What the scope says."""
        return scope.names[self.name] if self.name in scope.names else Unresolved(f"no dim is called {self.name}")


class ConfigKey(Expression, frozen=True):
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
