"""config.json, adapter_config.json and the other files beside the weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.hostile.build import FLOATS, tensors, write
from tests.hostile.case import CHECKPOINT, CONFIG, COVERAGE, INSPECT, SPEC, Case

KIND: Final = "config"
FILE: Final = "in/config.json"
WEIGHTS: Final = {"in/model.safetensors": tensors("layers.0.w", "layers.1.w")}
HOLDS: Final = {"w.0": FLOATS, "w.1": FLOATS}
RULES: Final = """\
weightmap: 1
source: {layout: a, config: {model_type: good}}
target: {layout: b}
dims: {L: config.num_layers}
placeholders: {i: 0..L}
rename: {"layers.{i}.w": "w.{i}"}
config:
  target:
    derive: {width: config.hidden_size // config.heads}
"""
WORDS: Final = ("convert", "--quiet", "--spec", "@rules.yaml", "@in", "@outputs/out")
GOOD: Final = {"model_type": "good", "num_layers": 2, "hidden_size": 8, "heads": 2}

TEXTS: Final[dict[str, tuple[str | bytes, str]]] = {
    "empty": ("", "not JSON"),
    "a list": ("[]", "expected a JSON object, got a list of 0"),
    "text": ('"a"', 'expected a JSON object, got "a"'),
    "cut off": ('{"a": ', "not JSON"),
    "no UTF-8": (b'{"a": "\xff"}', "not UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "a byte order mark": ("\ufeff{}", "not JSON"),
    "a key twice": ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
    "a key twice, further in": ('{"a": {"b": 1, "b": 2}}', "the key 'b' occurs twice"),
    "a comment": ('{"a": 1} // b', "not JSON"),
    "a trailing comma": ('{"a": 1,}', "not JSON"),
    "single quotes": ("{'a': 1}", "not JSON"),
    "nested 100,000 times": ('{"a":' * 100_000, "nested too deeply"),
    "lists nested 100,000 times": ('{"a":' + "[" * 100_000, "nested too deeply"),
    "a number of 5,000 digits": ('{"a": ' + "9" * 5000 + "}", "not JSON"),
    "1e999": ('{"a": 1e999}', "1e999 is too large"),
    "a lone surrogate": ('{"a": "\\ud800"}', "lone surrogate"),
    "a page of HTML": ("<!DOCTYPE html><html></html>", "not JSON"),
    "a Git LFS pointer": ("version https://git-lfs.github.com/spec/v1\n", "not JSON"),
    "YAML": ("a: 1\n", "not JSON"),
    "a key twice that commands the terminal": ('{"\\u001b[2J": 1, "\\u001b[2J": 1}', r"\x1b[2J"),
    "a million commas": ('{"a": [' + "1," * 1_000_001 + "1]}", "more than 1,000,000 values"),
}
VALUES: Final[dict[str, tuple[dict[str, object], int, str]]] = {
    "another model": ({"model_type": "evil"}, CONFIG, "'evil'"),
    "another model that commands the terminal": ({"model_type": "\x1b[2J"}, CONFIG, r"\x1b[2J"),
    "10**12 layers": ({"num_layers": 10**12}, COVERAGE, "999999999998 in all"),
    "2**63 layers": ({"num_layers": 2**63 - 1}, COVERAGE, "in all"),
    "2**70 layers": ({"num_layers": 2**70}, SPEC, "64 bits"),
    "10**400 layers": ({"num_layers": 10**400}, SPEC, "64 bits"),
    "-1 layers": ({"num_layers": -1}, SPEC, "got -1"),
    "2.5 layers": ({"num_layers": 2.5}, SPEC, "2.5"),
    "true layers": ({"num_layers": True}, SPEC, "true"),
    "text as layers": ({"num_layers": "2"}, SPEC, "'2'"),
    "a list as layers": ({"num_layers": [2]}, SPEC, "a list"),
    "an object as layers": ({"num_layers": {"a": 2}}, SPEC, "a mapping"),
    "null as layers": ({"num_layers": None}, SPEC, "num_layers is null"),
    "no heads": ({"heads": 0}, SPEC, "by zero"),
    "text as heads": ({"heads": "\x1b[2J"}, SPEC, r"\x1b[2J"),
    "text of a megabyte as heads": ({"heads": "x" * 1_000_000}, SPEC, "heads"),
    "Infinity layers": ({"num_layers": float("inf")}, SPEC, "num_layers"),
    "NaN layers": ({"num_layers": float("nan")}, SPEC, "num_layers"),
}


def _files(config: str | bytes | dict[str, object]) -> dict[str, bytes | str]:
    text = json.dumps(config) if isinstance(config, dict) else config
    return {**WEIGHTS, FILE: text, "rules.yaml": RULES}


def _refused() -> Iterator[Case]:
    for what, (text, says) in TEXTS.items():
        yield Case(KIND, what, _files(text), CONFIG, ("config.json", says), WORDS)
    for what, (values, code, says) in VALUES.items():
        yield Case(KIND, what, _files({**GOOD, **values}), code, (says,), WORDS)
    yield Case(KIND, "missing", {**WEIGHTS, "rules.yaml": RULES}, CONFIG, ("there is no config.json",), WORDS)
    yield Case(KIND, "17 MB", _oversized, CHECKPOINT, ("at most 16,000,000 bytes",), WORDS)
    yield Case(
        KIND,
        "a directory in its place",
        {**WEIGHTS, "rules.yaml": RULES, f"{FILE}/x": ""},
        CHECKPOINT,
        ("a directory",),
        WORDS,
    )
    adapter = {"in/adapter_model.safetensors": tensors("a")}
    yield Case(KIND, "an adapter without its config", adapter, CONFIG, ("adapter_config.json",))
    for what in ("empty", "a list", "nested 100,000 times", "a key twice"):
        files = {**adapter, "in/adapter_config.json": TEXTS[what][0]}
        yield Case(KIND, f"adapter_config.json: {what}", files, CONFIG, ("adapter_config.json", TEXTS[what][1]))
    adapters: dict[str, tuple[dict[str, object], str]] = {
        "text as rank": ({"peft_type": "LORA", "r": "x"}, "r is 'x'"),
        "no type": ({}, "peft_type is None"),
        "a type that commands the terminal": ({"peft_type": "\x1b[2J"}, r"\x1b[2J"),
        "a pattern without an end as target": ({"peft_type": "LORA", "r": 2, "target_modules": "(a+)+$"}, "lora_alpha"),
    }
    for what, (config, says) in adapters.items():
        files = {**adapter, "in/adapter_config.json": json.dumps(config)}
        yield Case(KIND, f"adapter_config.json: {what}", files, CONFIG, ("adapter_config.json", says))
    named = ("convert", "--quiet", "--spec", "@rules.yaml", "--config", "@other.json", "@in", "@outputs/out")
    yield Case(KIND, "--config that is no JSON", {**_files(GOOD), "other.json": "{"}, CONFIG, ("other.json",), named)


def _oversized(root: Path) -> None:
    for name, content in _files(GOOD).items():
        write(root / name, content)
    with (root / FILE).open("r+b") as file:
        file.truncate(17_000_000)


def _accepted() -> Iterator[Case]:
    right: dict[str, dict[str, object]] = {
        "keys of its own": {"evil": {"nested": [1, {"x": None}]}, "ключ": "模型"},
        "Infinity where nobody looks": {"time_step_limit": [0.0, float("inf")]},
        "a large number where nobody looks": {"x": 10**300},
        "code for transformers, never run": {"auto_map": {"AutoModel": "modeling_evil.Evil"}},
        "terminal commands where nobody looks": {"x": "\x1b[2J"},
    }
    for what, more in right.items():
        yield Case(KIND, what, _files({**GOOD, **more}), words=WORDS, holds=HOLDS)
    deep: object = 1
    for _ in range(200):
        deep = [deep]
    yield Case(KIND, "lists nested 200 times where nobody looks", _files({**GOOD, "x": deep}), words=WORDS, holds=HOLDS)
    code = {**_files(GOOD), "in/modeling_evil.py": "raise SystemExit('it was run')", "in/setup.py": "1/0"}
    yield Case(KIND, "code beside it, never run", code, words=WORDS, holds=HOLDS)
    beside = {**_files(GOOD), "in/tokenizer.json": b"\xff\0not JSON", "in/vocab.txt": b""}
    yield Case(KIND, "a tokenizer that is no JSON, carried as it is", beside, words=WORDS, holds=HOLDS)
    shown = _files({"model_type": "\x1b[2J\n<b>", "architectures": ["\x9b31m", 7, None]})
    yield Case(KIND, "a model that commands the terminal, shown", shown, words=INSPECT)
    for what in ("a list", "nested 100,000 times", "a key twice that commands the terminal"):
        yield Case(KIND, f"{what}, shown", _files(TEXTS[what][0]), words=INSPECT, says=(TEXTS[what][1],))


CASES: Final = (*_refused(), *_accepted())
