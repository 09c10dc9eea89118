"""YAML to nodes with positions: values, refusals to the letter, bombs, and reading back what was written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from converters.errors import Location, SpecError
from converters.yaml_dump import dump_yaml
from converters.yaml_nodes import (
    MAX_YAML_BYTES,
    ListNode,
    MappingNode,
    Node,
    ScalarNode,
    load_yaml,
    load_yaml_file,
    to_plain,
)
from converters.yaml_scalars import AmbiguousScalarError, read_plain


def plain(text: str | bytes) -> object:
    return to_plain(load_yaml(text, "s.yaml"))


def refusal(text: str | bytes) -> str:
    with pytest.raises(SpecError) as caught:
        load_yaml(text, "s.yaml")
    return str(caught.value)


def both_parsers(monkeypatch: pytest.MonkeyPatch, parser: str) -> None:
    if parser == "python":
        monkeypatch.setattr(yaml, "CSafeLoader", yaml.SafeLoader, raising=False)


# Values


def test_a_document_of_every_kind() -> None:
    text = """\
        weightmap: 1                  # a comment
        rename:
          model.{i}.weight: "{i}.weight"
        list: [a, -5, 0.5, 1.0e-5, true, false, null, ~, 'no', "1e3"]
        nothing:
        block: |
          two
          lines
        """
    assert plain(text) == {
        "weightmap": 1,
        "rename": {"model.{i}.weight": "{i}.weight"},
        "list": ["a", -5, 0.5, 1e-5, True, False, None, None, "no", "1e3"],
        "nothing": None,
        "block": "two\nlines\n",
    }


def test_nodes_know_where_they_stand_and_how_they_were_written() -> None:
    node = load_yaml("é: 0.50\nb:\n  - '7'\n", "s.yaml")
    assert isinstance(node, MappingNode)
    assert node.get("é") == ScalarNode(0.5, "0.50", quoted=False, location=Location("s.yaml", 1, 4))
    assert node.get("absent") is None
    items = node.get("b")
    assert isinstance(items, ListNode)
    assert items.location == Location("s.yaml", 3, 3)
    assert items.items == (ScalarNode("7", "7", quoted=True, location=Location("s.yaml", 3, 5)),)
    assert node.entries[1][0].location == Location("s.yaml", 2, 1)


def test_texts_that_only_look_special_are_text() -> None:
    for text in (
        "1.2.3",
        "q_proj",
        "layers.0",
        "(H D) ...",
        "12 34",
        "-x",
        "0.5b",
        "nan",
        "infinity",
        "2024-01",
        "1:2x",
    ):
        assert read_plain(text) == text


def test_a_byte_order_mark_at_the_start_is_skipped() -> None:
    assert plain(b"\xef\xbb\xbfa: b") == {"a": "b"}


def test_aliases_share_a_node() -> None:
    assert plain("a: &x {b: [1, 2]}\nc: *x\n") == {"a": {"b": [1, 2]}, "c": {"b": [1, 2]}}


# Refusals, to the letter


@pytest.mark.parametrize(
    ("text", "meaning", "instead"),
    [
        ("no", "false", "false"),
        ("On", "true", "true"),
        ("y", "true", "true"),
        ("TRUE", "true", "true"),
        ("Null", "null", "null"),
        ("1e3", "a number", "1.0e+3"),
        ("-1E-5", "a number", "-1.0e-5"),
        ("1.0e5", "a number", "1.0e+5"),
        (".5", "a number", "0.5"),
        ("+5", "a number", "5"),
        ("1_000", "a number", "1000"),
        ("0x10", "a hexadecimal number", "16"),
        ("0o7", "an octal number", "7"),
        ("0b11", "a binary number", "3"),
        ("12:30:45", "a number in base 60", None),
        ("2024-01-01", "a date", None),
    ],
)
@pytest.mark.parametrize("parser", ["libyaml", "python"])
def test_words_that_readers_disagree_about(
    text: str, meaning: str, instead: str | None, parser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_parsers(monkeypatch, parser)
    assert refusal(f"a: {text}") == (
        f"s.yaml:1:4: {text} is read as {meaning} by some YAML readers and as text by others\n"
        f'    write "{text}" for the text{f", or {instead}" if instead else ""}'
    )


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        (
            "012",
            "012 is read as an octal number by some YAML readers and as a decimal one by others",
            'write "012" for the text, or 12',
        ),
        ("-.inf", "-.inf is infinity, or not a number, to some YAML readers", 'write "-.inf" for the text'),
        (".NaN", ".NaN is infinity, or not a number, to some YAML readers", 'write ".NaN" for the text'),
        ("=", "= has a special meaning to some YAML readers", 'write "=" for the text'),
        (
            "9223372036854775808",
            "the number 9223372036854775808 does not fit in 64 bits",
            "write it in quotes for the text",
        ),
        ("1.0e+999", "the number 1.0e+999 does not fit in 64 bits", "write it in quotes for the text"),
        ("!!int 3", "the tag '!!int' is not allowed", "a spec has no tags; quote text, and remove the tag"),
        (
            "!!python/name:os.system x",
            "the tag '!!python/name:os.system' is not allowed",
            "a spec has no tags; quote text, and remove the tag",
        ),
        ("! x", "the tag '!' is not allowed", "a spec has no tags; quote text, and remove the tag"),
        ("*b", "no anchor &b is set before this alias", "text that starts with * must be quoted"),
        ("*.weight", "a text can't begin with *", "put the whole text in quotes"),
        ("&.weight", "a text can't begin with &", "put the whole text in quotes"),
        ("@x", "a text can't begin with @", "put the whole text in quotes"),
        ('"open', "this quote is never closed", "add the missing quote"),
        ("[1, 2", "this list is never closed", "add the missing ]"),
        ("{b: 2", "this mapping is never closed", "add the missing }"),
    ],
)
@pytest.mark.parametrize("parser", ["libyaml", "python"])
def test_refused_values(text: str, what: str, hint: str, parser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    both_parsers(monkeypatch, parser)
    assert refusal(f"a: {text}") == f"s.yaml:1:4: {what}\n    {hint}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "",
            ("s.yaml:1:1: the document is empty\n    expected a mapping, such as 'name: value'"),
        ),
        (
            "---\n# nothing\n",
            ("s.yaml:1:1: the document is empty\n    expected a mapping, such as 'name: value'"),
        ),
        (
            "a: b\n---\nc: d",
            ("s.yaml:2:1: a second document starts here\n    a file holds one document; remove the ---"),
        ),
        (
            'a: 1\nb: 2\n"a": 3',
            "s.yaml:3:1: the key 'a' is already given at line 1, column 1",
        ),
        (
            "a: &x 1\nb: &x 2",
            "s.yaml:2:4: the anchor &x is already set at line 1, column 4",
        ),
        (
            "a: &x [*x]",
            "s.yaml:1:8: the alias *x is inside its own anchor, at line 1, column 4",
        ),
        (
            "<<: {a: b}",
            ("s.yaml:1:1: merge keys (<<) are not allowed\n    write the entries out, or use an alias as a value"),
        ),
        (
            "1: a",
            ('s.yaml:1:1: a key must be text, and 1 is a number\n    write "1"'),
        ),
        (
            "0.5: a",
            ('s.yaml:1:1: a key must be text, and 0.5 is a number\n    write "0.5"'),
        ),
        (
            "true: a",
            ('s.yaml:1:1: a key must be text, and true is true or false\n    write "true"'),
        ),
        (
            "null: a",
            ('s.yaml:1:1: a key must be text, and null is null\n    write "null"'),
        ),
        (
            "[b]: a",
            (
                "s.yaml:1:1: a key must be text, and this is a list\n"
                '    put a text that begins with { or * in quotes, such as "{i}.weight"'
            ),
        ),
        (
            "{b: c}: a",
            (
                "s.yaml:1:1: a key must be text, and this is a mapping\n"
                '    put a text that begins with { or * in quotes, such as "{i}.weight"'
            ),
        ),
        (
            "{i}: a",
            (
                "s.yaml:1:2: the key 'i' has no value\n"
                '    if {i} is a placeholder, put the whole text in quotes, such as "{i}.weight"'
            ),
        ),
        (
            "a: {i}.w",
            (
                "s.yaml:1:5: the key 'i' has no value\n"
                '    if {i} is a placeholder, put the whole text in quotes, such as "{i}.weight"'
            ),
        ),
        (
            "a: [b]c",
            (
                "s.yaml:1:7: text goes on after ]\n"
                '    put a text that begins with { or * in quotes, such as "{i}.weight"'
            ),
        ),
        (
            "a: [b.{i}, c]",
            (
                "s.yaml:1:7: expected , or ] in the list that begins at line 1, column 4, got {\n"
                "    inside [ ] or { }, put a text that holds any of { } [ ] , in quotes"
            ),
        ),
        (
            "a: b: c",
            ("s.yaml:1:5: a key and its value can't stand here\n    put a text that holds ': ' in quotes"),
        ),
        (
            "a:\n\tb: c",
            ("s.yaml:2:1: a tab can't indent\n    indent with spaces"),
        ),
        (
            "a:\n   b: 1\n  c: 2",
            ("s.yaml:3:3: expected a key of the mapping that begins at line 1, column 1\n    check the indentation"),
        ),
        (
            "- a\nb",
            "s.yaml:2:1: expected ': ' after this key",
        ),
        (
            "a: x\x00\x85",
            (
                "s.yaml:1:5: the character U+0000 can't stand in a YAML file\n"
                '    remove it, or write it as "\\u0000", in double quotes\n'
                "s.yaml:1:6: the character U+0085 can't stand in a YAML file\n"
                '    remove it, or write it as "\\u0085", in double quotes'
            ),
        ),
        (
            b"a: b\r\nc: \xff",
            ("s.yaml:2:4: byte 0xff is not valid UTF-8\n    save the file as UTF-8"),
        ),
        (
            "a: b".encode("utf-16"),
            ("s.yaml:1:1: byte 0xff is not valid UTF-8\n    save the file as UTF-8"),
        ),
        (
            "%TAG ! tag:x,2000:\n---\na: b",
            ("s.yaml:1:1: %TAG is not allowed\n    remove it; a spec has no tags"),
        ),
    ],
)
@pytest.mark.parametrize("parser", ["libyaml", "python"])
def test_refused_documents(text: str | bytes, expected: str, parser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    both_parsers(monkeypatch, parser)
    assert refusal(text) == expected


def test_all_problems_come_at_once_in_the_order_of_the_file() -> None:
    assert refusal("a: no\na: 1e3\n1: !!str x\nb: [") == (
        "s.yaml:1:4: no is read as false by some YAML readers and as text by others\n"
        '    write "no" for the text, or false\n'
        "s.yaml:2:1: the key 'a' is already given at line 1, column 1\n"
        "s.yaml:2:4: 1e3 is read as a number by some YAML readers and as text by others\n"
        '    write "1e3" for the text, or 1.0e+3\n'
        "s.yaml:3:1: a key must be text, and 1 is a number\n"
        '    write "1"\n'
        "s.yaml:3:4: the tag '!!str' is not allowed\n"
        "    a spec has no tags; quote text, and remove the tag\n"
        "s.yaml:5:1: a list or mapping before the end is never closed\n"
        "    add the missing ] or }"
    )


def test_a_file_that_is_no_spec_gives_a_hundred_problems_and_no_more() -> None:
    lines = refusal("- no\n" * 250).splitlines()
    assert len(lines) == 201
    assert lines[-1] == "s.yaml: 150 more problems like these"


@pytest.mark.parametrize("escape", ['"\\ud800"', '"\\UFFFFFFFF"', '"\\q"'])
@pytest.mark.parametrize("parser", ["libyaml", "python"])
def test_escapes_for_no_character(escape: str, parser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    both_parsers(monkeypatch, parser)
    assert refusal(f"a: {escape}").startswith("s.yaml")


# Bombs


def nine_times_nine() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 9)]
    return "\n".join(lines)


DEEP = "s.yaml:1:{}: more than 64 levels of nesting"


@pytest.mark.parametrize(
    ("bomb", "expected"),
    [
        ("[" * 30_000, DEEP.format(65)),
        ("[" * 30_000 + "]" * 30_000, DEEP.format(65)),
        ("- " * 30_000, DEEP.format(129)),
        ("? " * 30_000, DEEP.format(129)),
        ("{a: " * 30_000, DEEP.format(257)),
        (nine_times_nine(), "s.yaml:5:10: aliases stand for more than 10000 values in all"),
        (
            f"a: &x {'[' * 40}1{']' * 40}\nb: {'[' * 40}*x{']' * 40}",
            "s.yaml:2:44: more than 64 levels of nesting once the alias *x is followed",
        ),
        (
            f"[{'a,' * 300_000}]",
            "s.yaml:1:400000: more than 200000 values\n    name keys by patterns, or split the file",
        ),
    ],
)
def test_bombs_are_refused(bomb: str, expected: str) -> None:
    assert refusal(bomb) == expected


def test_sixty_four_levels_are_fine() -> None:
    assert plain("[" * 64 + "]" * 64)


def test_thousands_of_rules() -> None:
    text = "rename:\n" + "".join(f"  model.layers.{i}.q_proj.weight: layers.{i}.q.weight\n" for i in range(15_000))
    node = load_yaml(text, "s.yaml")
    assert isinstance(node, MappingNode)


def test_a_long_text_is_refused_unread() -> None:
    assert refusal("a" * (MAX_YAML_BYTES + 1)) == (
        "s.yaml: the file has 1048577 bytes, and at most 1048576 are read\n"
        "    a spec names its keys by patterns and stays short; parsing a file of this size would take many seconds"
    )
    assert plain("a" * 100) == "a" * 100
    with pytest.raises(SpecError):
        load_yaml("a" * 100, "s.yaml", max_bytes=99)


# Files


def file_refusal(path: Path) -> str:
    with pytest.raises(SpecError) as caught:
        load_yaml_file(path)
    return str(caught.value)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    assert file_refusal(path) == f"{path}: can't be read: No such file or directory"
    path.write_bytes(b"a: b\nc: no\n")
    assert file_refusal(path).startswith(f"{path}:2:4: no is read as false")
    path.write_bytes(b"a: b\n")
    assert to_plain(load_yaml_file(path)) == {"a": "b"}
    (tmp_path / "link.yaml").symlink_to(path)
    assert to_plain(load_yaml_file(tmp_path / "link.yaml")) == {"a": "b"}
    path.write_bytes(b"#" * (MAX_YAML_BYTES + 1))
    assert file_refusal(path).startswith(f"{path}: the file has 1048577 bytes, and at most 1048576 are read")
    assert file_refusal(tmp_path) == f"{tmp_path}: can't be read: Is a directory"
    assert "null" in file_refusal(Path("a\0b"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in file_refusal(tmp_path / "fifo")


# Properties


@given(st.text() | st.text(alphabet="ab{}[]:,-*&!|>'\"#%@ \n?~.0123_e+\t<=") | st.binary(max_size=200))
def test_any_text_gives_nodes_or_a_refusal(text: str | bytes) -> None:
    try:
        node = load_yaml(text, "s.yaml")
    except SpecError:
        return
    to_plain(node)


@given(st.text(alphabet="0123456789+-._eExXoObBaAnNfFiItTuUlLsSyYzZ:<=~ ", max_size=12))
def test_whatever_a_yaml_1_1_reader_takes_for_something_else_is_refused(text: str) -> None:
    try:
        value = read_plain(text)
    except AmbiguousScalarError:
        return
    tag = yaml.SafeLoader("").resolve(yaml.ScalarNode, text, (True, False))
    by_type = {str: "str", int: "int", float: "float", bool: "bool", type(None): "null"}
    assert tag == f"tag:yaml.org,2002:{by_type[type(value)]}"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(
        ["no", "1e3", "{i}.weight", "*.inv_freq", "a: b", "<<", "=", "2024-01-01", "# c", "x\u2028", "\x85"]
    ),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=20,
)


def identical(left: object, right: object) -> bool:
    """Equal, and of the same types: 1, 1.0 and True are different."""
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(identical(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(identical, left, right))
    return type(left) is type(right) and repr(left) == repr(right)


@given(VALUES.filter(lambda value: value is not None))
def test_what_is_written_reads_back(value: object) -> None:
    assert identical(plain(dump_yaml(value)), value)
    assert identical(yaml.safe_load(dump_yaml(value)), value)


# Writing


def test_the_text_that_is_written() -> None:
    spec = {
        "weightmap": 1,
        "rename": {"{i}.weight": "layers.{i}.weight", "*.bias": "no"},
        "rules": [{"from": {"q": "a.{i}", "k": "b"}, "order": ["q", "k"]}, {"copy": []}],
        "scale": 1e-05,
        "eps": 1e22,
    }
    assert dump_yaml(spec) == (
        "weightmap: 1\n"
        "rename:\n"
        "  '{i}.weight': layers.{i}.weight\n"
        "  '*.bias': \"no\"\n"
        "rules:\n"
        "  - from:\n"
        "      q: a.{i}\n"
        "      k: b\n"
        "    order: [q, k]\n"
        "  - copy: []\n"
        "scale: 1.0e-05\n"
        "eps: 1.0e+22\n"
    )


def test_a_value_that_occurs_twice_is_written_twice() -> None:
    shared = {"a": 1}
    assert dump_yaml({"b": shared, "c": shared}) == "b:\n  a: 1\nc:\n  a: 1\n"


@pytest.mark.parametrize(
    "value", [{1: "a"}, float("nan"), float("inf"), 2**63, b"bytes", {1, 2}, object(), "\ud800", Path("a")]
)
def test_what_has_no_spelling(value: object) -> None:
    with pytest.raises(ValueError, match="can't be written as YAML"):
        dump_yaml(value)


def test_a_value_inside_itself_has_no_spelling() -> None:
    value: list[object] = []
    value.append(value)
    with pytest.raises(ValueError, match="nested too deeply, or inside itself"):
        dump_yaml(value)


def test_nodes_are_a_closed_set() -> None:
    node: Node = load_yaml("a", "s.yaml")
    assert isinstance(node, ScalarNode | ListNode | MappingNode)
