"""Which keys go to which rule, and one test for each way in which they may not: key, rule, line and next step."""

from __future__ import annotations

import pytest

from converters.keys import MAX_DIGITS
from converters.matching import strip_prefixes
from converters.tensor_info import DType, TensorInfo
from tests.planning import plan_of, refusal_of, targets_of

S = (2,)


def test_a_key_that_no_rule_claims() -> None:
    assert refusal_of("rename: {'h.{i}.w': 'g.{i}.w'}", {"h.0.w": S, "h.0.b": S, "h.1.b": S, "h.1.w": S}) == (
        "s.yaml: no rule claims the key h.0.b and 1 more like it\n"
        "    the nearest pattern is 'h.{i}.w'; add a rule for it, or leave it out by name: "
        'drop: {"h.0.b": "the reason"}'
    )


def test_hostile_keys_are_printed_safely() -> None:
    text = refusal_of("rename: {a: b}", {"a": S, "\x1b[2Jevil\u202e": S})
    assert "\\x1b[2Jevil\\u202e" in text
    assert "\x1b" not in text


def test_a_rule_that_matches_nothing() -> None:
    assert refusal_of("rename:\n  a: b\n  h.{i}.wieght: g.{i}.w\n", {"a": S, "h.0.weight": S}) == (
        "s.yaml: no rule claims the key h.0.weight\n"
        "    the nearest pattern is 'h.{i}.wieght'; add a rule for it, or leave it out by name: "
        'drop: {"h.0.weight": "the reason"}\n'
        "s.yaml:7:3: rename.h.{i}.wieght: no key matches 'h.{i}.wieght'\n"
        "    the nearest key is h.0.weight; correct the pattern, or say 'optional: true'"
    )


def test_an_optional_rule_may_match_nothing() -> None:
    body = "rename: {a: b}\nrules:\n  - {from: 'h.{i}.w', to: 'g.{i}.w', optional: true}\n"
    assert targets_of(plan_of(body, {"a": S})) == {"b": S}
    assert targets_of(plan_of(body, {"a": S, "h.5.w": S})) == {"b": S, "g.5.w": S}


def test_an_optional_rule_is_there_as_a_whole() -> None:
    body = "rules:\n  - {from: {q: q, k: k}, to: qk, layout: {q: a, k: a, to: '(q: a | k: a)'}, optional: true}\n"
    assert refusal_of(body, {"q": S}) == (
        "s.yaml:6:5: rules[0]: k is missing, which the rule needs beside the keys that are there"
    )


def test_two_rules_for_one_key() -> None:
    body = "rename:\n  h.{i}.{p}: g.{i}.{p}\n  h.{i}.weight: f.{i}\n"
    assert refusal_of(body, {"h.0.weight": S, "h.0.bias": S}) == (
        "s.yaml:6:3: rename.h.{i}.{p}: h.0.weight is claimed by rename.h.{i}.{p} (line 6) and "
        "rename.h.{i}.weight (line 7)\n    each key goes to one rule; narrow a pattern, "
        "for instance {p:weight} in place of {p}"
    )


def test_a_rule_and_a_drop_for_one_key() -> None:
    body = "rename: {h.w: g.w, a: b}\ndrop:\n  '*.w': not needed\n"
    assert refusal_of(body, {"h.w": S, "a": S}).startswith(
        "s.yaml:5:10: rename.h.w: h.w is claimed by rename.h.w (line 5) and drop '*.w' (line 7)"
    )


def test_one_rule_may_not_take_a_key_twice() -> None:
    body = "rules:\n  - {from: {q: a, k: a}, to: b, layout: {q: c, k: c, to: '(q: c | k: c)'}}\n"
    assert "a is claimed by rules[0] (line 6) and rules[0] (line 6)" in refusal_of(body, {"a": S})


def test_dropped_keys_are_listed_with_their_reason() -> None:
    plan = plan_of("rename: {a: b}\ndrop: {'*.inv_freq': computed anew}", {"a": S, "l.0.inv_freq": S})
    assert [(plan.sources[drop.source].info.name, drop.reason) for drop in plan.dropped] == [
        ("l.0.inv_freq", "computed anew")
    ]


