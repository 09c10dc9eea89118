"""Conversion in memory: views where a view will do, any strides, any device, and the same refusals as for files."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from converters.errors import CheckpointError, CoverageError, WeightmapError
from converters.operations.cast import Cast
from converters.state_dict import convert_state_dict
from converters.tensor_info import DType
from converters.torch_dtypes import from_torch, to_torch
from tests.planning import spec_of
from tests.test_operations import PAIRS, as_raw, as_torch, every_pattern

RENAME = spec_of("rename: {a: b}")
TRANSPOSE = spec_of("rules: [{from: a, to: b, layout: i o -> o i}]")
FUSE = spec_of("rules: [{from: {q: q, k: k}, to: qk, layout: {q: f i, k: g i, to: '(q: f | k: g) i'}}]")
STACK = spec_of("rules: [{from: 'e.{e}', to: w, layout: '... -> e ...'}]")
COPY = spec_of("rules: [{from: {copy: [a, c]}, to: b}]")
HEADS = spec_of("dims: {H: 2}\nrules: [{from: a, to: b, layout: (H d 2) i -> (H 2 d) i}]")


def shares(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def test_views_where_a_view_will_do() -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    assert convert_state_dict(RENAME, {"a": weight})["b"].data_ptr() == weight.data_ptr()
    qk = torch.cat([weight, weight + 100])
    split = convert_state_dict(
        spec_of(
            "dims: {f: 3}\nrules: [{from: qk, to: {q: q, k: k}, layout: {from: '(q: f | k: g) i', q: f i, k: g i}}]"
        ),
        {"qk": qk},
    )
    assert split["q"].data_ptr() == qk.data_ptr()
    assert split["k"].data_ptr() == qk[3:].data_ptr()
    experts = convert_state_dict(STACK, {"w": qk}, reverse=True)
    assert all(shares(tensor, qk) for tensor in experts.values())
    turned = convert_state_dict(TRANSPOSE, {"a": weight})["b"]
    assert torch.equal(turned, weight.t())
    split["q"][0, 0] = -1
    assert qk[0, 0] == -1, "to change one is to change the other"


def test_joined_tensors_are_new() -> None:
    q, k = torch.ones(2, 3), torch.zeros(1, 3)
    fused = convert_state_dict(FUSE, {"q": q, "k": k})["qk"]
    assert torch.equal(fused, torch.cat([q, k]))
    assert not shares(fused, q)
    stacked = convert_state_dict(STACK, {"e.0": q, "e.1": q + 1})["w"]
    assert torch.equal(stacked, torch.stack([q, q + 1]))


@pytest.mark.parametrize("spec", [RENAME, TRANSPOSE, HEADS], ids=["rename", "transpose", "heads"])
def test_any_strides_will_do(spec: object) -> None:
    base = torch.arange(8 * 6.0).reshape(8, 6)
    expected = convert_state_dict(spec, {"a": base})["b"]  # type: ignore[arg-type]
    padded = torch.zeros(20, 9)
    padded[3:11, 2:8] = base
    inputs = {
        "transposed": base.t().contiguous().t(),
        "sliced": padded[3:11, 2:8],
        "every other": torch.stack([base, base], -1)[..., 1],
        "a parameter": nn.Parameter(base.clone()),
    }
    for name, tensor in inputs.items():
        found = convert_state_dict(spec, {"a": tensor})["b"]  # type: ignore[arg-type]
        assert torch.equal(found, expected), name
        assert not found.requires_grad, name
    expanded = torch.arange(6.0).expand(8, 6)
    assert torch.equal(
        convert_state_dict(spec, {"a": expanded})["b"],  # type: ignore[arg-type]
        convert_state_dict(spec, {"a": expanded.contiguous()})["b"],  # type: ignore[arg-type]
    )


def test_marks_of_torch_are_resolved() -> None:
    numbers = torch.tensor([[1 + 2j, 3 - 1j]])
    assert torch.equal(convert_state_dict(TRANSPOSE, {"a": numbers.conj()})["b"], numbers.conj().resolve_conj().t())
    found = convert_state_dict(COPY, {"a": numbers.conj(), "c": numbers.conj().resolve_conj()})["b"]
    assert not found.is_conj()


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1, 1)])
def test_scalars_and_empty_tensors(shape: tuple[int, ...]) -> None:
    tensor = torch.ones(shape)
    assert convert_state_dict(RENAME, {"a": tensor})["b"].shape == shape
    assert convert_state_dict(COPY, {"a": tensor, "c": tensor.clone()})["b"].shape == shape
    assert convert_state_dict(STACK, {"e.0": tensor, "e.1": tensor})["w"].shape == (2, *shape)
    if tensor.numel():
        with pytest.raises(CoverageError, match="a and c must be equal to become one tensor"):
            convert_state_dict(COPY, {"a": tensor, "c": tensor + 1})


def test_equal_means_the_same_bytes() -> None:
    nan = torch.tensor([float("nan")])
    assert convert_state_dict(COPY, {"a": nan, "c": nan.clone()})["b"].isnan().all()
    with pytest.raises(CoverageError):
        convert_state_dict(COPY, {"a": torch.tensor([0.0]), "c": torch.tensor([-0.0])})


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool, torch.complex64, torch.uint16]
)
def test_every_dtype_keeps_its_bits(dtype: torch.dtype) -> None:
    raw = torch.randint(0, 2, (4, 6), dtype=torch.uint8)
    tensor = raw.to(dtype) if dtype != torch.uint16 else raw.to(torch.int32).to(dtype)
    found = convert_state_dict(HEADS, {"a": tensor})["b"]
    assert found.dtype == dtype
    back = convert_state_dict(HEADS, {"b": found}, reverse=True)["a"]
    assert torch.equal(back.view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=lambda dtype: dtype.label)
def test_casts_and_their_refusals_are_those_of_files(source: DType, target: DType) -> None:
    raw = every_pattern(source)[::7]
    tensor = as_torch(raw, source)
    if source.bits == 8:
        return  # a blanket cast leaves 8-bit floats alone
    try:
        expected = Cast(target).apply(raw, source, "b")
    except CheckpointError as error:
        count = error.problems[0].what.split()[0]
        with pytest.raises(CheckpointError, match=f"b: {count} values don't fit {target}"):
            convert_state_dict(RENAME, {"a": tensor}, dtype=target.label)
        return
    found = convert_state_dict(RENAME, {"a": tensor}, dtype=target.label)["b"]
    assert found.dtype == to_torch(target)
    same = as_raw(found) == expected
    assert same[~tensor.float().isnan().numpy()].all()


def test_a_number_beyond_the_largest_is_refused_where_torch_saturates() -> None:
    inside = torch.tensor([464.0, -464.0, 448.0])
    assert convert_state_dict(RENAME, {"a": inside}, dtype="F8_E4M3")["b"].float().abs().tolist() == [448.0] * 3
    for value in (465.0, 1e9, float("inf")):
        with pytest.raises(CheckpointError, match="1 values don't fit F8_E4M3"):
            convert_state_dict(RENAME, {"a": torch.tensor([1.0, value])}, dtype="F8_E4M3")


def test_a_blanket_cast_leaves_integers_alone() -> None:
    state = {"a": torch.arange(3)}
    assert convert_state_dict(RENAME, state, dtype="bfloat16")["b"].data_ptr() == state["a"].data_ptr()
    with pytest.raises(WeightmapError, match="values can't be cast to I32"):
        convert_state_dict(RENAME, {"a": torch.ones(1)}, dtype="int32")
    with pytest.raises(WeightmapError, match="'float17' is no dtype"):
        convert_state_dict(RENAME, {"a": torch.ones(1)}, dtype="float17")


def test_what_is_no_dense_tensor() -> None:
    with pytest.raises(CheckpointError, match="a is no tensor"):
        convert_state_dict(RENAME, {"a": [1.0]})  # type: ignore[dict-item]
    with pytest.raises(CheckpointError, match="a is sparse"):
        convert_state_dict(RENAME, {"a": torch.eye(2).to_sparse()})


def test_what_is_made_anew() -> None:
    spec = spec_of("rename: {a: b}\nrules: [{fill: arange, to: pos, shape: [1, 3], dtype: I64}]")
    found = convert_state_dict(spec, {"a": torch.ones(2)})
    assert torch.equal(found["pos"], torch.arange(3).reshape(1, 3))
    assert convert_state_dict(spec, found, reverse=True).keys() == {"a"}
    with pytest.raises(CoverageError, match="pos doesn't hold what the rule fills it with, from element 1 on"):
        convert_state_dict(spec, {**found, "pos": torch.tensor([[0, 5, 2]])}, reverse=True)


def test_shapes_without_data() -> None:
    state = {"a": torch.empty(4096, 11008, device="meta", dtype=torch.bfloat16)}
    found = convert_state_dict(TRANSPOSE, state)["b"]
    assert (found.shape, found.device.type, found.dtype) == ((11008, 4096), "meta", torch.bfloat16)


@pytest.mark.gpu
def test_tensors_stay_on_their_device() -> None:
    spec = spec_of("rules: [{from: a, to: b, layout: i o -> o i}, {fill: ones, to: c, shape: [3]}]")
    weight = torch.rand(5, 7)
    found = convert_state_dict(spec, {"a": weight.cuda()})
    assert {tensor.device.type for tensor in found.values()} == {"cuda"}
    assert torch.equal(found["b"].cpu(), weight.t())


def test_dtypes_are_paired_both_ways() -> None:
    for dtype in DType:
        try:
            found = to_torch(dtype)
        except CheckpointError:
            assert dtype in (DType.F4, DType.F6_E2M3, DType.F6_E3M2)
        else:
            assert from_torch(found) is dtype
    with pytest.raises(CheckpointError, match=r"safetensors has no dtype for torch\.complex128"):
        from_torch(torch.complex128)
