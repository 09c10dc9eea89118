"""Expressions: reading, printing, evaluating against Python's own arithmetic, refusals to the letter; and dims."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.dims import Dims, Expression, Unresolved, Value, evaluate_dims, is_dim_name, parse_expression
from converters.errors import Location, SpecError
from converters.expression_operators import OPERATORS, Binary, Negation, Not, WholeNumber
from converters.expressions import ConfigKey, Literal, Name

PLACE = Location("s.yaml", 7, 6)

CONFIG: dict[str, object] = {
    "hidden_size": 2560,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "partial_rotary_factor": 0.4,
    "rope_parameters": {"rope_theta": 10000.0},
    "tie_word_embeddings": False,
    "model_type": "phi",
    "layer_types": ["full", "sliding"],
}


def value(text: str, names: dict[str, Value] | None = None, config: Any = CONFIG, target: Any = None) -> Value:
    return parse_expression(text).evaluate(names or {}, config, target)


def refusal(text: str, names: dict[str, Value] | None = None) -> str:
    with pytest.raises(SpecError) as caught:
        parse_expression(text, PLACE).evaluate(names or {}, CONFIG, None)
    return str(caught.value)


# Evaluating


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("config.hidden_size // config.num_attention_heads", 80),
        ("config.num_key_value_heads or config.num_attention_heads", 32),
        ("config.head_dim or config.hidden_size // H", 80),
        ("config.rope_parameters.rope_theta", 10000.0),
        ("config.rope_parameters.absent.deeper", None),
        ("config.model_type.deeper", None),
        ("config.num_key_value_heads", None),
        ("config.num_key_value_heads == null", True),
        ("config.absent != null", False),
        ("not config.absent", True),
        ("config.tie_word_embeddings or 3", 3),
        ("config.tie_word_embeddings and 3", False),
        ("config.model_type == 'phi' and H == 32", True),
        ('config.model_type in config.layer_types or "full" in config.layer_types', True),
        ("'full' not in config.layer_types", False),
        ("config.layer_types[1] == 'sliding'", True),
        ("config.layer_types[H - 32]", "full"),
        ("config.layer_types[config.absent or 0]", "full"),
        ("not 'x' in config.layer_types", True),
        ("2 + 3 * 4 - 1", 13),
        ("(2 + 3) * 4", 20),
        ("10 - 4 - 3", 3),
        ("7 // 2 * 2", 6),
        ("-7 // 2", -4),
        ("7 / 2 / 2", 1.75),
        ("8 / 2", 4.0),
        ("32 * 32 / config.hidden_size", 0.4),
        ("-7 % 4", 1),
        ("- - 5", 5),
        ("1 == true", False),
        ("0 == false", False),
        ("1 == 1.0", True),
        ("'a' < 'b'", True),
        ("1 in config.layer_types", False),
        ("int(config.partial_rotary_factor * 80)", 32),
        ("int(0.4 * 81)", 32),
        ("int(31.9999999999)", 32),
        ("int(31.99)", 31),
        ("int(-0.5)", -1),
        ("int(5)", 5),
        ("1e3", 1000.0),
        ("null or 'x'", "x"),
    ],
)
def test_values(text: str, expected: object) -> None:
    result = value(text, {"H": 32})
    assert (type(result), result) == (type(expected), expected)


@pytest.mark.parametrize("factor", [0.1, 0.25, 0.3, 0.4, 0.5, 0.75])
def test_int_of_a_product_is_what_was_meant(factor: float) -> None:
    hundredths = round(factor * 100)
    for whole in range(257):
        assert value(f"int({factor} * {whole})") == hundredths * whole // 100


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("config.absent + 1", "config.absent is not in config.json"),
        ("config.num_key_value_heads * 2", "config.num_key_value_heads is null in config.json"),
        ("config.rope_parameters.absent - 1", "config.rope_parameters.absent is not in config.json"),
        ("1 + (config.a or config.b)", "none of config.a, config.b has a value"),
        ("1 + (config.a and 2)", "config.a is not in config.json"),
        ("null + 1", "null is null"),
        ("-config.absent", "config.absent is not in config.json"),
        ("int(config.absent)", "config.absent is not in config.json"),
        ("config.absent < 3", "config.absent is not in config.json"),
        ("1 in config.absent", "config.absent is not in config.json"),
        ("config.absent + 1 == 2", "config.absent is not in config.json"),
        ("config.absent + 1 or 2", "config.absent is not in config.json"),
        ("not (config.absent + 1)", "config.absent is not in config.json"),
        ("target_config.block", "target_config.block is not known, since there is no config of the target"),
        ("H + 1", "no dim is called H"),
    ],
)
def test_what_is_not_there_is_not_guessed(text: str, reason: str) -> None:
    assert value(text) == Unresolved(reason)


def test_without_a_config_its_keys_are_not_known_and_not_merely_absent() -> None:
    assert value("config.a or 3", config=None) == Unresolved("config.a is not known, since there is no config.json")
    assert value("config.a or 3", config={}) == 3
    assert value("target_config.a + 1", target={}) == Unresolved("target_config.a is not in the target's config")
    assert value("target_config.a + 1", target={"a": 2}) == 3


def test_what_is_not_needed_is_not_evaluated() -> None:
    assert value("3 or 1 // 0") == 3
    assert value("0 and 1 // 0") == 0


def test_an_unresolved_value_is_no_condition() -> None:
    with pytest.raises(TypeError, match=r"neither true nor false: config\.a is not in config\.json"):
        bool(Unresolved("config.a is not in config.json"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 // 0", "1 // 0: division of 1 by zero"),
        ("config.hidden_size % (H - H)", "config.hidden_size % (H - H): division of 2560 by zero"),
        ("1.5 // 0.0", "1.5 // 0.0: division of 1.5 by zero"),
        ("1 / 0", "1 / 0: division of 1 by zero"),
        ("config.model_type + 1", "config.model_type + 1: + needs numbers, got the text 'phi'"),
        ("1 * config.tie_word_embeddings", "1 * config.tie_word_embeddings: * needs numbers, got false"),
        ("config.layer_types * 1000", "config.layer_types * 1000: * needs numbers, got a list"),
        ("-config.rope_parameters", "-config.rope_parameters: - needs numbers, got a mapping"),
        ("int(config.model_type)", "int(config.model_type): int() needs numbers, got the text 'phi'"),
        ("1 < 'a'", "1 < 'a': < needs two numbers or two texts, got 1 and the text 'a'"),
        ("true < 2", "true < 2: < needs two numbers or two texts, got true and 2"),
        ("1 in 'a'", "1 in 'a': 'in' needs a list on its right side, got the text 'a'"),
        ("4294967296 * 4294967296", "4294967296 * 4294967296 is a number that does not fit in 64 bits"),
        ("int(1e300)", "int(1e+300) is a number that does not fit in 64 bits"),
        ("1e300 * 1e300", "1e+300 * 1e+300 is not a finite number"),
        ("-1e300 // 1e-300", "-1e+300 // 1e-300 is not a finite number"),
        ("1e300 / 1e-300", "1e+300 / 1e-300 is not a finite number"),
    ],
)
def test_refused_operations(text: str, expected: str) -> None:
    assert refusal(text, {"H": 32}) == expected


@pytest.mark.parametrize(
    "number", [2**64, -(2**70), pytest.param(10**5000, id="5000 digits"), math.inf, -math.inf, math.nan]
)
def test_a_config_may_hold_any_number(number: float) -> None:
    with pytest.raises(SpecError, match=r"^config\.n is "):
        value("config.n", config={"n": number})


# Reading and printing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "column 1: expected a name, a config key, a number, a text or '(', got the end"),
        ("a b", "column 3: expected an operator or the end, got 'b'"),
        ("a +", "column 4: expected a name, a config key, a number, a text or '(', got the end"),
        ("+ a", "column 1: expected a name, a config key, a number, a text or '(', got '+'"),
        ("(a + b", "column 7: expected ')' for the '(' at column 1, got the end"),
        ("a)", "column 2: expected an operator or the end, got ')'"),
        ("a < b < c", "column 7: expected 'and', 'or' or the end, got '<'"),
        ("a == not b", "column 6: expected a name, a config key, a number, a text or '(', got 'not'"),
        ("a & b", "column 3: expected an operator or the end, got '&'"),
        ("a ** b", "column 4: expected a name, a config key, a number, a text or '(', got '*'"),
        ("a = b", "column 3: expected an operator or the end, got '='"),
        ("a || b", "column 3: expected an operator or the end, got '|'"),
        ("True", "column 1: expected a name, a config key, a number, a text or '(', got 'True'"),
        ("config", "column 7: expected '.' and a key, got the end"),
        ("config.", "column 8: expected the name of a key, got the end"),
        ("H[0]", "column 2: expected an operator or the end, got '['"),
        ("config.layers[", "column 15: expected a name, a config key, a number, a text or '(', got the end"),
        ("config.layers[0", "column 16: expected ']' for the '[' at column 14, got the end"),
        ("config.layers[]", "column 15: expected a name, a config key, a number, a text or '(', got ']'"),
        ("a.b", "column 2: expected an operator or the end, got '.'"),
        ("__import__('os')", "column 11: expected an operator or the end, got '('"),
        ("int 3", "column 5: expected '(', got '3'"),
        ("'abc", "column 1: expected a name, a config key, a number, a text or '(', got '''"),
        ("012", "column 1: a number can't begin with 0"),
        ("1_000", "column 2: expected an operator or the end, got '_000'"),
        ("1.", "column 2: expected an operator or the end, got '.'"),
        ("3x", "column 2: expected an operator or the end, got 'x'"),
        ("9223372036854775809", "column 1: the number does not fit in 64 bits"),
        ("1e999", "column 1: the number does not fit in 64 bits"),
        ("9" * 5000, "the expression has 5000 characters, and at most 2000 are read"),
        ("9" * 1000, "column 1: the number is too long"),
        ("a\x1b[2J", r"column 2: expected an operator or the end, got '\x1b'"),
        ("lambda: 0", "column 7: expected an operator or the end, got ':'"),
    ],
)
def test_refused_texts(text: str, expected: str) -> None:
    assert refusal(text).splitlines()[0] == f"s.yaml:7:6: {expected}"


def test_a_refusal_shows_the_place_and_what_to_write() -> None:
    assert refusal("config.hidden_size = H") == (
        "s.yaml:7:6: column 20: expected an operator or the end, got '='\n"
        "    config.hidden_size = H\n"
        "                       ^ write == to compare"
    )
    assert refusal("a\n+") == (
        "s.yaml:7:6: column 4: expected a name, a config key, a number, a text or '(', got the end\n"
        "    a\\x0a+\n"
        "          ^"
    )


@pytest.mark.parametrize(
    "bomb",
    [
        "(" * 30_000,
        "(" * 1000 + "1" + ")" * 999,
        "(" * 65 + "1" + ")" * 65,
        "not " * 400 + "a",
        "-" * 1900 + "a",
        "+".join("a" * 900),
        "a or " * 390 + "a",
        "a or a and a==a+a*(" * 90 + "a",
        "int(" * 400,
    ],
)
def test_bombs_are_refused(bomb: str) -> None:
    with pytest.raises(SpecError, match=r"more than 64 levels|at most 2000 are read"):
        parse_expression(bomb)


def test_sixty_levels_are_fine() -> None:
    assert value("(" * 60 + "1" + ")" * 60) == 1
    assert value("+".join("1" * 60)) == 60


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("a - (b - c)", "a - (b - c)"),
        ("(a - b) - c", "a - b - c"),
        ("-(a * b)", "-(a * b)"),
        ("(not a) == b", "(not a) == b"),
        ("not (a == b)", "not a == b"),
        ("not (a in b)", "a not in b"),
        ("(a or b) and c", "(a or b) and c"),
        ('"it\'s"', '"it\'s"'),
        ('"x"', "'x'"),
        ("1e3", "1000.0"),
        ("int( config . x )", "int(config.x)"),
    ],
)
def test_printing(text: str, printed: str) -> None:
    assert str(parse_expression(text)) == printed


def test_what_an_expression_uses() -> None:
    expression = parse_expression("int(config.a.b * H) or not target_config.c and -G in config.a.b")
    assert expression.names() == {"H", "G"}
    assert expression.config_keys() == {"config.a.b", "target_config.c"}


def test_swapping_the_configs() -> None:
    expression = parse_expression("int(config.a * H) or not target_config.b and -config.c in config.d")
    swapped = expression.swap_configs()
    assert str(swapped) == "int(target_config.a * H) or not config.b and -target_config.c in target_config.d"
    assert swapped.swap_configs() == expression


def test_names_that_a_dim_can_have() -> None:
    assert all(is_dim_name(name) for name in ("H", "head_dim", "_x", "E2"))
    assert not any(is_dim_name(name) for name in ("", "2E", "a.b", "a-b", "or", "int", "config", "true", "é"))


def test_equal_means_of_the_same_type() -> None:
    assert len({Literal(constant) for constant in (1, 1.0, True, 1)}) == 3


# Properties

IDENTIFIERS = st.sampled_from(["a", "b", "c", "H", "head_dim"])
LITERALS = (
    st.none()
    | st.booleans()
    | st.integers(0, 2**63)
    | st.floats(0, allow_nan=False, allow_infinity=False)
    | st.text(alphabet="ab '\n\x1bé").filter(lambda text: "'" not in text or '"' not in text)
).map(lambda literal: Literal(0.0 if literal == 0 and isinstance(literal, float) else literal))
CONFIG_KEYS = st.builds(
    ConfigKey, st.sampled_from(["config", "target_config"]), st.lists(IDENTIFIERS, min_size=1, max_size=3).map(tuple)
)


def trees(leaves: st.SearchStrategy[Expression], operators: list[str]) -> st.SearchStrategy[Expression]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.builds(Binary, st.sampled_from(operators), inner, inner)
            | st.builds(Not, inner)
            | st.builds(Negation, inner)
            | st.builds(WholeNumber, inner)
        ),
        max_leaves=12,
    )


@given(trees(LITERALS | CONFIG_KEYS | IDENTIFIERS.map(Name), list(OPERATORS)))
def test_printing_and_reading_give_the_same_tree(tree: Expression) -> None:
    assert parse_expression(str(tree)) == tree
    assert tree.swap_configs().swap_configs() == tree


def python_text(tree: Expression) -> str:
    """The tree as fully parenthesized Python, independent of how it prints itself."""
    operands = [python_text(operand) for operand in tree.operands()]
    match tree:
        case Binary(operator):
            return f"({operands[0]} {operator} {operands[1]})"
        case Not() | Negation() | WholeNumber():
            return f"({ {Not: 'not ', Negation: '-', WholeNumber: 'whole'}[type(tree)] }({operands[0]}))"
        case ConfigKey(config, (key,)):
            return f"{config}[{key!r}]"
    return repr(tree.value) if isinstance(tree, Literal) else str(tree)


NUMBERS = st.integers(0, 100) | st.sampled_from([0.5, 0.25, 2.0, 12.75])
NUMBER_LEAVES = (
    NUMBERS.map(Literal)
    | st.sampled_from(["a", "b"]).map(Name)
    | st.sampled_from(["config", "target_config"]).map(lambda config: ConfigKey(config, ("a",)))
)


@given(
    trees(NUMBER_LEAVES, ["or", "and", "+", "-", "*", "/", "//", "%", "==", "!=", "<", "<=", ">", ">="]),
    st.fixed_dictionaries({"a": NUMBERS, "b": NUMBERS}),
    NUMBERS,
    NUMBERS,
)
def test_arithmetic_agrees_with_python(
    tree: Expression, names: dict[str, Value], config_a: float, target_a: float
) -> None:
    # `eval` sees only text that `python_text` made of a tree that this test made.
    scope = {
        **names,
        "config": {"a": config_a},
        "target_config": {"a": target_a},
        "whole": lambda number: round(number) if abs(number - round(number)) < 1e-9 else math.floor(number),
    }
    try:
        result = parse_expression(str(tree)).evaluate(names, {"a": config_a}, {"a": target_a})
    except SpecError as error:
        text = str(error)
        if "needs" in text:  # true and false are numbers to Python only
            assert " true" in text or " false" in text
        elif "by zero" in text:
            with pytest.raises(ZeroDivisionError):
                eval(python_text(tree), scope)  # noqa: S307
        else:
            assert "does not fit" in text
        return
    expected = eval(python_text(tree), scope)  # noqa: S307
    if any(isinstance(part, Binary) and part.operator in ("==", "!=") for part in tree.parts()):
        return  # true == 1 to Python only
    assert (type(result), result) == (type(expected), expected)


@given(st.text() | st.text(alphabet="ab1.0'\"()+-*/%<>=! notiradcfge_", max_size=30))
def test_any_text_gives_an_expression_or_a_refusal(text: str) -> None:
    try:
        expression = parse_expression(text)
    except SpecError:
        return
    assert parse_expression(str(expression)) == expression
    try:
        expression.evaluate({"a": 1}, {"a": 2}, {})
    except SpecError:
        return


# Dims


def dims_of(texts: dict[str, str], config: Any = CONFIG, **overrides: int) -> Dims:
    expressions = {name: parse_expression(text) for name, text in texts.items()}
    places = {name: Location("s.yaml", line, 6) for line, name in enumerate(texts, 5)}
    return evaluate_dims(expressions, places, config, None, overrides)


def dims_refusal(texts: dict[str, str], **overrides: int) -> str:
    with pytest.raises(SpecError) as caught:
        dims_of(texts, **overrides)
    return str(caught.value)


PHI = {
    "R": "int(config.partial_rotary_factor * D)",
    "D": "config.head_dim or config.hidden_size // H",
    "G": "config.num_key_value_heads or H",
    "H": "config.num_attention_heads",
}


def test_dims_refer_to_each_other_in_any_order() -> None:
    assert dims_of(PHI) == Dims({"R": 32, "D": 80, "G": 32, "H": 32}, {})
    assert dims_of(PHI, H=16, R=0) == Dims({"R": 0, "D": 160, "G": 16, "H": 16}, {})


def test_a_dim_without_a_value_has_a_reason_and_is_no_error() -> None:
    found = dims_of({**PHI, "V": "config.vocab_size", "W": "V * 2", "X": "W + 1"}, {"num_attention_heads": 4})
    assert found == Dims(
        {"G": 4, "H": 4},
        {
            "R": "config.partial_rotary_factor is not in config.json",
            "D": "config.hidden_size is not in config.json",
            "V": "config.vocab_size is not in config.json",
            "W": "V is not known: config.vocab_size is not in config.json",
            "X": "V is not known: config.vocab_size is not in config.json",
        },
    )
    assert found.names()["H"] == 4
    assert found.names()["V"] == Unresolved("config.vocab_size is not in config.json")


def test_without_a_config_only_literals_have_values() -> None:
    found = dims_of({"A": "3", "B": "config.b or A"}, None)
    assert found == Dims({"A": 3}, {"B": "config.b is not known, since there is no config.json"})


def test_an_override_breaks_a_circle() -> None:
    assert dims_of({"A": "B", "B": "A"}, B=2) == Dims({"A": 2, "B": 2}, {})


def test_all_problems_of_dims_come_at_once() -> None:
    texts = {
        "A": "B",
        "B": "C + 1",
        "C": "A",
        "D": "A",
        "E": "E",
        "F": "headdim + 1",
        "head_dim": "80",
        "J": "head_dim * 0.5",
        "K": "config.tie_word_embeddings",
        "M": "0 - 1",
        "O": "1 // 0",
        "P": "O + 1",
        "Q": "config.model_type",
    }
    assert dims_refusal(texts, Z=3, head_dim=-1) == (
        "a value is given for Z, and no dim is called that\n"
        "    known are: A, B, C, D, E, F, J, K, M, O, P, Q, head_dim\n"
        "dims.head_dim: expected a whole number of at least 0, got -1 (given on its own)\n"
        "s.yaml:5:6: dims.A: its value depends on itself: A -> B -> C -> A\n"
        "    break the circle\n"
        "s.yaml:9:6: dims.E: its value depends on itself: E -> E\n"
        "    break the circle\n"
        "s.yaml:10:6: dims.F: no dim is called headdim\n"
        "    did you mean head_dim?\n"
        "s.yaml:13:6: dims.K: expected a whole number of at least 0, got false (config.tie_word_embeddings)\n"
        "s.yaml:14:6: dims.M: expected a whole number of at least 0, got -1 (0 - 1)\n"
        "s.yaml:15:6: dims.O: 1 // 0: division of 1 by zero\n"
        "s.yaml:17:6: dims.Q: expected a whole number of at least 0, got the text 'phi' (config.model_type)"
    )


def test_a_fraction_is_no_dim() -> None:
    assert dims_refusal({"J": "8 * 0.5"}) == (
        "s.yaml:5:6: dims.J: expected a whole number of at least 0, got 4.0 (8 * 0.5)\n    write int(...) around it"
    )


def test_a_chain_of_thousands() -> None:
    texts = {f"A{i}": f"A{i + 1}" for i in range(5000)}
    assert dims_of({**texts, "A5000": "7"}).values["A0"] == 7
    assert dims_of({**texts, "A5000": "config.x"}).reasons["A0"] == "A5000 is not known: config.x is not in config.json"
    assert "depends on itself: A0 -> A1" in dims_refusal({**texts, "A5000": "A0"})


# Items of lists


def test_an_item_that_a_list_does_not_have_is_unresolved() -> None:
    found = value("config.layer_types[2] == 'full'")
    assert isinstance(found, Unresolved)
    assert found.reason == "config.layer_types[2]: the list has 2 items, and none with the number 2"
    assert isinstance(value("config.layer_types[-1]"), Unresolved)
    missing = value("config.absent_types[0]")
    assert isinstance(missing, Unresolved)
    assert missing.reason == "config.absent_types is not in config.json"


def test_only_lists_have_items() -> None:
    assert "config.model_type[0]: the text 'phi' is no list" in refusal("config.model_type[0]")
    assert "is no whole number" in refusal("config.layer_types['full']")


def test_an_item_is_of_the_other_config_on_the_way_back() -> None:
    turned = parse_expression("config.layer_types[i] == 'full'").swap_configs()
    assert str(turned) == "target_config.layer_types[i] == 'full'"
    assert turned.names() == {"i"}
    assert turned.evaluate({"i": 0}, None, CONFIG) is True
