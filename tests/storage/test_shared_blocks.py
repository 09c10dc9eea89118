"""Outputs that share blocks with their source: the same bytes on every file system, and almost nothing written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters.convert import Options, convert, prepare_to_run
from converters.plan import Plan
from converters.spec import Spec
from converters.spec_file import parse_spec
from converters.storage.checkpoint import open_checkpoint
from converters.storage.safetensors_header import BLOCK
from tests.storage.reflink_disks import mounted, shared_nbytes

RENAME = """
weightmap: 1
source: {layout: a}
target: {layout: b}
dims: {L: 12}
placeholders: {i: 0..L, p: weight&bias, m: attn&up&down}
rename:
  layers.{i}.{m}.{p}: blocks.{i}.{m}.{p}
  embed.weight: tokens.weight
"""
FUSE = """
weightmap: 1
source: {layout: a}
target: {layout: b}
dims: {L: 12}
placeholders: {i: 0..L, p: weight&bias}
rename:
  layers.{i}.down.{p}: layers.{i}.down.{p}
  embed.weight: embed.weight
rules:
  - from: {a: "layers.{i}.attn.{p}", u: "layers.{i}.up.{p}"}
    to: layers.{i}.both.{p}
    layout: {a: a ..., u: u ..., to: "(a: a | u: u) ..."}
