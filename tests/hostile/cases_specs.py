"""Mapping specs: YAML that surprises, notation that doesn't end, and numbers that ask for the moon."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from tests.hostile.build import FLOATS, entry, safetensors, tensors
from tests.hostile.case import COVERAGE, MARKER, OUTPUT, SPEC, Case

KIND: Final = "spec"
HEAD: Final = "weightmap: 1\nsource: {layout: a}\ntarget: {layout: b}\n"
RENAME: Final = "rename: {a: b}\n"
LINT: Final = ("specs", "lint", "@evil.yaml")
CONVERT: Final = ("convert", "--quiet", "--spec", "@evil.yaml", "@in", "@outputs/out")


def _aliases(levels: int) -> str:
    lines = ["x0: &x0 [a, a, a, a, a, a, a, a, a]"]
    lines += [f"x{level}: &x{level} [{', '.join([f'*x{level - 1}'] * 9)}]" for level in range(1, levels)]
    return "\n".join(lines)


def _rule(source: str, target: str) -> str:
    return f'{HEAD}rules:\n  - from: a\n    to: b\n    layout: "{source} -> {target}"\n'


def _blocks(dimensions: int) -> str:
    return " ".join(f"(a{place}: x{place} | b{place}: y{place})" for place in range(dimensions))


YAML: Final[dict[str, tuple[str | bytes, str]]] = {
    "empty": ("", "the document is empty"),
    "no mapping": ("- a\n", "a spec must be a mapping"),
    "no UTF-8": (HEAD.encode() + b"name: \xff\n", "evil.yaml:4:7: byte 0xff is not valid UTF-8"),
    "UTF-16": (HEAD.encode("utf-16"), "not valid UTF-8"),
    "a zero byte": (HEAD + "name: a\0b\n", "U+0000"),
    "terminal commands": (HEAD + "name: a\x1b[2J\n", "U+001B"),
    "text from right to left": (HEAD + 'name: "\\u202e"\nrulez: 1\n', "did you mean 'rules'"),
    "a tag of Python": ("!!python/object/apply:os.system ['touch x']\n", "is not allowed"),
    "a tag that opens a file": (f"a: !!python/object/new:open ['{MARKER}', 'w']\n", "evil.yaml:1:4: the tag"),
    "a tag of its own": ("a: !evil b\n", "the tag"),
    "a tag of YAML": (HEAD + "name: !!str a\n", "the tag"),
    "a directive": ("%TAG ! tag:evil,2000:\n---\na: 1\n", "%TAG is not allowed"),
    "a key twice": (HEAD + RENAME + "name: a\nname: b\n", "evil.yaml:6:1: the key 'name' is already given at line 5"),
    "a merge key": ("a: &a {b: c}\nd: {<<: *a}\n", "merge keys (<<) are not allowed"),
    "an alias to nothing": ("a: *b\n", "no anchor &b is set"),
    "an alias in its own anchor": ("a: &a [*a]\n", "inside its own anchor"),
    "an anchor twice": ("a: &x 1\nb: &x 2\n", "the anchor &x is already set"),
    "aliases that stand for a billion": (_aliases(10), "aliases stand for more than 10000 values"),
    "aliases that nest": (
        "\n".join(["x0: &x0 [a]", *(f"x{i}: &x{i} [*x{i - 1}]" for i in range(1, 100))]),
        "levels of nesting once the alias",
    ),
    "lists nested 100,000 times": ("[" * 100_000, "more than 64 levels of nesting"),
    "mappings nested 1,000 times": ("{a: " * 1000, "more than 64 levels of nesting"),
    "a list nested in blocks": ("- " * 5000 + "a", "more than 64 levels of nesting"),
    "two documents": (HEAD + "---\na: 1\n", "a second document starts here"),
    "two megabytes": ("#" * 2_000_000, "2000000"),
    "300,000 values": ("a: [" + "1," * 300_000 + "1]\n", "more than 200000 values"),
    "no": (HEAD + "name: no\n", "read as false by some YAML readers"),
    "1e3": (HEAD + "name: 1e3\n", "read as a number by some YAML readers"),
    "a date": (HEAD + "name: 2020-01-01\n", "read as a date"),
    "012": (HEAD + "name: 012\n", "octal"),
    "a number of 5,000 digits": (HEAD + f"name: {'9' * 5000}\n", "does not fit in 64 bits"),
    "a number as a key": (HEAD + "rename: {1: b}\n", "a key must be text"),
    "a list as a key": (HEAD + "rename: {[a]: b}\n", "a key must be text"),
    "a brace that isn't closed": (HEAD + "rename: {a: b\n", "evil.yaml:"),
    "tabs": (HEAD + "rename:\n\ta: b\n", "evil.yaml:5:1"),
    "an escape that is no character": ('a: "\\UFFFFFFFF"\n', "evil.yaml"),
    "half of a surrogate pair": ('a: "\\ud800"\n', "invalid Unicode character"),
    "another version": (HEAD.replace("weightmap: 1", "weightmap: 2") + RENAME, "reads version 1"),
    "true as its version": (HEAD.replace("weightmap: 1", "weightmap: true") + RENAME, "reads version 1"),
    "an unknown key": (HEAD + RENAME + "exec: rm\n", "exec"),
    "a page of HTML": ("<!DOCTYPE html><html><body>Sign in</body></html>", "evil.yaml"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40, "evil.yaml"),
    "5,000 wrong rules": (HEAD + "rules:\n" + "  - {form: a}\n" * 5000, "more"),
}
NOTATION: Final[dict[str, tuple[str, str]]] = {
    "parentheses nested 20,000 times": (_rule("(" * 20_000 + "a" + ")" * 20_000, "a"), "at most 2,000"),
    "parentheses nested 500 times": (_rule("(" * 500 + "a" + ")" * 500, "a"), "nested deeper than 64"),
    "blocks nested 400 times": (_rule("(x: " * 400 + "a" + ")" * 400, "a"), "nested deeper than 64"),
    "30 dimensions of two blocks": (_rule(_blocks(30), _blocks(30)), "pieces; at most 1,000"),
    "20,000 axes": (_rule(*[" ".join(f"a{place}" for place in range(20_000))] * 2), "20,000 parts; at most 2,000"),
    "5,000 blocks": (_rule("(" + " | ".join(f"l{at}: a{at}" for at in range(5000)) + ")", "a"), "parts; at most 2,000"),
    "a size of 1,000 digits": (_rule("9" * 1000 + " a", "a"), "out of range"),
    "a parenthesis that isn't closed": (_rule("(a b", "a b"), "isn't closed"),
    "terminal commands in a layout": (_rule("a \\x1b[2J", "a"), "unexpected"),
    "two dotted rests": (HEAD + 'rename: {"{a:path}.{b:path}": "{a}.{b}"}\n', "two dotted rests"),
    "placeholders that touch": (HEAD + 'rename: {"{a}{b}": "{a}{b}"}\n', "touch"),
    "a placeholder in a placeholder": (HEAD + 'rename: {"{a{b}}": c}\n', "isn't closed"),
    "a placeholder of code": (HEAD + "rename: {\"{__import__('os')}\": b}\n", "expected an operator or the end"),
    "a format as a placeholder": (HEAD + 'rename: {"{0.__class__}": b}\n', "evil.yaml"),
    "10,000 placeholders": (
        HEAD + 'rename: {"' + ".".join(f"{{p{at}}}" for at in range(10_000)) + '": b}\n',
        "evil.yaml",
    ),
    "parentheses nested 900 times": (
        HEAD + f'dims: {{X: "{"(" * 900}1{")" * 900}"}}\n' + RENAME,
        "more than 64 levels",
    ),
    "not, 400 times": (HEAD + f'dims: {{X: "{"not " * 400}1"}}\n' + RENAME, "more than 64 levels"),
    "an expression of 100,000 characters": (
        HEAD + f'dims: {{X: "{"1+" * 50_000}1"}}\n' + RENAME,
        "at most 2000 are read",
    ),
    "a call": (HEAD + "dims: {X: \"eval('1')\"}\n" + RENAME, "the only function is int()"),
    "an attribute": (HEAD + 'dims: {X: "config.a.__class__.__mro__[0]()"}\n' + RENAME, "evil.yaml"),
    "a power": (HEAD + 'dims: {X: "9 ** 9 ** 9"}\n' + RENAME, "there are no powers"),
    "a dim with the name of a word": (HEAD + "dims: {config: 1}\n" + RENAME, "is no name for a dim"),
    "code as an operation": (HEAD + "rules:\n  - {from: a, to: b, apply: os.system}\n", "os.system"),
    "a config written upwards": (
        HEAD.replace("layout: b", "layout: b, config_file: ../../evil.json") + RENAME,
        "config_file",
    ),
    "a config written elsewhere": (
        HEAD.replace("layout: b", "layout: b, config_file: /tmp/e.json") + RENAME,
        "config_file",
    ),
    "a config with a zero in its name": (
        HEAD.replace("layout: b", 'layout: b, config_file: "a\\0.json"') + RENAME,
        "config_file",
    ),
    "a file written upwards": (
        HEAD.replace("layout: b", "layout: b, file: ../evil.safetensors") + RENAME,
        "no path of a file",
    ),
    "a file written elsewhere": (
        HEAD.replace("layout: b", "layout: b, file: /tmp/e.safetensors") + RENAME,
        "no path of a file",
    ),
    "a file with a zero in its name": (
        HEAD.replace("layout: b", 'layout: b, file: "a\\0.safetensors"') + RENAME,
        "no path of a file",
    ),
    "files written upwards": (
        HEAD.replace("layout: b", "layout: b, files: {u: ../../u.safetensors}") + 'rename: {a: "u:b"}\n',
        "no path of a file",
    ),
}
PLANNED: Final[dict[str, tuple[str, int, str]]] = {
    "a range of 10**12": (
        'placeholders: {i: 0..1000000000000}\nrename: {"a.{i}": "b.{i}"}\n',
        COVERAGE,
        "999999999999 in all",
    ),
    "two ranges of a million": (
        'placeholders: {i: 0..1000000, j: 0..1000000}\nrename: {"a.{i}.{j}": "b.{i}.{j}"}\n',
        COVERAGE,
        "no key",
    ),
    "a tensor split into 2**60": (
        'rename: {a.0: a}\nrules:\n  - {from: e, to: "b.{i}", layout: "i x -> x"}\n',
        COVERAGE,
        "no checkpoint holds more than",
    ),
    "a range that ends before it begins": ('placeholders: {i: 5..1}\nrename: {"a.{i}": "b.{i}"}\n', COVERAGE, "a.0"),
    "an exabyte of zeros": (
        "rename: {a.0: b, e: e}\nrules:\n  - {fill: zeros, to: z, shape: [1000000000, 1000000000], dtype: F32}\n",
        COVERAGE,
        "z would take 4.00 EB",
    ),
    "a terabyte of zeros": (
        "rename: {a.0: b, e: e}\nrules:\n  - {fill: zeros, to: z, shape: [1000000000, 250], dtype: F32}\n",
        OUTPUT,
        "the output needs 1.00 TB",
    ),
    "a shape beyond 64 bits": (
        "rename: {a.0: b, e: e}\nrules:\n  - {fill: zeros, to: z, shape: [9000000000000000000, 9], dtype: F32}\n",
        COVERAGE,
        "z",
    ),
    "a config that has no such key": (
        'dims: {L: config.x.y}\nrename: {"a.{i}": "b.{i}", e: e}\nplaceholders: {i: 0..L}\n',
        SPEC,
        "config.x.y",
    ),
    "a placeholder divided by zero": ('rename: {"a.{i//0}.{i%0}": "b.{i}", e: e}\n', SPEC, "positive number"),
    "a product beyond 64 bits": (
        f'dims: {{X: "{"99999999999 * " * 9}9"}}\nrename: {{a.0: b, e: e}}\n',
        SPEC,
        "does not fit in 64 bits",
    ),
    "text times a number": ("dims: {X: \"'a' * 9999999999\"}\nrename: {a.0: b, e: e}\n", SPEC, "needs numbers"),
    "a division by zero": ("dims: {X: 1 // 0}\nrename: {a.0: b, e: e}\n", SPEC, "by zero"),
    "a name for two tensors": ("rename: {a.0: b, e: b}\n", COVERAGE, "b"),
    "a target named like metadata": ("rename: {a.0: __metadata__, e: e}\n", OUTPUT, "__metadata__"),
    "target names that command the terminal": ('rename: {a.0: "b\\e[2J", e: "b\\e[2J"}\n', COVERAGE, r"b\x1b[2J"),
}


def _refused() -> Iterator[Case]:
    for what, (text, says) in YAML.items():
        yield Case(KIND, what, {"evil.yaml": text}, SPEC, (says,), LINT)
    for what, (text, says) in NOTATION.items():
        yield Case(KIND, what, {"evil.yaml": text}, SPEC, ("evil.yaml:", says), LINT)
    empty = {"a.0": entry(), "e": entry(shape=(2**60, 0), begin=24, end=24)}
    source = {"in/model.safetensors": safetensors(empty, FLOATS), "in/config.json": "{}"}
    for what, (text, code, says) in PLANNED.items():
        yield Case(KIND, what, {**source, "evil.yaml": HEAD + text}, code, (says,), CONVERT)
    yield Case(KIND, "a directory", {"evil.yaml/x": ""}, SPEC, ("evil.yaml",), LINT)
    yield Case(KIND, "missing", {}, SPEC, ("evil.yaml",), LINT)


def _pipe_refused() -> Iterator[Case]:
    import os

    yield Case(KIND, "a pipe", lambda root: os.mkfifo(root / "evil.yaml"), SPEC, ("evil.yaml",), LINT)


def _accepted() -> Iterator[Case]:
    right: Mapping[str, str] = {
        "Windows' line ends": (HEAD + RENAME).replace("\n", "\r\n"),
        "a byte order mark": "\ufeff" + HEAD + RENAME,
        "comments and blank lines": "# a\n\n" + HEAD + "\n# b\n" + RENAME + "\n\n",
        "text in Chinese": HEAD + "name: 模型\ndescription: 层\n" + RENAME,
        "an alias within its bounds": HEAD + "models: &m [x]\n" + RENAME,
        "JSON": '{"weightmap": 1, "source": {"layout": "a"}, "target": {"layout": "b"}, "rename": {"a": "b"}}',
        "a description of 100,000 characters": HEAD + f"description: {'x' * 100_000}\n" + RENAME,
        "a block of text": HEAD + "description: |\n  a\n  b\n" + RENAME,
        "words in quotes": HEAD + 'name: "no"\n' + RENAME,
    }
    for what, text in right.items():
        files = {"evil.yaml": text, "in/model.safetensors": tensors("a")}
        yield Case(KIND, what, files, words=CONVERT, holds={"b": FLOATS})
    thousand = HEAD + "rename:\n" + "".join(f"  a.{place}: b.{place}\n" for place in range(1000))
    files = {"evil.yaml": thousand, "in/model.safetensors": tensors(*(f"a.{place}" for place in range(1000)))}
    yield Case(
        KIND, "1,000 rules", files, words=CONVERT, holds={f"b.{place}": FLOATS for place in range(1000)}, large=True
    )
    nested = "(" * 60 + "a" + ")" * 60
    files = {"evil.yaml": _rule(f"{nested} c", "a c"), "in/model.safetensors": tensors("a")}
    yield Case(KIND, "parentheses nested 60 times", files, words=CONVERT, holds={"b": FLOATS})
    odd = {"evil.yaml": HEAD + 'rename: {a: "\\e[2J<b>"}\n', "in/model.safetensors": tensors("a")}
    yield Case(KIND, "a target name that commands the terminal", odd, words=CONVERT, holds={"\x1b[2J<b>": FLOATS})
    planned = ("plan", "--spec", "@evil.yaml", "@in")
    yield Case(KIND, "a target name that commands the terminal, planned", odd, words=planned, says=(r"\x1b[2J<b>",))
    yield Case(KIND, "a target name that commands the terminal, shown", odd, words=("specs", "show", "@evil.yaml"))


CASES: Final = (*_refused(), *_pipe_refused(), *_accepted())