def test_every_name_of_a_choice_must_be_there() -> None:
    body = "rename: {'h.{i}.{p:weight&bias}': 'g.{i}.{p}'}"
    whole = {f"h.{i}.{p}": S for i in range(9) for p in ("weight", "bias")}
    assert len(targets_of(plan_of(body, whole))) == 18
    assert targets_of(plan_of(body, targets_of(plan_of(body, whole)), reverse=True)) == whole
    assert refusal_of(body, {key: S for key in whole if key != "h.1.bias"}) == (
        "s.yaml:5:10: rename.h.{i}.{p:weight&bias}: no key h.1.bias\n"
        "    {p:weight&bias} says that all of them must be there; with | one is enough"
    )
    without = refusal_of(body, {key: S for key in whole if key.endswith("bias")})
    assert f"no key {', '.join(f'h.{i}.weight' for i in range(8))}, ... (9 in all)\n" in without
    assert "no key g.2.weight" in refusal_of(body, {"g.2.bias": S}, reverse=True)


def test_every_combination_of_two_such_choices_must_be_there() -> None:
    body = "rename: {'{x:q&k}.{p:weight&bias}': '{p}.{x}'}"
    assert targets_of(plan_of(body, {f"{x}.{p}": S for x in "qk" for p in ("weight", "bias")}))
    text = refusal_of(body, {"q.weight": S, "k.bias": S})
    assert "no key q.bias, k.weight\n    {x:q&k} and {p:weight&bias} says that all" in text


def test_an_optional_choice_is_there_as_a_whole() -> None:
    body = "rename: {a: b}\nrules:\n  - {from: 'h.{p:weight&bias}', to: 'g.{p}', optional: true}\n"
    assert targets_of(plan_of(body, {"a": S})) == {"b": S}
    assert "no key h.bias" in refusal_of(body, {"a": S, "h.weight": S})


def test_a_missing_expert() -> None:
    body = "rules:\n  - {from: 'h.{i}.e.{e}.w', to: 'h.{i}.w', layout: '... -> e ...'}\n"
    shapes = dict.fromkeys([f"h.{i}.e.{e}.w" for i in range(2) for e in (0, 1, 3)], S) | {"h.1.e.2.w": S}
    assert refusal_of(body, shapes) == (
        "s.yaml:6:5: rules[0]: 'h.{i}.e.{e}.w' lacks e = 2; there are 0, 1, 3\n"
        "    stacking the others would shift them: is a shard or a file missing?"
    )


def test_a_missing_expert_at_the_end_is_found_by_its_range_or_by_the_other_matrix() -> None:
    ranged = "rules:\n  - {from: 'e.{e:0..4}.w', to: w, layout: '... -> e ...'}\n"
    assert "lacks e = 3; there are 0, 1, 2" in refusal_of(ranged, dict.fromkeys(["e.0.w", "e.1.w", "e.2.w"], S))
    pair = "rules:\n  - {from: {g: 'e.{e}.g', u: 'e.{e}.u'}, to: w, layout: {g: f, u: f, to: 'e (g: f | u: f)'}}\n"
    assert "'e.{e}.u' lacks e = 1; there are 0" in refusal_of(pair, {"e.0.g": S, "e.1.g": S, "e.0.u": S})


def test_a_range_may_begin_anywhere() -> None:
    body = "dims: {E: config.E}\nrules:\n  - {from: 'e.{e:1..E}.w', to: w, layout: '... -> e ...'}\n"
    shapes = {"e.1.w": S, "e.2.w": S}
    assert targets_of(plan_of(body, shapes, config={"E": 3})) == {"w": (2, 2)}
    assert targets_of(plan_of(body, shapes)) == {"w": (2, 2)}, "without a config too"
    assert "lacks e = 2; there are 1, 3" in refusal_of(body, {"e.1.w": S, "e.3.w": S})
    back = plan_of(body, {"w": (2, 2)}, config={"E": 3}, reverse=True)
    assert targets_of(back) == {"e.1.w": S, "e.2.w": S}


