"""Plans from headers: shapes, coverage of both sides, dtypes, fills; refusals name key, rule, line and next step."""

from __future__ import annotations

import pytest

from converters.errors import WeightmapError
from converters.planner import natural_order
from converters.tensor_info import DType, TensorInfo
from tests.planning import plan_of, refusal_of, targets_of

FUSE = """
dims: {H: config.H, G: config.G, D: config.D}
rules:
  - from: {q: q, k: k, v: v}
    to: qkv
    layout: {q: "(H D) ...", k: "(G D) ...", v: "(G D) ...", to: "(q: H D | k: G D | v: G D) ..."}
"""


def test_a_fuse_and_its_inverse() -> None:
    config = {"H": 4, "G": 2, "D": 3}
    assert targets_of(plan_of(FUSE, {"q": (12, 5), "k": (6, 5), "v": (6, 5)}, config=config)) == {"qkv": (24, 5)}
    back = plan_of(FUSE, {"qkv": (24, 5)}, config=config, reverse=True)
    assert targets_of(back) == {"k": (6, 5), "q": (12, 5), "v": (6, 5)}


def test_block_sizes_that_do_not_add_up() -> None:
    text = refusal_of(FUSE, {"qkv": (23, 5)}, config={"H": 4, "G": 2, "D": 3}, reverse=True)
    assert text == (
        "s.yaml:7:5: rules[0]: layout.to: qkv [23, 5] F32: blocks sum to 24 (D=3, G=2, H=4), but dim 0 is 23"
    )


def test_a_split_is_never_made_in_equal_parts_by_default() -> None:
    text = refusal_of(FUSE, {"qkv": (24, 5)}, reverse=True)
    assert "can't be worked out from dim 0 = 24 alone" in text
    assert "H: " in text.split("\n")[1], "and the reason why H isn't known"


def test_wrong_dims() -> None:
    text = refusal_of(FUSE, {"q": (12, 5), "k": (6, 5), "v": (6, 5)}, config={"H": 4, "G": 4, "D": 3})
    assert "s.yaml:7:5: rules[0]: layout.k: k [6, 5] F32: '(G D)' is 12 (D=3, G=4), but dim 0 is 6" in text


def test_dims_and_keys_must_agree() -> None:
    body = "dims: {E: 3}\nrules:\n  - {from: 'e.{E2}', to: w, layout: 'f -> E2 f'}\nplaceholders: {E2: 0..E}\n"
    assert "lacks E2 = 2" in refusal_of(body, {"e.0": (1,), "e.1": (1,)})


def test_dims_that_no_config_gives_must_agree_across_rules() -> None:
    body = "dims: {E: config.E}\nrules:\n  - {from: a, to: b, layout: E -> E}\n  - {from: c, to: d, layout: E -> E}\n"
    assert "rules[1]: E is 3 here, but 2 in the tensors of another rule" in refusal_of(body, {"a": (2,), "c": (3,)})


def test_mixed_dtypes() -> None:
    shapes = {"q": (12, 5), "k": TensorInfo("k", (6, 5), DType.F16), "v": (6, 5)}
    text = refusal_of(FUSE, shapes, config={"H": 4, "G": 2, "D": 3})
    assert text.startswith("s.yaml:7:5: rules[0]: the tensors that are joined have different dtypes: ")
    assert "k [6, 5] F16" in text
    assert text.endswith("cast one of them first")


def test_two_rules_for_one_target() -> None:
    body = "rename:\n  a: x\n  b: x\n"
    assert refusal_of(body, {"a": (2,), "b": (3,)}) == (
        "s.yaml:7:3: rename.b: both rename.a (line 6) and this rule make x\n"
        "    each target is made once; give one of the two another key"
    )
    same_shape = refusal_of(body, {"a": (2,), "b": (2,)})
    assert same_shape.startswith(
        "s.yaml:6:3: rename.a: x is made by rename.a and rename.b, but not every element exactly once"
    )


