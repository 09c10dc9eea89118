"""Text to an `Expression`: a tokenizer and a precedence parser, both by hand, so that nothing is ever executed."""

from __future__ import annotations

import re
from typing import NoReturn

from msgspec import Struct

from converters.arithmetic import LARGEST_MAGNITUDE
from converters.errors import Location, Problem, SpecError
from converters.expression_operators import OPERATORS, Binary, Item, Negation, Not, WholeNumber
from converters.expressions import ConfigKey, Expression, Literal, Name, Precedence
from converters.text import printable

MAX_EXPRESSION_LENGTH = 2000
"""Characters; the longest that anybody writes has a tenth."""

MAX_EXPRESSION_DEPTH = 64
"""Levels of parentheses and of operators in a row, so that every walk over the tree may recurse."""

RESERVED_WORDS = frozenset({"and", "or", "not", "in", "int", "true", "false", "null", "config", "target_config"})
"""Words with a meaning of their own, which no dim can have for a name."""

_LONGEST_NUMBER = 40

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
      | (?P<number>[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<text>'[^']*'|"[^"]*")
      | (?P<symbol>//|==|!=|<=|>=|[-+*/%<>().\[\]])""",
    re.VERBOSE,
)
_CONSTANTS: dict[str, bool | None] = {"true": True, "false": False, "null": None}
_INSTEAD = {
    "True": "write true",
    "False": "write false",
    "None": "write null",
    "=": "write == to compare",
    "&": "write and",
    "|": "write or",
    "!": "write not, or != to compare",
    "*": "there are no powers; multiply",
    "[": "only a list of the config has items, as in config.layer_types[i]",
    "'": "a text ends with the quote that it begins with",
    '"': "a text ends with the quote that it begins with",
}


def parse_expression(text: str, location: Location | None = None) -> Expression:
    """Reads an expression such as `config.head_dim or config.hidden_size // H`.

    Args:
        text: the expression.
        location: where it begins in a file, for messages.

    Raises:
        SpecError: it is not one; says at which column, and what was expected there.
    """
    return _Parser(text, location).parse()


def is_dim_name(text: str) -> bool:
    """Whether a dim can have this name: ASCII letters, digits and underscores, and no word of the language."""
    return text.isascii() and text.isidentifier() and text not in RESERVED_WORDS


class _Token(Struct, frozen=True):
    kind: str
    text: str
    column: int


class _Parsed(Struct, frozen=True):
    """An expression, and how many levels it has."""

    expression: Expression
    depth: int


class _Parser:
    def __init__(self, text: str, location: Location | None) -> None:
        self._text = text
        self._location = location
        self._tokens: list[_Token] = []
        self._next = 0
        self._level = 0

    def parse(self) -> Expression:
        if len(self._text) > MAX_EXPRESSION_LENGTH:
            what = f"the expression has {len(self._text)} characters, and at most {MAX_EXPRESSION_LENGTH} are read"
            raise SpecError(Problem(what, self._location, "give parts of it a name under dims:"))
        self._tokenize()
        parsed = self._operators(Precedence.OR)
        if self._peek().kind != "end":
            self._refuse("an operator or the end")
        return parsed.expression

    def _tokenize(self) -> None:
        position = 0
        while position < len(self._text):
            match = _TOKEN.match(self._text, position)
            if match is None:
                self._tokens.append(_Token("unknown", self._text[position], position + 1))
                break
            if match.lastgroup != "space":
                self._tokens.append(_Token(match.lastgroup or "", match.group(), position + 1))
            position = match.end()
        self._tokens.append(_Token("end", "", len(self._text) + 1))

    def _operators(self, lowest: Precedence) -> _Parsed:
        """An operand, and all operators after it that bind at least as tightly as `lowest`."""
        self._level += 1
        if self._level > MAX_EXPRESSION_DEPTH:
            self._refuse_depth()
        left = self._operand(lowest)
        while (operator := self._operator()) is not None and OPERATORS[operator] >= lowest:
            precedence = OPERATORS[operator]
            negated = self._peek().text == "not"
            self._next += 2 if negated else 1
            right = self._operators(Precedence(precedence + 1))
            left = self._deeper(Binary(operator, left.expression, right.expression), left, right)
            if negated:
                left = self._deeper(Not(left.expression), left)
            if precedence == Precedence.COMPARISON and OPERATORS.get(self._operator() or "") == precedence:
                self._refuse("'and', 'or' or the end", "comparisons don't chain: write a < b and b < c")
        self._level -= 1
        return left

    def _operator(self) -> str | None:
        token = self._peek()
        if token.text in OPERATORS:
            return token.text
        is_not_in = token.text == "not" and self._tokens[self._next + 1].text == "in"
        return "in" if is_not_in else None

    def _operand(self, lowest: Precedence) -> _Parsed:
        token = self._peek()
        if token.kind in ("number", "text"):
            self._next += 1
            return _Parsed(Literal(self._number(token) if token.kind == "number" else token.text[1:-1]), 1)
        if token.text == "not" and lowest > Precedence.NOT:
            self._refuse("a name, a config key, a number, a text or '('", "put '(not ...)' in parentheses")
        if token.kind == "word" and token.text not in OPERATORS and token.text not in _INSTEAD:
            return self._word(token)
        if token.text == "-":
            self._next += 1
            operand = self._operators(Precedence.NEGATION)
            return self._deeper(Negation(operand.expression), operand)
        if token.text == "(":
            return self._in_parentheses()
        return self._refuse("a name, a config key, a number, a text or '('")

    def _word(self, token: _Token) -> _Parsed:
        self._next += 1
        if token.text in _CONSTANTS:
            return _Parsed(Literal(_CONSTANTS[token.text]), 1)
        if token.text == "not":
            operand = self._operators(Precedence.NOT)
            return self._deeper(Not(operand.expression), operand)
        if token.text == "int":
            inner = self._in_parentheses()
            return self._deeper(WholeNumber(inner.expression), inner)
        if token.text in ("config", "target_config"):
            path = self._path()
            if not path:
                self._refuse("'.' and a key", f"such as {token.text}.hidden_size")
            return self._items(ConfigKey("config" if token.text == "config" else "target_config", path))
        if self._peek().text == "(":
            self._refuse("an operator or the end", "the only function is int()")
        if self._peek().text == ".":
            self._refuse("an operator or the end", f"only config and target_config have keys: config.{token.text}")
        return _Parsed(Name(token.text), 1)

    def _items(self, key: ConfigKey) -> _Parsed:
        found = _Parsed(key, 1)
        while self._peek().text == "[":
            opening = self._peek()
            self._next += 1
            number = self._operators(Precedence.OR)
            if self._peek().text != "]":
                self._refuse(f"']' for the '[' at column {opening.column}")
            self._next += 1
            found = self._deeper(Item(found.expression, number.expression), found, number)
        return found

    def _path(self) -> tuple[str, ...]:
        keys: list[str] = []
        while self._peek().text == ".":
            self._next += 1
            key = self._peek()
            if key.kind != "word":
                self._refuse("the name of a key")
            keys.append(key.text)
            self._next += 1
        return tuple(keys)

    def _in_parentheses(self) -> _Parsed:
        if self._peek().text != "(":
            self._refuse("'('")
        opening = self._peek()
        self._next += 1
        inner = self._operators(Precedence.OR)
        if self._peek().text != ")":
            self._refuse(f"')' for the '(' at column {opening.column}")
        self._next += 1
        return inner

    def _deeper(self, expression: Expression, *operands: _Parsed) -> _Parsed:
        depth = 1 + max(operand.depth for operand in operands)
        if depth > MAX_EXPRESSION_DEPTH:
            self._refuse_depth()
        return _Parsed(expression, depth)

    def _number(self, token: _Token) -> int | float:
        following = self._peek()
        ends_at = token.column + len(token.text)
        if following.column == ends_at and (following.kind in ("word", "number") or following.text == "."):
            self._refuse("an operator or the end", "a number is written as 12, 0.5 or 1e-5")
        if len(token.text) > _LONGEST_NUMBER:
            return self._refuse_number(token, "the number is too long")
        if token.text.isdigit():
            if len(token.text) > 1 and token.text.startswith("0"):
                return self._refuse_number(token, "a number can't begin with 0")
            value: int | float = int(token.text)
            return (
                value
                if value <= LARGEST_MAGNITUDE
                else self._refuse_number(token, "the number does not fit in 64 bits")
            )
        value = float(token.text)
        return value if value != float("inf") else self._refuse_number(token, "the number does not fit in 64 bits")

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _refuse_depth(self) -> NoReturn:
        what = f"more than {MAX_EXPRESSION_DEPTH} levels of operators and parentheses"
        raise SpecError(self._problem(what, self._peek(), "give parts of it a name under dims:"))

    def _refuse_number(self, token: _Token, what: str) -> NoReturn:
        raise SpecError(self._problem(what, token, None))

    def _refuse(self, expected: str, hint: str | None = None) -> NoReturn:
        token = self._peek()
        got = "the end" if token.kind == "end" else f"'{printable(token.text, _LONGEST_NUMBER)}'"
        raise SpecError(self._problem(f"expected {expected}, got {got}", token, hint or _INSTEAD.get(token.text)))

    def _problem(self, what: str, token: _Token, hint: str | None) -> Problem:
        shown = printable(self._text, MAX_EXPRESSION_LENGTH)
        before = printable(self._text[: token.column - 1], MAX_EXPRESSION_LENGTH)
        picture = f"{shown}\n    {' ' * len(before)}^"
        return Problem(f"column {token.column}: {what}", self._location, f"{picture} {hint}" if hint else picture)
