"""A grid of scales moves with its blocks, or the move is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from converters.errors import CoverageError
from converters.spec_file import parse_spec
from converters.spec_yaml import spec_to_yaml
from converters.tensor_info import DType, TensorInfo
from tests.both_ways import convert, plan_for, there_and_back
from tests.planning import plan_of, refusal_of, spec_of, spec_refusal_of


def quantized(shape: tuple[int, int], block: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    return weight, torch.rand(-(-shape[0] // block[0]), -(-shape[1] // block[1]), generator=generator) + 0.1


def values(weight: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    grown = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return weight.float() * grown[: weight.shape[0], : weight.shape[1]]


ONE = """
    dims: {{H: 3, d: 4}}
    rules:
      - from: {{weight: a, scale: a_scale}}
        to: {{weight: b, scale: b_scale}}
        grid: {{scale: [{block}]}}
        layout: "{layout}"
"""


def test_heads_are_fused_in_another_order_and_transposed() -> None:
    body = """
        dims: {H: 3, G: 1, D: 8}
        rules:
          - from: {q: {weight: q, scale: q_scale}, k: {weight: k, scale: k_scale}}
            to: {weight: kq, scale: kq_scale}
            grid: {scale: [4, 5]}
            layout: {q: "(H D) i", k: "(G D) i", to: "i (k: G D | q: H D)"}
    """
    q, q_scale = quantized((24, 10), (4, 5))
    k, k_scale = quantized((8, 10), (4, 5), seed=1)
    made = there_and_back(body, {"q": q, "q_scale": q_scale, "k": k, "k_scale": k_scale})
    expected = torch.cat([values(k, k_scale, (4, 5)), values(q, q_scale, (4, 5))])
    assert torch.equal(values(made["kq"], made["kq_scale"], (5, 4)), expected.T)
    spec = spec_of(body)
    assert spec.exactness == "exact"
    assert parse_spec(spec_to_yaml(spec)) == spec
    assert parse_spec(spec_to_yaml(spec.inverse())) == spec.inverse()
    assert spec.inverse().inverse() == spec


def test_an_order_within_the_blocks_leaves_the_grid_as_it_is() -> None:
    """The rotary order of features changes within each head, and a block is a head."""
    weight, scale = quantized((24, 10), (8, 5))
    body = ONE.format(block="8, 5", layout="(H d 2) i -> (H 2 d) i")
    made = there_and_back(body, {"a": weight, "a_scale": scale})
    assert torch.equal(made["b_scale"], scale)
    expected = values(weight, scale, (8, 5)).reshape(3, 4, 2, 10).transpose(1, 2).reshape(24, 10)
    assert torch.equal(values(made["b"], made["b_scale"], (8, 5)), expected)


@pytest.mark.parametrize("rows", [2, 4])
def test_an_order_across_the_blocks_is_refused(rows: int) -> None:
    weight, scale = quantized((24, 10), (rows, 5))
    body = ONE.format(block=f"{rows}, 5", layout="(H d 2) i -> (H 2 d) i")
    with pytest.raises(CoverageError) as caught:
        convert(body, {"a": weight, "a_scale": scale})
    assert "layout.to: '(H 2 d)' would take the blocks of the grid apart" in str(caught.value)
    assert "s.yaml:7:5: rules[0]" in str(caught.value)


def test_a_scale_for_each_row_goes_anywhere_with_its_row() -> None:
    weight = torch.randint(-127, 128, (24, 10), dtype=torch.int8)
    for scale in (torch.rand(24), torch.rand(24, 1)):
        body = ONE.format(block="1, all", layout="(H d 2) i -> (H 2 d) i")
        made = there_and_back(body, {"a": weight, "a_scale": scale})
        assert made["b_scale"].shape == scale.shape
        expected = (weight * scale.reshape(24, 1)).reshape(3, 4, 2, 10).transpose(1, 2).reshape(24, 10)
        assert torch.equal(made["b"] * made["b_scale"].reshape(24, 1), expected)


def test_the_last_blocks_may_be_cut_off() -> None:
    weight, scale = quantized((9, 11), (4, 5))
    made = there_and_back(ONE.format(block="4, 5", layout="o i -> i o"), {"a": weight, "a_scale": scale})
    assert torch.equal(values(made["b"], made["b_scale"], (5, 4)), values(weight, scale, (4, 5)).T)


def test_experts_are_stacked_with_their_scales() -> None:
    body = """
        dims: {E: 3}
        placeholders: {e: 0..E}
        rules:
          - from: {gate: {weight: "{e}.g", scale: "{e}.gs"}, up: {weight: "{e}.u", scale: "{e}.us"}}
            to: {weight: w, scale: s}
            grid: {scale: {to: [1, 4, 5]}}
            layout: {gate: f h, up: f h, to: "e (gate: f | up: f) h"}
    """
    tensors: dict[str, Tensor] = {}
    expected = []
    for e in range(3):
        tensors[f"{e}.g"], tensors[f"{e}.gs"] = quantized((8, 10), (4, 5), seed=e)
        tensors[f"{e}.u"], tensors[f"{e}.us"] = quantized((8, 10), (4, 5), seed=9 + e)
        expected.append(torch.cat([values(tensors[f"{e}.{x}"], tensors[f"{e}.{x}s"], (4, 5)) for x in "gu"]))
    made = there_and_back(body, tensors)
    assert made["s"].shape == (3, 4, 2)
    for e in range(3):
        assert torch.equal(values(made["w"][e], made["s"][e], (4, 5)), expected[e])


def test_two_numbers_for_each_block() -> None:
    """A scale and an offset, each over blocks of its own."""
    body = """
        rules:
          - from: {weight: a, scale: s, zero: z}
            to: {weight: b, scale: t, zero: y1}
            grid: {scale: [2, 3], zero: [1, all]}
            layout: o i -> i o
    """
    tensors = {"a": torch.randint(0, 99, (4, 6), dtype=torch.uint8), "s": torch.rand(2, 2), "z": torch.rand(4, 1)}
    made = there_and_back(body, tensors)
    assert torch.equal(made["t"], tensors["s"].T)
    assert torch.equal(made["y1"], tensors["z"].T)


def test_a_blanket_cast_leaves_scales_alone() -> None:
    infos = {"a": TensorInfo("a", (4, 4), DType.F8_E4M3), "a_scale": TensorInfo("a_scale", (2, 2), DType.F32)}
    body = ONE.format(block="2, 2", layout="o i -> o i")
    plan = plan_of(body, infos, cast=DType.BF16)
    assert {target.info.name: target.info.dtype for target in plan.targets} == {
        "b": DType.F8_E4M3,
        "b_scale": DType.F32,
    }


@pytest.mark.parametrize(
    ("block", "layout", "shapes", "what"),
    [
        ("4, 5", "(H d 2) i -> (d H 2) i", ((24, 10), (6, 2)), "would take the blocks of the grid apart"),
        ("4, 5", "... -> ...", ((24, 10), (6, 2)), "must name as many dimensions as the grid has block sizes: 2"),
        ("4", "o i -> o i", ((24, 10), (6,)), "must name as many dimensions as the grid has block sizes: 1"),
        ("4, 5", "o i -> o i", ((24, 10), (6, 3)), "its shape must be [6, 2]: one number for each block of 'o i'"),
        ("4, 5", "o i -> o i", ((24, 10), (6,)), "stored without the last dimension, but 'o i' has blocks along it"),
        ("3, 5", "(H d 2) i -> (H d 2) i", ((24, 10), (8, 2)), "blocks of 3 elements cut '2', of size 2, apart"),
        ("16, 5", "(H d 2) i -> (H d 2) i", ((24, 10), (2, 2)), "blocks of 2 elements cut 'H', of size 3, apart"),
        ("48, 5", "(H d 2) i -> (H d 2) i", ((24, 10), (1, 2)), "24 elements, which blocks of 48 don't divide"),
    ],
)
def test_what_a_grid_can_not_follow(
    block: str, layout: str, shapes: tuple[tuple[int, ...], tuple[int, ...]], what: str
) -> None:
    infos = {"a": TensorInfo("a", shapes[0], DType.F8_E4M3), "a_scale": TensorInfo("a_scale", shapes[1], DType.F32)}
    assert what in refusal_of(ONE.format(block=block, layout=layout), infos)


def test_parts_that_blocks_reach_over_are_refused() -> None:
    body = """
        dims: {H: 1, D: 4}
        rules:
          - from: {weight: qk, scale: qk_scale}
            to: {q: {weight: q, scale: q_scale}, k: {weight: k, scale: k_scale}}
            grid: {scale: [8, 5]}
            layout: {from: "(q: H D | k: H D) i", q: "(H D) i", k: "(H D) i"}
    """
    weight, scale = quantized((8, 10), (8, 5))
    with pytest.raises(CoverageError, match="blocks of 8 elements reach over more than one part"):
        plan_for(body, {"qk": weight, "qk_scale": scale})


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("grid: {scale: [4, 5]}", "grid: {skale: [4, 5]}", "each term must give the tensor that the grid lies over"),
        ("to: {weight: b, scale: b_scale}", "to: b", "rules[0].to must give the key of weight and of scale"),
        ("grid:", "cast: F32\n        grid:", "cast has no meaning beside 'grid'"),
    ],
)
def test_what_makes_no_sense(old: str, new: str, what: str) -> None:
    body = ONE.format(block="4, 5", layout="o i -> o i")
    assert old in body
    assert what in spec_refusal_of(body.replace(old, new))


@pytest.mark.parametrize("size", ["0", "unknown", "2.5"])
def test_a_block_size_that_is_none(size: str) -> None:
    from converters.errors import SpecError

    infos = {"a": TensorInfo("a", (4, 4), DType.I8), "a_scale": TensorInfo("a_scale", (1, 1), DType.F32)}
    with pytest.raises(SpecError, match="grid"):
        plan_of(ONE.format(block=f"{size}, 4", layout="o i -> o i"), infos)