def test_one_rule_may_not_make_a_target_twice() -> None:
    body = "rules:\n  - {from: a, to: {x: c, z: c}, layout: {from: '(x: f | z: f)', x: f, z: f}}\n"
    assert "rules[0]: two source keys become c" in refusal_of(body, {"a": (4,)})


@pytest.mark.parametrize("order", ["rename first", "fill first"])
def test_a_fill_never_writes_over_a_tensor(order: str) -> None:
    rules = ["  - {from: a, to: x}\n", "  - {fill: zeros, to: x, shape: [2], dtype: F32}\n"]
    body = "rules:\n" + "".join(rules if order == "rename first" else reversed(rules))
    text = refusal_of(body, {"a": (2,)})
    assert "make x" in text
    assert "rules[0]" in text
    assert "rules[1]" in text


PARTS = """
dims: {A: 2, B: 3}
rules:
  - {from: w, to: x, layout: "(x: A | _: B) i -> A i"}
  - {from: w, to: z, layout: "(_: A | z: B) i -> B i"}
"""


def test_two_rules_may_share_a_source_and_a_target_in_parts() -> None:
    body = PARTS.replace('A i"}', '(x: A) i"}').replace('B i"}', '(z: B) i"}')
    assert targets_of(plan_of(body, {"w": (5, 4)})) == {"x": (2, 4), "z": (3, 4)}
    assert targets_of(plan_of(body, {"x": (2, 4), "z": (3, 4)}, reverse=True)) == {"w": (5, 4)}


def test_a_part_that_no_rule_takes() -> None:
    body = "dims: {A: 2, B: 3}\nrules:\n  - {from: w, to: x, layout: '(x: A | _: B) -> (x: A)'}\n"
    assert refusal_of(body, {"w": (5,)}) == (
        "s.yaml: w [5] F32: not every element is used exactly once\n"
        "    a block that one rule leaves out ('_') must be taken by another"
    )
    assert "w is made by rules[0], but not every element exactly once" in refusal_of(body, {"x": (2,)}, reverse=True)


def test_a_part_that_two_rules_take() -> None:
    rule = "  - {{from: w, to: {to}, layout: '(x: A | _: B) -> (x: A)'}}\n"
    body = "dims: {A: 2, B: 2}\nrules:\n" + rule.format(to="x") + rule.format(to="z")
    assert "w [4] F32: not every element is used exactly once" in refusal_of(body, {"w": (4,)})


def test_empty_tensors_are_targets_too() -> None:
    body = "rules:\n  - {from: w, to: 'e.{e}', layout: 'e f -> f'}\n"
    assert targets_of(plan_of(body, {"w": (3, 0)})) == {"e.0": (0,), "e.1": (0,), "e.2": (0,)}
    assert targets_of(plan_of(body, {"e.0": (0,), "e.1": (0,)}, reverse=True)) == {"w": (2, 0)}
    assert targets_of(plan_of("rename: {a: b}", {"a": (0, 7)})) == {"b": (0, 7)}


def test_a_number_below_zero_has_no_key() -> None:
    assert "'g.{i - 1}' has no key for these indices: a number in it would be negative" in refusal_of(
        "rename: {'h.{i}': 'g.{i-1}'}", {"h.0": (1,), "h.1": (1,)}
    )


def test_a_placeholder_and_an_axis_may_have_one_name() -> None:
    body = "placeholders: {i: 0..2}\nrules:\n  - {from: 'h.{i}.weight', to: 'g.{i}.weight', layout: 'i o -> o i'}\n"
    assert targets_of(plan_of(body, {"h.0.weight": (5, 3), "h.1.weight": (5, 3)})) == {
        "g.0.weight": (3, 5),
        "g.1.weight": (3, 5),
    }


