"""Files that each have a place of their own: labels, file names, shards."""

from __future__ import annotations

import pytest

from converters.errors import CoverageError, SpecError
from converters.parts import (
    common_label,
    label_prefix,
    parse_config_entry,
    parse_part,
    same_file,
    shards_of_parts,
    split_key,
)
from converters.tensor_info import DType, TensorInfo

RANKS = parse_part("{t}", "consolidated.{t:02}.pth")
UNET = parse_part("unet", "unet/model.safetensors")


@pytest.mark.parametrize(
    ("label", "file"),
    [
        ("{t}", "consolidated.{t:02}.pth"),
        ("{t}", "mp_rank_{t:02}/model.pt"),
        ("{t}", "rank{t}.safetensors"),
        ("unet", "unet/diffusion_pytorch_model.safetensors"),
        ("all", "model.bin"),
    ],
)
def test_a_part_is_written_as_it_was_read(label: str, file: str) -> None:
    part = parse_part(label, file)
    assert (part.label_text, part.file_text) == (label, file)


@pytest.mark.parametrize(
    ("file", "label"),
    [
        ("consolidated.00.pth", "0"),
        ("consolidated.07.pth", "7"),
        ("consolidated.123.pth", "123"),
        ("consolidated.00.safetensors", "0"),
        ("consolidated.0.pth", None),
        ("consolidated.007.pth", None),
        ("consolidated..pth", None),
        ("consolidated.-1.pth", None),
        ("consolidated.٣٣.pth", None),
        ("consolidated.00.json", None),
        ("other.00.pth", None),
    ],
)
def test_the_number_of_a_file(file: str, label: str | None) -> None:
    assert RANKS.label_of(file) == label
    if label is not None:
        assert RANKS.stem(label) + "." + file.rpartition(".")[2] == file


def test_a_config_of_its_own_has_a_label_too() -> None:
    assert parse_config_entry("noise", "noise/config.json") == ("noise", "noise/config.json")
    with pytest.raises(SpecError, match="is no path of a file inside"):
        parse_config_entry("noise", "../config.json")
    with pytest.raises(SpecError, match="is no label of a config"):
        parse_config_entry("{t}", "config.json")


def test_a_component_is_found_whatever_its_suffix() -> None:
    assert [UNET.label_of(f"unet/model{suffix}") for suffix in (".safetensors", ".bin", ".txt")] == [
        "unet",
        "unet",
        None,
    ]
    assert UNET.directory == "unet"
    assert RANKS.directory == ""


@pytest.mark.parametrize(
    ("label", "file"),
    [
        ("unet", "../unet.safetensors"),
        ("unet", "/unet.safetensors"),
        ("unet", "a\\unet.safetensors"),
        ("unet", "unet.txt"),
        ("unet", "unet.{t}.safetensors"),
        ("{t}", "unet.safetensors"),
        ("{t}", "a{t}b{t}.safetensors"),
        ("{t}", "a{u}.safetensors"),
        ("{t}", "a{t:2}.safetensors"),
        ("{t}", "a{t:0}.safetensors"),
        ("a b", "a.safetensors"),
        ("{t", "a{t}.safetensors"),
    ],
)
def test_what_is_no_part_is_refused(label: str, file: str) -> None:
    with pytest.raises(SpecError):
        parse_part(label, file)


def test_keys_of_a_state_dict() -> None:
    assert split_key("3:layers.0.w") == ("3", "layers.0.w")
    assert split_key("layers.0.w") == ("", "layers.0.w")
    assert label_prefix([RANKS], ["a", "b"]) == "0:"
    assert label_prefix([RANKS], ["0:a", "1:a"]) == ""
    assert label_prefix([UNET], ["a"]) == label_prefix([], ["a"]) == ""
    assert common_label([RANKS], ["0:a", "0:b"]) == "0:"
    assert common_label([RANKS], ["0:a", "1:b"]) == common_label([UNET], ["0:a"]) == ""


def test_a_numbered_part_is_one_file_and_a_component_may_be_several() -> None:
    infos = [TensorInfo(f"{label}:{name}", (10,), DType.F32) for label in ("0", "1") for name in "ab"]
    shards = shards_of_parts([RANKS], infos, 41)
    assert [(shard.filename, shard.part, len(shard.tensors)) for shard in shards] == [
        ("consolidated.00.pth", "0", 2),
        ("consolidated.01.pth", "1", 2),
    ]
    infos = [TensorInfo(f"unet:{name}", (10,), DType.F32) for name in "ab"]
    assert [shard.filename for shard in shards_of_parts([UNET], infos, 41)] == [
        "unet/model-00001-of-00002.safetensors",
        "unet/model-00002-of-00002.safetensors",
    ]
    assert [shard.filename for shard in shards_of_parts([UNET], infos, 80)] == ["unet/model.safetensors"]


@pytest.mark.parametrize(
    "files",
    [
        {"unet": "x/model.safetensors", "vae": "x/model.bin"},
        {"{t}": "rank.{t}.pth", "first": "rank.0.pth"},
        {"first": "rank.12.pth", "{t}": "rank.{t:02}.safetensors"},
    ],
)
def test_two_parts_that_one_file_would_be(files: dict[str, str]) -> None:
    parts = [parse_part(label, file) for label, file in files.items()]
    found = same_file(parts)
    assert found is not None
    assert {part.label_text for part in found} == files.keys()
    assert same_file([RANKS, UNET, parse_part("all", "consolidated.1.pth")]) is None


@pytest.mark.parametrize("label", ["foo", "07", "-1", "\u0663"])
def test_a_label_that_is_no_number_has_no_numbered_file(label: str) -> None:
    with pytest.raises(CoverageError, match=r"is no number, and consolidated.\{t:02\}.pth needs one"):
        shards_of_parts([RANKS], [TensorInfo(f"{label}:w", (2,), DType.F32)], 100)