def test_a_missing_layer() -> None:
    body = "dims: {L: config.L}\nrename:\n  h.{i:0..L}.w: g.{i}\n"
    assert refusal_of(body, {"h.0.w": S, "h.2.w": S}, config={"L": 3}) == (
        "s.yaml:7:3: rename.h.{i:0..L}.w: no key for i=1\n"
        "    the range says that it must be there: h.{i:0..L}.w -> g.{i}"
    )
    assert "no key for i=1; i=3; i=4; i=5; i=6; i=7; i=8; i=9; ... (998 in all)" in refusal_of(
        body, {"h.0.w": S, "h.2.w": S}, config={"L": 1000}
    )


def test_a_layer_too_many() -> None:
    body = "dims: {L: config.L}\nrename:\n  h.{i:0..L}.w: g.{i}\n"
    assert refusal_of(body, dict.fromkeys(["h.0.w", "h.1.w", "h.2.w"], S), config={"L": 2}) == (
        "s.yaml:7:3: rename.h.{i:0..L}.w: h.2.w: i is 2, outside 0..1\n"
        "    the range is '0..L'; is the config that of this checkpoint?"
    )


def test_rules_may_share_a_pattern_where_their_ranges_are_apart() -> None:
    body = "dims: {K: config.K, L: config.L}\nrename:\n  h.{i:0..K}.w: dense.{i}\n  h.{i:K..L}.w: sparse.{i}\n"
    shapes = {"h.0.w": S, "h.1.w": S, "h.2.w": S}
    assert targets_of(plan_of(body, shapes, config={"K": 1, "L": 3})) == {"dense.0": S, "sparse.1": S, "sparse.2": S}
    assert targets_of(plan_of(body, shapes, config={"K": 0, "L": 3})).keys() == {"sparse.0", "sparse.1", "sparse.2"}
    assert "h.2.w: i is 2, outside 0..0" in refusal_of(body, shapes, config={"K": 1, "L": 2})
    assert "claimed by" in refusal_of(body, shapes), "without a config nothing keeps them apart"


def test_hostile_numbers_take_no_time() -> None:
    largest = "9" * MAX_DIGITS
    stack = "rules:\n  - {from: 'e.{e}', to: w, layout: '... -> e ...'}\n"
    count = int(largest) - 1
    assert f"lacks e = 1, 2, 3, 4, 5, 6, 7, 8, ... ({count} in all); there are 0, {largest}" in refusal_of(
        stack, {"e.0": S, f"e.{largest}": S}
    )
    layers = "dims: {L: config.L}\nrename: {'h.{i:0..L}': 'g.{i}'}\n"
    assert "in all)" in refusal_of(layers, {"h.0": S}, config={"L": 2**63})
    made = "dims: {L: config.L}\nrename: {a: b}\nrules: [{fill: ones, to: 'g.{i:0..L}', shape: [1], dtype: F32}]\n"
    assert "no checkpoint holds more than 1000000" in refusal_of(made, {"a": S}, config={"L": 2**63})
    unstack = "rules:\n  - {from: w, to: 'e.{e}', layout: 'e f -> f'}\n"
    assert "no checkpoint holds more than 1000000" in refusal_of(unstack, {"w": (10**15, 0)})


def test_prefixes_are_stripped_however_often() -> None:
    body = "strip_prefix: [module., _orig_mod.]\nrename: {a.w: b.w}\n"
    assert targets_of(plan_of(body, {"module._orig_mod.module.a.w": S})) == {"b.w": S}
    assert strip_prefixes("module.", ["module."]) == "module."
    assert strip_prefixes("modules.a", ["module."]) == "modules.a"