def test_narrow_elements_keep_their_bytes_whole() -> None:
    stack = "rules:\n  - {from: 'e.{e}', to: w, layout: 'f -> e f'}\n"
    assert targets_of(plan_of(stack, {"e.0": (4,), "e.1": (4,)}, dtype=DType.F4)) == {"w": (2, 4)}
    assert targets_of(plan_of(stack, {"e.0": (4,), "e.1": (4,)}, dtype=DType.F6_E2M3)) == {"w": (2, 4)}
    assert "w [2, 3] F4: the layout would cut a byte in two, since an element has 4 bits" in refusal_of(
        stack, {"e.0": (3,), "e.1": (3,)}, dtype=DType.F4
    )
    transpose = "rules:\n  - {from: a, to: b, layout: 'i o -> o i'}\n"
    assert "would cut a byte in two" in refusal_of(transpose, {"a": (4, 4)}, dtype=DType.F4)
    assert targets_of(plan_of(transpose, {"a": (4, 4)}, dtype=DType.C64)) == {"b": (4, 4)}


# --- dtypes ------------------------------------------------------------------------------------------------------


def test_a_blanket_cast_leaves_integers_masks_and_blocks() -> None:
    infos = {dtype.label: TensorInfo(f"a.{dtype.label}", (4,), dtype) for dtype in DType}
    plan = plan_of("rename: {'a.{n:name}': 'b.{n}'}", {info.name: info for info in infos.values()}, cast=DType.F16)
    found = {target.info.name[2:]: target.info.dtype for target in plan.targets}
    cast = {"F16", "BF16", "F32", "F64"}
    assert {name for name, dtype in found.items() if dtype is DType.F16} == cast
    assert all(found[name].label == name for name in found.keys() - cast)


@pytest.mark.parametrize("dtype", [DType.I32, DType.BOOL, DType.F4, DType.F8_E8M0, DType.C64])
def test_there_is_no_blanket_cast_to_what_is_no_float(dtype: DType) -> None:
    with pytest.raises(WeightmapError, match=f"values can't be cast to {dtype}; there are: BF16, F16"):
        plan_of("rename: {a: b}", {"a": (2,)}, cast=dtype)


def test_a_cast_of_the_spec_demands_its_dtype() -> None:
    body = "rules:\n  - {from: a, to: b, cast: {from: F16, to: F32}}\n"
    assert plan_of(body, {"a": (2,)}, dtype=DType.F16).targets[0].info.dtype is DType.F32
    assert "rules[0]: the cast is from F16, but the tensor is BF16" in refusal_of(body, {"a": (2,)}, dtype=DType.BF16)
    free = "rules:\n  - {from: a, to: b, cast: F32}\n"
    assert "there is no cast from I32 to F32: only floating dtypes are cast" in refusal_of(
        free, {"a": (2,)}, dtype=DType.I32
    )


# --- fills -------------------------------------------------------------------------------------------------------

FILL = "rename: {{a: b}}\nrules:\n  - {{fill: {value}, to: pe, shape: [{shape}]{dtype}}}\n"


def fill(value: str = "zeros", shape: str = "2, 3", dtype: str | None = None) -> str:
    return FILL.format(value=value, shape=shape, dtype=f", dtype: {dtype}" if dtype else "")


