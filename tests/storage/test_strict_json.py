from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from converters.storage import strict_json
from converters.storage.strict_json import JsonObject, StrictJsonError, parse_object

TEXTS = st.text(st.sampled_from('ab"\\-0 ,:[{\n\x7fé€😀'), max_size=6)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=12
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=5)
BYTES = st.sampled_from([bytes([byte]) for byte in b'{}[]",:-+0019.eEtrue\\u \n\t\x00\xff\xc3\xa9'])


def outcome(raw: bytes) -> tuple[str, str | JsonObject]:
    """What parsing gives, to the type of each number, or why it fails."""
    try:
        found = parse_object(raw)
    except StrictJsonError as error:
        return "refused", str(error)
    return repr(found), found


def written(value: object, gap: str) -> str:
    """JSON with white space wherever it may be, and escapes only where they must be."""
    if isinstance(value, dict):
        members = (
            f"{json.dumps(key, ensure_ascii=False)}{gap}:{gap}{written(each, gap)}" for key, each in value.items()
        )
        return "{" + gap + f"{gap},{gap}".join(members) + gap + "}"
    if isinstance(value, list):
        return "[" + gap + f"{gap},{gap}".join(written(each, gap) for each in value) + gap + "]"
    return json.dumps(value, ensure_ascii=False)


@settings(max_examples=200)
@given(OBJECTS, st.sampled_from(["", " ", "\n\t"]))
def test_it_reads_what_was_written(value: JsonObject, gap: str) -> None:
    assert outcome(written(value, gap).encode()) == (repr(value), value)


@settings(max_examples=400)
@given(OBJECTS, st.data())
@example({"a": 1}, None)
def test_the_quick_way_never_gives_another_answer(value: JsonObject, data: st.DataObject | None) -> None:
    raw = bytearray(written(value, "").encode())
    for _ in range(data.draw(st.integers(0, 3)) if data is not None else 0):
        assert data is not None
        start = data.draw(st.integers(0, len(raw)))
        stop = min(len(raw), start + data.draw(st.integers(0, 3)))
        raw[start:stop] = b"".join(data.draw(st.lists(BYTES, max_size=3)))
    quick = outcome(bytes(raw))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_json, "_parse_quickly", lambda _: None)
        assert quick == outcome(bytes(raw))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ('{"a": 1, "a": 1}', "the key 'a' occurs twice"),
        ('{"x": {"a": "b", "a": "b"}}', "the key 'a' occurs twice"),
        ('{"x": [{"a": [], "b": 1, "a": []}]}', "the key 'a' occurs twice"),
        ('{"a": 1, "\\u0061": 2}', "the key 'a' occurs twice"),
        ('{"a":-0}', "-0 is not an integer"),
        ('{"a": [1,-0]}', "-0 is not an integer"),
        ('{"a": \n-0 }', "-0 is not an integer"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ('{"a": 1e999}', "the number 1e999 is too large"),
        ('{"a": "\\ud800"}', "lone surrogate"),
        ('{"a": 01}', "not JSON"),
        ('{"a": 1,}', "not JSON"),
        ('{"a": "\x01"}', "not JSON"),
        ('{"a": 1} {}', "not JSON"),
        ("[1]", "expected a JSON object, got a list of 1"),
        ('{"a": ' + "[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_refused(text: str, why: str) -> None:
    with pytest.raises(StrictJsonError, match=why):
        parse_object(text.encode())


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(StrictJsonError, match="byte 6 is not UTF-8"):
        parse_object(b'{"a":"\xff"}')


@pytest.mark.parametrize("number", [2**63, 2**64, 10**40, -(2**63) - 1, 2**53 + 1])
def test_integers_stay_exact(number: int) -> None:
    assert parse_object(f'{{"a":{number}}}'.encode()) == {"a": number}


def test_what_looks_like_a_negative_zero_in_a_text_is_none() -> None:
    names = {"model-00001-of-00002.safetensors": "a, -0", ":-0": "x"}
    assert parse_object(json.dumps(names).encode()) == names


def test_an_infinite_number_passes_where_it_may() -> None:
    assert parse_object(b'{"a": Infinity, "b": 2}', infinite=True) == {"a": float("inf"), "b": 2}