def test_prefixes_may_not_make_two_keys_one() -> None:
    text = refusal_of("strip_prefix: [module.]\nrename: {a: b}\n", {"a": S, "module.a": S})
    assert "a and module.a are the same key once their prefixes are stripped" in text


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        (["e", "h"], {"x": S, "z": S}),
        (["e"], {"x": S, "z": S}),
        (["h"], {"x": S, "z": S}),
    ],
)
def test_a_tie_takes_whichever_is_there(present: list[str], expected: dict[str, tuple[int, ...]]) -> None:
    body = "rules:\n  - {from: {tie: [e, h]}, copy: [x, z]}\n"
    plan = plan_of(body, dict.fromkeys(present, S))
    assert targets_of(plan) == expected
    assert [(check.first, check.second) for check in plan.equality_checks] == [(0, 1)] * (len(present) - 1)
    back = plan_of(body, expected, reverse=True)
    assert targets_of(back) == {"e": S}, "a tie is stored once, under its first key"
    assert len(back.equality_checks) == 1


def test_a_copy_demands_every_key() -> None:
    body = "rules:\n  - {from: {copy: ['x.{i}', 'z.{i}']}, to: 'w.{i}'}\n"
    assert refusal_of(body, {"x.0": S, "z.0": S, "x.1": S}) == (
        "s.yaml:6:5: rules[0]: z.1 is missing for i=1, which the rule needs beside the keys that are there"
    )
    assert "no key matches 'x.{i}'" in refusal_of(body, {})


def test_copies_that_differ_in_shape_or_dtype() -> None:
    body = "rules:\n  - {from: {copy: [x, z]}, to: w}\n"
    assert "rules[0]: z [3] F32 is unlike x [2] F32\n    the rule wants them alike" in refusal_of(
        body, {"x": S, "z": (3,)}
    )
    other = TensorInfo("z", S, DType.F16)
    assert "z [2] F16 is unlike x [2] F32" in refusal_of(body, {"x": S, "z": other})


def test_ties_of_experts_are_compared_one_by_one() -> None:
    body = "rules:\n  - {from: {tie: ['a.{e}', 'b.{e}']}, to: w, layout: 'f -> e f'}\n"
    both = {"a.0": S, "a.1": S, "b.0": S, "b.1": S}
    assert len(plan_of(body, both).equality_checks) == 2
    assert "'b.{e}' lacks e = 0; there are 1" in refusal_of(body, {"a.0": S, "a.1": S, "b.1": S})


def test_experts_of_different_shapes_do_not_stack() -> None:
    body = "rules:\n  - {from: 'e.{e}', to: w, layout: 'f -> e f'}\n"
    assert "e.1 [3] F32 is unlike e.0 [2] F32" in refusal_of(body, {"e.0": S, "e.1": (3,)})


def test_names_with_special_characters_are_plain_text() -> None:
    odd = "a+(b)[c]$^|\\ %s ключ"
    assert targets_of(plan_of(f"rename: {{'{odd}.{{i}}': 'x.{{i}}.{odd}'}}", {f"{odd}.0": S})) == {f"x.0.{odd}": S}


def test_no_rule_sees_what_another_makes() -> None:
    body = "rename: {norm0: norm1, norm1: norm2, norm2: norm0}"
    plan = plan_of(body, {"norm0": (1,), "norm1": (2,), "norm2": (3,)})
    assert targets_of(plan) == {"norm1": (1,), "norm2": (2,), "norm0": (3,)}


@pytest.mark.parametrize(("kind", "when"), [("weight|bias", "p == 'weight' or config.bias[i]"), ("name", "p != 'z'")])
def test_a_missing_layer_where_the_condition_looks_at_a_name_too(kind: str, when: str) -> None:
    rule = f'{{from: "h.{{i}}.{{p:{kind}}}", to: "g.{{i}}.{{p}}", when: "{when}"}}'
    body = f"dims: {{L: config.L}}\nplaceholders: {{i: 0..L}}\nrules:\n  - {rule}\n"
    config = {"L": 3, "bias": [True, False, True]}
    shapes = {f"h.{i}.weight": S for i in range(3)} | {"h.0.bias": S, "h.1.bias": S, "h.2.bias": S}
    if kind != "name":
        del shapes["h.1.bias"]
    assert len(targets_of(plan_of(body, shapes, config=config))) == len(shapes)
    for lost in ("h.1.weight", "h.2.bias"):
        text = refusal_of(body, {key: S for key in shapes if key != lost}, config=config)
        _, i, p = lost.split(".")
        assert f"no key for i={i}, p={p}\n" in text