def test_a_fill_takes_the_dtype_of_the_tensors_around() -> None:
    plan = plan_of(fill(), {"a": (2,)}, dtype=DType.BF16)
    assert {target.info.name: target.info.dtype for target in plan.targets}["pe"] is DType.BF16
    mixed = {"a": (2,), "c": TensorInfo("c", (1,), DType.F16)}
    body = fill().replace("{a: b}", "{a: b, c: d}")
    assert refusal_of(body, mixed) == (
        "s.yaml:7:5: rules[0]: the dtype to fill with isn't clear, the checkpoint has F16, F32\n    add 'dtype:'"
    )
    back = {"b": (2,), "d": TensorInfo("d", (1,), DType.F16), "pe": (2, 3)}
    assert targets_of(plan_of(body, back, reverse=True)) == {"a": (2,), "c": (1,)}, "the way back makes nothing"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (fill(shape="2 - 3"), "the size 2 - 3 is -1, and no whole number of at least 0"),
        (fill(shape="'true'"), "the size true is True, and no whole number of at least 0"),
        (fill("ones", dtype="F4"), "pe [2, 3] F4: a tensor of F4 can't be filled"),
        (fill("ones", dtype="C64"), "pe [2, 3] C64: a tensor of C64 can't be filled"),
        (fill("ones", dtype="F8_E8M0"), "a tensor of F8_E8M0 can't be filled"),
        (fill("arange", "257", "U8"), "pe [257] U8: U8 doesn't hold every whole number up to 256"),
        (fill("arange", "129", "I8"), "doesn't hold every whole number up to 128"),
        (fill("arange", "2049", "F16"), "doesn't hold every whole number up to 2048"),
        (fill("sinusoidal", "4, 2", "I32"), "sinusoidal positions are floating numbers"),
        (fill("sinusoidal", "", "F32"), "sinusoidal positions are floating numbers"),
    ],
)
def test_fills_that_cannot_be(body: str, message: str) -> None:
    assert message in refusal_of(body, {"a": (2,)})


@pytest.mark.parametrize(("shape", "dtype"), [("256", "U8"), ("128", "I8"), ("2048", "F16"), ("2", "BOOL")])
def test_the_longest_counts(shape: str, dtype: str) -> None:
    assert targets_of(plan_of(fill("arange", shape, dtype), {"a": (2,)}))["pe"] == (int(shape),)


def test_a_fill_of_another_shape_is_refused_on_the_way_back() -> None:
    text = refusal_of(fill(dtype="F32"), {"b": (2,), "pe": (2, 4)}, reverse=True)
    assert "pe [2, 4] F32: the rule makes it with shape [2, 3]" in text


def test_a_fill_may_be_missing_on_the_way_back() -> None:
    assert targets_of(plan_of(fill(dtype="F32"), {"b": (2,)}, reverse=True)) == {"a": (2,)}


def test_the_size_of_a_fill_may_be_read_off_another_tensor() -> None:
    body = "dims: {E: config.E}\nrules:\n  - {fill: ones, to: ones, shape: [E]}\n  - {from: a, to: b, layout: E -> E}\n"
    assert targets_of(plan_of(body, {"a": (7,)})) == {"ones": (7,), "b": (7,)}


# --- order -------------------------------------------------------------------------------------------------------


def test_layer_10_comes_after_layer_9() -> None:
    plan = plan_of(
        "rename: {'h.{i}.{n:name}': 'g.{i}.{n}'}", dict.fromkeys([f"h.{i}.{n}" for i in (10, 9) for n in "ba"], (1,))
    )
    assert [target.info.name for target in plan.targets] == ["g.9.a", "g.9.b", "g.10.a", "g.10.b"]
    assert sorted(["a.x", "a.2", "a.10", "a.01", "b"], key=natural_order) == ["a.2", "a.10", "a.01", "a.x", "b"]


def test_a_plan_does_not_depend_on_the_order_of_the_keys() -> None:
    shapes = {f"h.{i}": (i + 1,) for i in range(5)}
    one = plan_of("rename: {'h.{i}': 'g.{i}'}", shapes)
    other = plan_of("rename: {'h.{i}': 'g.{i}'}", dict(reversed(shapes.items())))
    assert [target.info for target in one.targets] == [target.info for target in other.targets]


def test_every_problem_is_reported_at_once() -> None:
    body = "rename: {a: b, c: d, e: f}"
    text = refusal_of(body, {"x": (1,), "z": (1,), "e": (1,)})
    assert [line.split(": ")[1] for line in text.split("\n") if line.startswith("s.yaml")] == [
        "no rule claims the key x", "no rule claims the key z", "rename.a", "rename.c",
    ]  # fmt: skip