"""
HIDDEN = 320
SHAPES = {"attn": (HIDDEN, HIDDEN), "up": (2 * HIDDEN, HIDDEN), "down": (HIDDEN, 2 * HIDDEN)}


def spec(text: str) -> Spec:
    return parse_spec(text, "spec.yaml")


def tensors(layers: int = 12) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float16]]]:
    """Biases whose sizes are no multiple of a block lie between the weights."""
    draw = np.random.default_rng(0)

    def made(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
        return draw.standard_normal(shape, dtype=np.float32).astype(np.float16)

    found = {"embed.weight": made(777, HIDDEN)}
    for layer in range(layers):
        for name, shape in SHAPES.items():
            found[f"layers.{layer}.{name}.weight"] = made(*shape)
            found[f"layers.{layer}.{name}.bias"] = made(shape[0])
    return found


def save(directory: Path, values: Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.float16]]]) -> Path:
    """Written by the safetensors library, whose headers end wherever they end."""
    directory.mkdir()
    save_file(dict(values), directory / "model.safetensors", {"format": "pt"})
    return directory


def renamed(name: str) -> str:
    return name.replace("layers.", "blocks.").replace("embed.", "tokens.")


@pytest.fixture(scope="module", params=["xfs", "btrfs"])
def disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted(request.param, tmp_path_factory.mktemp("disk")) as path:
        yield path


def used_nbytes(disk: Path) -> int:
    os.sync()
    status = os.statvfs(disk)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def test_a_rename_shares_nearly_all_and_is_right(disk: Path, tmp_path: Path) -> None:
    values = tensors()
    source = save(disk / "rename", values)
    nbytes = sum(value.nbytes for value in values.values())
    before = used_nbytes(disk)
    convert(spec(RENAME), source, disk / "renamed")
    grown = used_nbytes(disk) - before
    # A block at each edge of each tensor is copied.
    assert shared_nbytes(disk / "renamed/model.safetensors") >= nbytes - 2 * BLOCK * len(values) > 0.9 * nbytes
    assert grown < 0.15 * nbytes
    found = load_file(disk / "renamed/model.safetensors")
    assert found.keys() == {renamed(name) for name in values}
    for name, value in values.items():
        assert np.array_equal(found[renamed(name)].view("u2"), value.view("u2"))
    # The way back is the file that it began with, to the byte, and shares as much.
    convert(spec(RENAME), disk / "renamed", disk / "back", reverse=True)
    assert (disk / "back/model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    # Where nothing can be shared the output is the same.
    convert(spec(RENAME), save(tmp_path / "rename", values), tmp_path / "renamed")
    output = (tmp_path / "renamed/model.safetensors").read_bytes()
    assert output == (disk / "renamed/model.safetensors").read_bytes()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_fused_tensor_shares_what_happens_to_fit(disk: Path, tmp_path: Path, threads: int) -> None:
    values = tensors()
    source = save(disk / f"fuse{threads}", values)
    out = disk / f"fused{threads}"
    convert(spec(FUSE), source, out, threads=threads)
    assert shared_nbytes(out / "model.safetensors") > 0
    found = load_file(out / "model.safetensors")
    for layer in range(12):
        for kind in ("weight", "bias"):
            parts = [values[f"layers.{layer}.{name}.{kind}"] for name in ("attn", "up")]
            assert np.array_equal(found[f"layers.{layer}.both.{kind}"].view("u2"), np.concatenate(parts).view("u2"))
    convert(spec(FUSE), save(tmp_path / "fuse", values), tmp_path / "fused")
    assert (tmp_path / "fused/model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_shards_share_with_one_file_and_back(disk: Path) -> None:
    values = tensors()
    source = save(disk / "whole", values)
    convert(spec(RENAME), source, disk / "shards", max_shard_size="3MB")
    shards = sorted((disk / "shards").glob("*.safetensors"))
    assert len(shards) > 2
    nbytes = sum(value.nbytes for value in values.values())
    assert sum(map(shared_nbytes, shards)) > 0.5 * nbytes
    convert(spec(RENAME), disk / "shards", disk / "joined", reverse=True)
    found = load_file(disk / "joined/model.safetensors")
    assert all(np.array_equal(found[name].view("u2"), values[name].view("u2")) for name in values)


def test_what_is_changed_in_the_source_later_does_not_show(disk: Path) -> None:
    values = tensors(1)
    source = save(disk / "first", values)
    one = spec(RENAME.replace("L: 12", "L: 1"))
    convert(one, source, disk / "second")
    expected = (disk / "second/model.safetensors").read_bytes()
    with (source / "model.safetensors").open("r+b") as file:
        file.seek(BLOCK)
        file.write(bytes(500_000))
    assert (disk / "second/model.safetensors").read_bytes() == expected


# --- the layout, without any disk ------------------------------------------------------------------------------------


def planned(source: Path, text: str, options: Options | None = None) -> Plan:
    with prepare_to_run(spec(text), source, options or Options()) as prepared:
        return prepared.plan


def starts(path: Path) -> dict[str, int]:
    """Where the bytes of each tensor begin in the one file of a checkpoint."""
    with open_checkpoint(path) as reader:
        header = reader.headers["model.safetensors"]  # type: ignore[attr-defined]
        return {name: header.data_start + offset for name, offset in header.offsets.items()}


def test_a_rename_keeps_the_order_of_the_file_and_the_place_in_a_block(tmp_path: Path) -> None:
    source = save(tmp_path / "in", tensors())
    convert(spec(RENAME), source, tmp_path / "out")
    before, after = starts(source), starts(tmp_path / "out")
    assert [renamed(name) for name in before] == list(after)
    assert {(after[renamed(name)] - start) % BLOCK for name, start in before.items()} == {0}
    assert min(after.values()) % 8 == 0


def test_other_plans_keep_the_order_of_names_and_suit_most_bytes(tmp_path: Path) -> None:
    source = save(tmp_path / "in", tensors())
    convert(spec(FUSE), source, tmp_path / "out")
    before, after = starts(source), starts(tmp_path / "out")
    assert list(after)[:3] == ["embed.weight", "layers.0.both.bias", "layers.0.both.weight"]
    pieces = [("embed.weight", after["embed.weight"], 777 * HIDDEN * 2)]
    for layer in range(12):
        both = after[f"layers.{layer}.both.weight"]
        pieces += [
            (f"layers.{layer}.attn.weight", both, HIDDEN * HIDDEN * 2),
            (f"layers.{layer}.up.weight", both + HIDDEN * HIDDEN * 2, 2 * HIDDEN * HIDDEN * 2),
            (f"layers.{layer}.down.weight", after[f"layers.{layer}.down.weight"], 2 * HIDDEN * HIDDEN * 2),
        ]

    def suited(shift: int) -> int:
        return sum(nbytes for name, start, nbytes in pieces if (start + shift - before[name]) % BLOCK == 0)

    assert suited(0) == max(suited(shift) for shift in range(0, BLOCK, 8)) > 0


def test_small_tensors_take_no_room_for_it(tmp_path: Path) -> None:
    small = {name: value[:1] for name, value in tensors().items()}
    source = save(tmp_path / "in", small)
    assert [shard.data_phase for shard in planned(source, RENAME).shards] == [None]
    convert(spec(RENAME), source, tmp_path / "out")
    assert min(starts(tmp_path / "out").values()) < 4 * BLOCK


def test_other_formats_are_left_as_they_are(tmp_path: Path) -> None:
    source = save(tmp_path / "in", tensors())
    assert [shard.data_phase for shard in planned(source, RENAME, Options(file_format="bin")).shards] == [None]


def test_a_plan_with_it_is_read_back_as_it_was(tmp_path: Path) -> None:
    plan = planned(save(tmp_path / "in", tensors()), RENAME, Options(max_shard_nbytes=3_000_000))
    assert all(shard.data_phase is not None for shard in plan.shards)
    assert Plan.from_json(plan.to_json()) == plan


def test_a_shard_and_its_targets_agree(tmp_path: Path) -> None:
    plan = planned(save(tmp_path / "in", tensors()), RENAME, Options(max_shard_nbytes=3_000_000))
    infos: Sequence[object] = [info for shard in plan.shards for info in shard.tensors]
    assert infos == [target.info for target in plan.targets]
