"""What operations compute, against torch and transformers, through plan, engine and memory alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from converters.errors import CheckpointError, CoverageError, SpecError
from converters.operations import Reduction
from converters.operations.dequantize import Dequantize
from converters.operations.dequantize_mxfp4 import DequantizeMxfp4
from converters.operations.mean import Mean
from converters.tensor_info import DType, TensorInfo
from converters.torch_dtypes import from_torch
from tests.both_ways import convert, there_and_back, to_bytes
from tests.operation_laws import Given, check_tensor_operation
from tests.planning import refusal_of, spec_of, spec_refusal_of


def one_rule(apply: str, *, layout: str = "... -> ...", source: str = "a") -> str:
    return f"""
        rules:
          - from: {source}
            to: b
            layout: {layout}
            apply: {apply}
    """


def given(name: str, tensor: Tensor) -> Given:
    import numpy as np

    dtype = from_torch(tensor.dtype)
    raw = np.frombuffer(to_bytes(tensor), dtype=f"u{dtype.bits // 8}")
    return Given(TensorInfo(name, tuple(tensor.shape), dtype), raw)


# --- affine ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_affine_is_what_torch_computes(dtype: torch.dtype) -> None:
    values = torch.randn(13, 7).to(dtype)
    working = torch.float64 if dtype == torch.float64 else torch.float32
    made = convert(one_rule("{op: affine, scale: 0.3, add: 1}"), {"a": values})["b"]
    assert torch.equal(made, (values.to(working) * torch.tensor(0.3, dtype=working) + 1).to(dtype))


def test_the_dtype_of_the_arithmetic_is_the_rules() -> None:
    values = torch.randn(500).to(torch.bfloat16)
    in_bfloat16 = convert(one_rule("{op: affine, scale: 0.3, add: 1, dtype: bfloat16}"), {"a": values})["b"]
    in_float64 = convert(one_rule("{op: affine, scale: 0.3, add: 1, dtype: F64}"), {"a": values})["b"]
    assert torch.equal(in_bfloat16, (values * torch.tensor(0.3, dtype=torch.bfloat16)) + 1)
    assert not torch.equal(in_bfloat16, in_float64)


@pytest.mark.parametrize("scale", ["-1", "0.5", "-16"])
def test_powers_of_two_come_back_bit_for_bit(scale: str) -> None:
    body = one_rule(f"{{op: affine, scale: {scale}}}", layout="o i -> i o")
    values = torch.randn(9, 6, generator=torch.Generator().manual_seed(0)).half()  # none so small that it loses a bit
    values[0, 0] = -0.0
    assert torch.equal(there_and_back(body, {"a": values})["b"], (values * float(scale)).T)
    assert spec_of(body).exactness == "exact"


def test_what_a_power_of_two_would_lose_is_an_error() -> None:
    values = torch.tensor([1.0, 2.0**-24]).half()
    with pytest.raises(CheckpointError, match=r"1 values times 0.25 lose bits.*the first is 5.96046e-08"):
        convert(one_rule("{op: affine, scale: 0.25}"), {"a": values})


def test_a_norm_stored_minus_one_is_approximate() -> None:
    body = one_rule("{op: affine, add: 1}")
    assert spec_of(body).exactness == "approximate"
    values = torch.randn(50) * 1e-3
    back = convert(body, convert(body, {"a": values}), reverse=True)["a"]
    assert 0 < (back - values).abs().max() < 1e-7


def test_a_value_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="1 values don't fit F16"):
        convert(one_rule("{op: affine, scale: 2}"), {"a": torch.tensor([1.0, 60000.0]).half()})
    assert "affine takes floating numbers, but the tensor is I64" in refusal_of(
        one_rule("{op: affine, add: 1}"), {"a": TensorInfo("a", (2,), DType.I64)}
    )


def test_operations_come_one_after_the_other() -> None:
    body = one_rule("[{op: cast, from: BF16, to: F32}, {op: affine, add: 1}, negexp]")
    values = torch.randn(20).bfloat16()
    made = convert(body, {"a": values})["b"]
    assert torch.allclose(made, -torch.exp(values.float() + 1), rtol=1e-6)
    back = spec_of(body).inverse().rules[0].operations
    assert [operation.name for operation in back] == ["neglog", "affine", "cast"]
    restored = convert(body, {"b": made}, reverse=True)["a"]
    assert (restored.float() - values.float()).abs().max() < 0.02


# --- negexp, neglog --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_decay_rates_are_what_torch_computes(dtype: torch.dtype) -> None:
    logarithms = torch.randn(11, 3).to(dtype)
    body = one_rule("negexp")
    made = convert(body, {"a": logarithms})["b"]
    working = torch.float64 if dtype == torch.float64 else torch.float32
    assert torch.allclose(made, -torch.exp(logarithms.to(working)).to(dtype), rtol=4 * torch.finfo(dtype).eps)
    back = convert(body, {"b": made}, reverse=True)["a"]
    assert torch.allclose(back, logarithms, rtol=8 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)


def test_rates_that_have_no_logarithm() -> None:
    with pytest.raises(CheckpointError, match=r"2 values aren't negative.*: the largest is 0.5"):
        convert(one_rule("neglog"), {"a": torch.tensor([-1.0, 0.0, 0.5])})
    with pytest.raises(CheckpointError, match="1 values are so small that their exponential is 0 in F32"):
        convert(one_rule("negexp"), {"a": torch.tensor([0.0, -200.0])})
    with pytest.raises(CheckpointError, match="1 values don't fit F32: the largest is inf"):
        convert(one_rule("negexp"), {"a": torch.tensor([0.0, 200.0])})


# --- mean ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "shape", "view", "axis"),
    [
        ("(G r D) i -> (G D) i", (12, 5), (2, 3, 2, 5), 1),
        ("r i -> i", (4, 6), (4, 6), 0),
        ("o r -> o", (7, 5), (7, 5), 1),
        ("(G r) i -> i G", (6, 5), (2, 3, 5), 1),
        ("a r b -> a b", (3, 7, 2), (3, 7, 2), 1),
    ],
)
def test_a_mean_over_one_axis(layout: str, shape: tuple[int, ...], view: tuple[int, ...], axis: int) -> None:
    values = torch.randn(shape)
    body = "    dims: {G: 2, D: 2}\n" + one_rule("{op: mean, over: r}", layout=layout).lstrip("\n")
    body = body.replace("    dims", "        dims", 1)
    made = convert(body, {"a": values})["b"]
    expected = values.reshape(view).mean(axis)
    expected = expected.T if layout.endswith("i G") else expected.reshape(made.shape)
    assert torch.allclose(made, expected, atol=1e-6)
    with pytest.raises(SpecError, match="a mean over r doesn't tell what the values were"):
        spec_of(body).inverse()


def test_a_mean_does_not_depend_on_how_it_is_cut() -> None:
    values = torch.randn(3, 4, 5).bfloat16()
    for reduction in (Reduction(3, 4, 5), Reduction(1, 3, 20), Reduction(12, 5, 1), Reduction(15, 2, 2)):
        made = TensorInfo("a", (reduction.outer, reduction.inner), DType.BF16)
        check_tensor_operation(Mean("r"), [given("a", values)], made, reduction)


def test_a_mean_that_overflows_is_an_error() -> None:
    values = torch.full((2, 3), 3e38)
    with pytest.raises(CheckpointError, match="don't fit F32"):
        convert(one_rule("{op: mean, over: r}", layout="r i -> i"), {"a": values})
    made = convert(one_rule("{op: mean, over: r, dtype: F64}", layout="r i -> i"), {"a": values})["b"]
    assert torch.equal(made, values[0])


def test_an_axis_that_is_not_there() -> None:
    body = one_rule("{op: mean, over: s}", layout="r i -> r i")
    assert "'mean' goes over s, which isn't an axis of 'r i'" in spec_refusal_of(body)
    assert "axis r of 'r i' is not in 'i'" in spec_refusal_of(one_rule("{op: mean, over: r}", layout="r i -> r i"))
    body = one_rule("{op: mean, over: r}", layout='"(a: r A | b: r 2) i -> (a: A | b: 2) i"')
    message = "axis r, over which the operation goes, lies within the blocks of '(a: r A | b: r 2) i'"
    assert message in refusal_of(f"        dims: {{r: 2}}\n{body}", {"a": (6, 3)})


# --- dequantize ------------------------------------------------------------------------------------------------------


def dequantized(weight: Tensor, scale: Tensor, rows: int, columns: int) -> Tensor:
    """Every element times the scale of its block, one by one."""
    made = torch.empty(weight.shape)
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            made[row, column] = weight[row, column].float() * scale[row // rows, column // columns].float()
    return made


SCALED = "{weight: a, scale: s}"


@pytest.mark.parametrize("weights", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
@pytest.mark.parametrize(
    ("shape", "block"), [((9, 14), (4, 5)), ((8, 10), (4, 5)), ((3, 2), (4, 5)), ((1, 11), (2, 3))]
)
def test_blocks_times_their_scales(weights: torch.dtype, shape: tuple[int, int], block: tuple[int, int]) -> None:
    weight = (torch.randn(shape) * 20).to(weights)
    scale = torch.rand(-(-shape[0] // block[0]), -(-shape[1] // block[1])) + 0.1
    for dtype in (torch.float32, torch.bfloat16):
        apply = f"{{op: dequantize, block: {list(block)}, dtype: {from_torch(dtype)}}}"
        made = convert(one_rule(apply, layout="o i -> i o", source=SCALED), {"a": weight, "s": scale})["b"]
        assert torch.equal(made, dequantized(weight, scale, *block).to(dtype).T)


def test_fp8_blocks_as_transformers_reads_them() -> None:
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

    weight, scale = torch.randn(200, 300).to(torch.float8_e4m3fn), torch.rand(2, 3) + 0.1
    expected = _dequantize_fp8_weight(weight, scale, [128, 128], torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        apply = f"{{op: dequantize, block: [128, 128], dtype: {from_torch(dtype)}}}"
        made = convert(one_rule(apply, source=SCALED), {"a": weight, "s": scale})["b"]
        assert torch.equal(made, expected.to(dtype))


def test_a_scale_for_each_row_and_for_everything() -> None:
    weight = torch.randint(-127, 128, (2, 6, 5), dtype=torch.int8)
    rows, single = torch.rand(2, 6, 1) + 0.1, torch.rand(()) + 0.1
    body = one_rule("{op: dequantize, block: [1, all], dtype: F32}", source=SCALED)
    assert torch.equal(convert(body, {"a": weight, "s": rows})["b"], weight.float() * rows)
    body = one_rule("{op: dequantize, block: [all, all, all], dtype: F32}", source=SCALED)
    assert torch.equal(convert(body, {"a": weight, "s": single})["b"], weight.float() * single)


def test_several_are_dequantized_and_fused_at_once() -> None:
    q, k = torch.randn(4, 6).to(torch.float8_e4m3fn), torch.randn(2, 6).to(torch.float8_e4m3fn)
    sq, sk = torch.rand(2, 2) + 0.1, torch.rand(1, 2) + 0.1
    body = """
        rules:
          - from: {q: {weight: q, scale: q_scale}, k: {weight: k, scale: k_scale}}
            to: qk
            layout: {q: Q i, k: K i, to: "(k: K | q: Q) i"}
            apply: [{op: dequantize, block: [2, 3], dtype: F32}, {op: affine, scale: 2}]
            optional: true
    """
    made = convert(body, {"q": q, "q_scale": sq, "k": k, "k_scale": sk})["qk"]
    assert torch.equal(made, 2 * torch.cat([dequantized(k, sk, 2, 3), dequantized(q, sq, 2, 3)]))
    with pytest.raises(CoverageError, match="k_scale is missing"):
        convert(body, {"q": q, "q_scale": sq, "k": k})


def test_parts_of_what_is_dequantized_go_different_ways() -> None:
    weight, scale = torch.randn(5, 4).to(torch.float8_e4m3fn), torch.rand(3, 2) + 0.1
    rule = """
          - from: {weight: a, scale: s}
            to: {NAME: NAME}
            layout: {from: "LAYOUT i", NAME: N i}
            apply: {op: dequantize, block: [2, 2], dtype: F32}
    """
    rules = "".join(
        rule.replace("NAME", name).replace("LAYOUT", layout).replace("N i", f"{size} i")
        for name, layout, size in (("x", "(x: X | _: Z)", "X"), ("z", "(_: X | z: Z)", "Z"))
    )
    body = f"        dims: {{X: 2, Z: 3}}\n        rules:{rules}"
    made = convert(body, {"a": weight, "s": scale})
    expected = dequantized(weight, scale, 2, 2)
    assert torch.equal(made["x"], expected[:2])
    assert torch.equal(made["z"], expected[2:])
    only_one = body[: body.rindex("          - ")]
    with pytest.raises(CoverageError, match="not every element is used exactly once"):
        convert(only_one, {"a": weight, "s": scale})


@pytest.mark.parametrize(
    ("weight", "scale", "what"),
    [
        (TensorInfo("a", (9, 14), DType.F32), TensorInfo("s", (3, 3), DType.F32), "takes weights of I8, F8_E4M3"),
        (TensorInfo("a", (9, 14), DType.I8), TensorInfo("s", (3, 3), DType.U8), "scales must be floating numbers"),
        (TensorInfo("a", (9, 14), DType.I8), TensorInfo("s", (3, 2), DType.F32), "blocks of [4, 5] make [3, 3] scales"),
        (TensorInfo("a", (9,), DType.I8), TensorInfo("s", (3,), DType.F32), "has fewer dimensions than 'block'"),
    ],
)
def test_scales_that_do_not_fit(weight: TensorInfo, scale: TensorInfo, what: str) -> None:
    body = one_rule("{op: dequantize, block: [4, 5]}", source=SCALED)
    assert what in refusal_of(body, {"a": weight, "s": scale})


def test_a_block_too_large_for_its_dtype() -> None:
    weight, scale = torch.full((2, 2), 400.0).to(torch.float8_e4m3fn), torch.full((1, 1), 1000.0)
    body = one_rule("{op: dequantize, block: [2, 2], dtype: F16}", source=SCALED)
    with pytest.raises(CheckpointError, match="values don't fit F16: the largest is 384000"):
        convert(body, {"a": weight, "s": scale})


# --- mxfp4 -----------------------------------------------------------------------------------------------------------

MXFP4 = "{blocks: a, scales: s}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_mxfp4_as_transformers_reads_it(dtype: torch.dtype) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.randint(0, 256, (2, 6, 3, 16), dtype=torch.uint8)
    scales = torch.randint(100, 150, (2, 6, 3), dtype=torch.uint8)
    body = one_rule(f"{{op: dequantize_mxfp4, dtype: {from_torch(dtype)}}}", layout="e o i -> e i o", source=MXFP4)
    made = convert(body, {"a": blocks, "s": scales})["b"]
    assert torch.equal(made, convert_moe_packed_tensors(blocks, scales, dtype=dtype))


def test_every_pair_of_nibbles() -> None:
    e2m1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    blocks, scales = torch.arange(256, dtype=torch.uint8).reshape(2, 128), torch.tensor([127, 130], dtype=torch.uint8)
    made = convert(one_rule("{op: dequantize_mxfp4, dtype: F32}", source=MXFP4), {"a": blocks, "s": scales})["b"]
    expected = [[e2m1[byte % 16], e2m1[byte // 16]] for byte in range(256)]
    scaled = torch.tensor(expected).reshape(2, 256) * torch.tensor([[1.0], [8.0]])
    assert torch.equal(made, scaled.reshape(-1))


def test_scales_of_mxfp4_that_make_no_number() -> None:
    blocks, scales = torch.full((1, 2), 0x22, dtype=torch.uint8), torch.tensor([255], dtype=torch.uint8)
    body = one_rule("dequantize_mxfp4", source=MXFP4)
    with pytest.raises(CheckpointError, match="s: a scale is 255, which stands for no number"):
        convert(body, {"a": blocks, "s": scales})
    with pytest.raises(CheckpointError, match="don't fit F16"):
        convert(
            one_rule("{op: dequantize_mxfp4, dtype: F16}", source=MXFP4),
            {"a": blocks, "s": torch.tensor([160], dtype=torch.uint8)},
        )
    shapes = {"a": TensorInfo("a", (4, 3, 16), DType.U8), "s": TensorInfo("s", (4, 4), DType.U8)}
    assert "the scales must be bytes [4, 3]" in refusal_of(body, shapes)


def test_dequantizing_does_not_depend_on_how_it_is_cut() -> None:
    weight, scale = torch.randn(3, 5, 7).to(torch.float8_e4m3fn), torch.rand(3, 3, 2) + 0.1
    made = TensorInfo("a", (3, 5, 7), DType.F32)
    check_tensor_operation(Dequantize((2, 4), DType.F32), [given("a", weight), given("s", scale)], made)
    blocks = torch.randint(0, 256, (3, 2, 5), dtype=torch.uint8)
    scales = torch.randint(120, 130, (3, 2), dtype=torch.uint8)
    made = TensorInfo("a", (3, 20), DType.BF16)
    check_tensor_operation(DequantizeMxfp4(), [given("a", blocks), given("s", scales)], made)


@pytest.mark.parametrize(
    ("apply", "what"),
    [
        ("{op: affine}", "affine changes nothing"),
        ("{op: affine, scale: 0}", "'scale' is 0"),
        ("{op: affine, add: one}", "'add' is 'one', and must be a finite number"),
        ("{op: affine, ad: 1}", "affine has no option 'ad'"),
        ("{op: affine, add: 1, dtype: I32}", "'dtype' is 'I32', and must be what values are computed in"),
        ("{op: affine, add: 1, inverse: 1}", "'inverse' is 1, and must be true or false"),
        ("{op: afine, add: 1}", "there is no operation 'afine'"),
        ("{op: negexp, base: 2}", "negexp has no option 'base'"),
        ("{add: 1}", "must be the name of an operation, or a mapping with 'op'"),
        ("[]", "rules[0].apply is empty"),
        ("[negexp, {op: mean, over: r}]", "'mean' can only be the first operation"),
        ("{op: mean}", "'over' is missing, and must be text"),
        ("{op: dequantize, block: 128}", "'block' is 128, and must be a list of sizes"),
        ("{op: dequantize, block: [0]}", "must be a list of sizes, each a whole number or 'all'"),
        ("{op: dequantize, block: [2]}", "must give the key of weight and of scale"),
        ("{op: dequantize_mxfp4, dtype: I8}", "'dtype' is I8, and must be BF16, F16, F32 or F64"),
        ("{op: cast}", "'to' is missing: the dtype to cast to"),
        ("negexp\n            cast: F32", "has both 'cast' and 'apply'"),
    ],
)
def test_what_no_operation_can_be_made_of(apply: str, what: str) -> None:
    message = spec_refusal_of(one_rule(apply))
    assert what in message
    assert "s.yaml:9:" in message or "s.yaml:10:" in message or "s.yaml:6:" in message
