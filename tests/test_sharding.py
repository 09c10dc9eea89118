from __future__ import annotations

import huggingface_hub
import pytest
import torch
from huggingface_hub.serialization._base import parse_size_to_int
from hypothesis import example, given
from hypothesis import strategies as st

from converters.errors import WeightmapError
from converters.sharding import Shard, index_filename, parse_size, split_into_shards
from converters.tensor_info import DType, TensorInfo

TORCH_DTYPES = {DType.U8: torch.uint8, DType.BF16: torch.bfloat16, DType.F32: torch.float32, DType.I64: torch.int64}

infos = st.lists(
    st.builds(
        TensorInfo,
        name=st.text("ab.0", max_size=8),
        shape=st.lists(st.integers(0, 7), max_size=3).map(tuple),
        dtype=st.sampled_from(sorted(TORCH_DTYPES, key=str)),
    ),
    max_size=25,
    unique_by=lambda info: info.name,
)


def names(shards: tuple[Shard, ...]) -> dict[str, list[str]]:
    return {shard.filename: [info.name for info in shard.tensors] for shard in shards}


@given(infos, st.integers(1, 300))
@example([TensorInfo("a", (10,), DType.F32), TensorInfo("b", (1,), DType.U8)], 4)
def test_the_split_is_that_of_huggingface_hub(tensors: list[TensorInfo], max_shard_nbytes: int) -> None:
    state = {info.name: torch.zeros(info.shape, dtype=TORCH_DTYPES[info.dtype]) for info in tensors}
    expected = huggingface_hub.split_torch_state_dict_into_shards(state, max_shard_size=max_shard_nbytes)

    shards = split_into_shards(tensors, max_shard_nbytes)

    assert names(shards) == expected.filename_to_tensors
    assert list(names(shards)) == list(expected.filename_to_tensors)
    assert sum(shard.nbytes for shard in shards) == expected.metadata["total_size"]


@given(infos, st.integers(1, 300))
def test_the_split_is_that_of_meta_tensors_too_where_none_is_empty(
    tensors: list[TensorInfo], max_shard_nbytes: int
) -> None:
    tensors = [info for info in tensors if info.nbytes]
    state = {info.name: torch.empty(info.shape, dtype=TORCH_DTYPES[info.dtype], device="meta") for info in tensors}
    expected = huggingface_hub.split_torch_state_dict_into_shards(
        state, max_shard_size=max_shard_nbytes, filename_pattern="weights{suffix}.safetensors"
    )
    assert names(split_into_shards(tensors, max_shard_nbytes, "weights")) == expected.filename_to_tensors


def test_a_tensor_above_the_limit_gets_a_file_of_its_own_before_the_one_that_is_filled() -> None:
    small, large, tiny = (TensorInfo(name, (size,), DType.U8) for name, size in [("s", 5), ("l", 50), ("t", 1)])
    assert names(split_into_shards([small, large, tiny], 10)) == {
        "model-00001-of-00002.safetensors": ["l"],
        "model-00002-of-00002.safetensors": ["s", "t"],
    }


def test_one_shard_has_no_number_and_no_tensors_give_no_shards() -> None:
    info = TensorInfo("a", (3,), DType.F4)
    assert names(split_into_shards([info], 2)) == {"model.safetensors": ["a"]}
    assert split_into_shards([], 1) == ()
    assert index_filename() == "model.safetensors.index.json"


def test_a_limit_of_zero_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="above zero"):
        split_into_shards([], 0)


def test_more_than_99999_shards_only_widen_the_number() -> None:
    shards = split_into_shards([TensorInfo(str(i), (1,), DType.U8) for i in range(100_001)], 1)
    assert shards[0].filename == "model-00001-of-100001.safetensors"
    assert shards[-1].filename == "model-100001-of-100001.safetensors"


@pytest.mark.parametrize("text", ["5GB", "5 GB", " 5gb ", "1.5TB", "0.1MB", "4.1KB", "1e3KB", "007MB"])
def test_sizes_are_read_as_in_huggingface_hub(text: str) -> None:
    assert parse_size(text) == parse_size_to_int(text)


@given(st.floats(0.001, 1e6), st.sampled_from(["KB", "MB", "GB", "TB"]))
def test_fractions_are_rounded_as_in_huggingface_hub(number: float, unit: str) -> None:
    assert parse_size(f"{number}{unit}") == parse_size_to_int(f"{number}{unit}")


def test_plain_bytes_are_read() -> None:
    assert parse_size(5_000_000) == parse_size("5000000") == 5_000_000


@pytest.mark.parametrize(
    "text", ["", "GB", "-5GB", "nanGB", "infGB", "1e999GB", "5XB", "five GB", "5.5", "0", "0.0001KB", 0, -1, "\x1b"]
)
def test_anything_else_is_refused_with_an_example(text: str | int) -> None:
    with pytest.raises(WeightmapError) as refusal:
        parse_size(text)
    assert "5GB" in str(refusal.value)
    assert "\x1b" not in str(refusal.value)


def test_binary_units_are_explained() -> None:
    with pytest.raises(WeightmapError, match=r"a gibibyte is 1\.073741824GB"):
        parse_size("5GiB")
