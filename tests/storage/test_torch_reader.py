from __future__ import annotations

import struct
import subprocess
import sys
import threading
import zipfile
from collections import OrderedDict
from pathlib import Path

import huggingface_hub
import pytest
import torch
from torch import nn

from converters.errors import CheckpointError
from converters.storage import torch_reader
from converters.storage.checkpoint import open_checkpoint
from converters.storage.torch_header import MAX_EXPANSION
from converters.storage.torch_reader import TorchReader
from tests.pickles import pickled, tensor
from tests.storage.torch_files import (
    DTYPES,
    archive,
    assert_reads,
    bits,
    contents,
    flip_bit,
    open_one,
    refusal,
    some_tensor,
    torch_file,
)

FORMATS = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])


def save(path: Path, value: object, *, is_zip: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=is_zip)
    return path


class Odd(nn.Module):
    """Parameters, buffers, a tied weight, and odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(7, 5)
        self.layers = nn.ModuleList(nn.Linear(5, 3 + number, dtype=torch.bfloat16) for number in range(3))
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(5)
        self.register_buffer("positions", torch.arange(9).expand(1, -1))


@FORMATS
def test_the_state_dict_of_a_module(tmp_path: Path, *, is_zip: bool) -> None:
    state = Odd().state_dict()
    assert_reads(save(tmp_path / "m.bin", state, is_zip=is_zip), state)
    with open_one(tmp_path / "m.bin") as reader:
        assert not reader.notes


@FORMATS
def test_every_dtype(tmp_path: Path, *, is_zip: bool) -> None:
    state = {dtype: some_tensor(dtype, 3, 5, 8) for dtype in DTYPES}
    path = save(tmp_path / "m.pth", state, is_zip=is_zip)
    assert_reads(path, state)
    with open_one(path) as reader:
        found = {name: info.dtype.label for name, info in reader.tensors.items()}
    assert found["bfloat16"] == "BF16"
    assert found["float8_e4m3fn"] == "F8_E4M3"
    assert found["complex64"] == "C64"
    assert found["bool"] == "BOOL"
    assert len(set(found.values())) == len(DTYPES)


@FORMATS
def test_views_are_what_they_look_like_and_not_what_lies_in_the_file(tmp_path: Path, *, is_zip: bool) -> None:
    base = torch.arange(7 * 11 * 6, dtype=torch.float32).reshape(7, 11, 6)
    state = {
        "whole": base,
        "transposed": base[0].t(),
        "permuted": base.permute(2, 0, 1),
        "rows": base[2:5],
        "columns": base[:, 3:9:2],
        "last": base[..., -1],
        "one": base[3, 4, 5],
        "expanded": base[1, 1].expand(4, 5, 6),
        "scalar_expanded": torch.tensor(2.5).expand(3),
        "windows": torch.as_strided(base, (5, 4), (2, 1), 6),
        "empty": base[:0],
        "empty_columns": base[:, :0],
        "other": torch.tensor([[1.5, 2.5]]).t(),
    }
    assert_reads(save(tmp_path / "m.pt", state, is_zip=is_zip), state)


@pytest.mark.parametrize("dtype", ["uint8", "bfloat16", "int64", "float8_e5m2"])
def test_views_of_every_width_can_be_read_in_parts(tmp_path: Path, dtype: str) -> None:
    turned = some_tensor(dtype, 13, 7).t()
    path = save(tmp_path / "m.pt", {"t": turned})
    expected = bits(turned)
    with open_one(path) as reader:
        for start, stop in [(0, 1), (3, 8), (1, len(expected)), (len(expected) - 1, len(expected)), (5, 5)]:
            buffer = bytearray(stop - start)
            reader.read_into("t", start, memoryview(buffer))
            assert bytes(buffer) == expected[start:stop]
        with pytest.raises(ValueError, match="outside of t"):
            reader.read_into("t", len(expected), memoryview(bytearray(1)))


def test_parameters_with_attributes_and_subclasses_of_torchs_own(tmp_path: Path) -> None:
    plain = nn.Parameter(torch.tensor([1.0, 2.0]))
    marked = nn.Parameter(torch.tensor([[3.0], [4.0]]), requires_grad=False)
    marked.kind = "marked"  # type: ignore[attr-defined]
    with_attribute = torch.tensor([5.0])
    with_attribute.tag = 1  # type: ignore[attr-defined]
    buffer = nn.Buffer(torch.tensor([6, 7]))
    state = {"plain": plain, "marked": marked, "tensor": with_attribute, "buffer": buffer}
    assert_reads(save(tmp_path / "m.pt", state), state)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickles(tmp_path: Path, protocol: int) -> None:
    state = OrderedDict((f"t{number}", torch.full((2,), float(number))) for number in range(300))
    torch.save(state, tmp_path / "m.pt", pickle_protocol=protocol)
    assert_reads(tmp_path / "m.pt", state)


def test_many_tensors_and_names_of_all_kinds(tmp_path: Path) -> None:
    state = {f"layers.{number}.weight": torch.full((1,), number, dtype=torch.int32) for number in range(3000)}
    state |= {name: torch.tensor([7]) for name in ("", "ключ", "a" * 5000, "tab\there", "\x1b[2J", "a/b\\c", "\0")}
    assert_reads(save(tmp_path / "m.pt", state), state)


def test_the_training_run_around_a_state_dict_is_left_out_by_name(tmp_path: Path) -> None:
    model = Odd()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)  # has its state before the first step
    training = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1).state_dict(),
        "epoch": 3,
        "best": torch.tensor(0.5),
        "config": {"depth": 3, "name": "odd"},
    }
    path = save(tmp_path / "ckpt.pt", training)
    assert_reads(path, model.state_dict())
    with open_one(path) as reader:
        text = "\n".join(map(str, reader.notes))
    assert "its state dict is under 'model'" in text
    for left in ("optimizer (18 tensors)", "scheduler", "epoch", "best (1 tensor)", "config"):
        assert left in text


def test_no_code_of_a_file_is_ever_run_and_torch_is_not_imported(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", {"a": torch.ones(2, 3).t(), "b": nn.Parameter(torch.zeros(2))})
    legacy = save(tmp_path / "old.pth", {"a": torch.ones(2)}, is_zip=False)
    script = (
        "import sys\nfrom pathlib import Path\nfrom converters.storage.checkpoint import open_checkpoint\n"
        f"for name in {[str(path), str(legacy)]!r}:\n"
        "    with open_checkpoint(Path(name)) as reader:\n"
        "        for name, info in reader.tensors.items():\n"
        "            reader.read_into(name, 0, memoryview(bytearray(info.nbytes)))\n"
        "print(sorted({'torch', 'pickle', '_pickle', 'safetensors'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    # numpy, which takes the transposed tensor apart, imports pickle for itself.
    assert {"torch", "safetensors"}.isdisjoint(eval(done.stdout))  # noqa: S307 - a list that this test printed


# --- damage ------------------------------------------------------------------------------------------------------


def positions(path: Path, member: str) -> tuple[int, int]:
    """Where the data of a member begins, and its bytes, as Python's zipfile sees it."""
    with zipfile.ZipFile(path) as opened:
        info = next(info for info in opened.infolist() if info.filename.endswith(member))
    start = info.header_offset
    header = path.read_bytes()[start : start + 30]
    return start + 30 + sum(struct.unpack("<2H", header[26:30])), info.file_size


def read_and_check(reader: TorchReader, name: str) -> None:
    """A whole storage is checked as it passes by, one that was read in part when all is done."""
    reader.read_into(name, 0, memoryview(bytearray(reader.tensors[name].nbytes)))
    reader.check_unchanged()


@pytest.mark.parametrize("view", ["whole", "transposed", "part"])
def test_a_flipped_bit_is_noticed_by_whoever_reads_the_tensor(tmp_path: Path, view: str) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {"a": {"whole": base, "transposed": base.t(), "part": base[1:3]}[view], "b": torch.ones(3)}
    path = save(tmp_path / "m.pt", state)
    start, nbytes = positions(path, "data/0")
    for position in range(start, start + nbytes, 17):
        flip_bit(path, position)
        with open_one(path) as reader:
            reader.read_into("b", 0, memoryview(bytearray(12)))
            with pytest.raises(CheckpointError, match=r"m\.pt: the CRC of its data is wrong .*bytes of a were changed"):
                read_and_check(reader, "a")
        flip_bit(path, position)
    assert_reads(path, state)


def test_the_crc_is_checked_however_the_bytes_are_read(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", {"a": some_tensor("uint8", 5000)})
    flip_bit(path, positions(path, "data/0")[0] + 4999)

    def part(reader: TorchReader, start: int, stop: int) -> None:
        reader.read_into("a", start, memoryview(bytearray(stop - start)))

    for ranges in ([(0, 10)], [(0, 3000), (2000, 5000)], [(4000, 4100), (0, 5)], [(7, 8)] * 3):
        with open_one(path) as reader:
            for start, stop in ranges:
                part(reader, start, stop)
            with pytest.raises(CheckpointError, match="CRC"):
                reader.check_unchanged()
    with open_one(path) as reader:
        part(reader, 2500, 5000)
        with pytest.raises(CheckpointError, match="CRC"):
            part(reader, 0, 2500)
    with open_one(path) as reader:
        reader.check_unchanged()  # nothing was read, and nothing is promised of it


def test_the_crc_adds_up_over_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"a": some_tensor("uint8", 64_000), "b": some_tensor("bfloat16", 300, 200).t()}
    path = save(tmp_path / "m.pt", state)
    again: list[str] = []
    monkeypatch.setattr(TorchReader, "_read_again", lambda _self, _file, key: again.append(key))
    with open_one(path) as reader:

        def work(number: int) -> None:
            for start in range(number * 1000, 64_000, 4000):
                reader.read_into("a", start, memoryview(bytearray(1000)))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        reader.check_unchanged()
        assert not again, "all of it had been read, so nothing needs to be read again"


def test_a_file_without_crcs_is_accepted_and_that_is_said(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(compute_crc32=False)
    try:
        path = save(tmp_path / "m.pt", {"a": torch.ones(3), "b": torch.ones(2, 2).t()})
    finally:
        torch.serialization.set_crc32_options(compute_crc32=True)
    assert_reads(path, {"a": torch.ones(3), "b": torch.ones(2, 2)})
    with open_one(path) as reader:
        assert "saved without CRCs" in str(reader.notes[0])


def test_a_file_that_is_cut_off_anywhere_is_an_error(tmp_path: Path) -> None:
    for is_zip in (True, False):
        path = save(tmp_path / "m.pt", {"a": torch.ones(3, 5), "b": torch.ones(2).bfloat16()}, is_zip=is_zip)
        whole = path.read_bytes()
        for length in range(0, len(whole), 7):
            path.write_bytes(whole[:length])
            assert str(path) in refusal(path)
        path.write_bytes(whole + b"\0")
        assert str(path) in refusal(path)


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", {"a": torch.ones(3)})
    with open_one(path) as reader:
        save(path, {"a": torch.zeros(5)})
        with pytest.raises(CheckpointError, match="changed while it was read"):
            reader.check_unchanged()
    with pytest.raises(ValueError, match="closed"):
        reader.read_into("a", 0, memoryview(bytearray(1)))


# --- what contradicts itself ---------------------------------------------------------------------------------------


def test_a_tensor_put_together_by_hand_is_read(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "m.pt", {"a": tensor(), "t": tensor((3, 2), (1, 3)), "p": tensor((2,), (2,), 3)})
    base = torch.arange(6.0).reshape(2, 3)
    assert_reads(path, {"a": base, "t": base.t(), "p": base[1, ::2]})
    assert {name: value.tolist() for name, value in torch.load(path, weights_only=True).items()} == {
        "a": base.tolist(), "t": base.t().tolist(), "p": base[1, ::2].tolist(),
    }  # fmt: skip


HUGE = 2**62


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (tensor((2, 3), (3, 1), 1), "reaches past the end of its storage, which has 24 bytes"),
        (tensor((2, 3), (4, 1)), "reaches past the end"),
        (tensor((3, 3), (3, 1)), "reaches past the end"),
        (tensor((HUGE, HUGE), (0, 0)), "larger than any memory"),
        (tensor((0, HUGE, HUGE), (0, 0, 0)), "larger than any memory"),
        (tensor((1,), (1,), 2**63), "larger than any memory"),
        (tensor((2,), (HUGE,)), "reaches past the end"),
        (tensor((1,) * 65, (1,) * 65), "65 dimensions"),
        (tensor(size=7), "its storage should have 28 bytes, but the file has 24"),
        (tensor(kind="DoubleStorage"), "its storage should have 48 bytes"),
        (tensor(key="1"), "its storage 1 is not in the file"),
        (tensor(key="../0"), "its storage ../0 is not in the file"),
        (tensor((1,), (1,), size=1, kind="ComplexDoubleStorage"), "its dtype is torch.complex128"),
        (tensor((1 << 40,), (0,)), "views repeat the same bytes more than 4 times"),
        (tensor((-1,), (1,)), "none of them negative"),
        (tensor((2,), (-1,)), "none of them negative"),
        (tensor((2,), (1, 1)), "1 sizes, but 2 strides"),
        (tensor(offset=-1), "an offset in it"),
    ],
)
def test_a_tensor_with_no_place_in_its_storage_is_refused(tmp_path: Path, value: object, message: str) -> None:
    text = refusal(torch_file(tmp_path / "m.pt", {"bad": value}))
    assert message in text
    assert str(tmp_path / "m.pt") in text


def test_all_tensors_without_a_place_are_named_up_to_a_limit(tmp_path: Path) -> None:
    text = refusal(torch_file(tmp_path / "m.pt", {f"bad{number}": tensor(offset=9) for number in range(50)}))
    assert "m.pt: bad0: " in text
    assert "m.pt: bad19: " in text
    assert "... and 30 more problems" in text


def test_views_may_repeat_bytes_within_reason(tmp_path: Path) -> None:
    assert MAX_EXPANSION == 4
    state = {"a": torch.tensor(1.5).expand(1_000_000)}
    assert_reads(save(tmp_path / "m.pt", state), state)
    assert "views repeat" in refusal(save(tmp_path / "n.pt", {"a": torch.tensor(1.5).expand(100_000_000)}))


def test_one_storage_of_two_sizes_is_refused(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "m.pt", {"a": tensor(), "b": tensor((2,), (1,), size=4)})
    assert "its storage 0 is of two sizes or dtypes" in refusal(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (torch.eye(3).to_sparse, "a sparse tensor"),
        (lambda: torch.empty(3, device="meta"), "on the meta device, without data"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "a quantized tensor"),
        (lambda: torch.tensor([1 + 2j]).conj(), "a conjugated or negated view"),
        (torch.tensor([1.0, 3.0])._neg_view, "a conjugated or negated view"),
        (lambda: torch.tensor([1 + 2j], dtype=torch.complex128), "its dtype is torch.complex128"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_plain_tensor_is_named(tmp_path: Path, make: object, message: str) -> None:
    text = refusal(save(tmp_path / "m.pt", {"good": torch.ones(1), "odd": make()}))  # type: ignore[operator]
    assert message in text
    assert "m.pt: odd: " in text


def test_a_program_of_torchscript_is_named_with_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.script(nn.Linear(2, 3)), path)
    text = refusal(path)
    assert "this is a TorchScript program, not a state dict" in text
    assert "torch.jit.load" in text


def test_other_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    for start, name in [
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html>", "an HTML page"),
        (b"\x80\x04\x95", "a pickle"),
        (b"", "an empty file"),
        (b"x" * 257 + b"ustar\0", "a tar archive"),
        (b"something", "neither a zip archive nor a pickle"),
    ]:
        path.write_bytes(start)
        assert name in refusal(path)
    archive(path, {"word/document.xml": b"<a/>"})
    assert "this zip archive was not written by torch.save" in refusal(path)


def test_bytes_in_the_other_order_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.pt", {"data.pkl": pickled({"a": tensor()}), "byteorder": b"big", "data/0": bytes(24)})
    assert "only little-endian is supported" in refusal(path)
    old = save(tmp_path / "old.pt", {"a": torch.ones(2)}, is_zip=False)
    raw = old.read_bytes()
    assert raw.count(b"little_endian") == 1
    at = raw.index(b"\x88", raw.index(b"little_endian"))
    old.write_bytes(raw[:at] + b"\x89" + raw[at + 1 :])
    assert "its numbers are not little-endian" in refusal(old)


def test_a_storage_that_is_compressed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("m/data.pkl", pickled({"a": tensor()}))
        opened.writestr("m/data/0", bytes(24))
    assert "m/data/0: is compressed" in refusal(path)


def test_a_pickle_that_is_compressed_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("m/data.pkl", pickled({"a": tensor()}), zipfile.ZIP_DEFLATED)
        opened.writestr("m/data/0", struct.pack("<6f", *range(6)))
    assert_reads(path, {"a": torch.arange(6.0).reshape(2, 3)})


def test_an_old_file_whose_storages_are_not_what_its_pickle_says(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", {"a": torch.arange(5.0)}, is_zip=False)
    raw = path.read_bytes()
    assert raw[-28:-20] == (5).to_bytes(8, "little")
    path.write_bytes(raw[:-28] + (6).to_bytes(8, "little") + raw[-20:])
    assert "should have 5 elements, but has 6" in refusal(path)


def test_an_old_file_with_a_long_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converters.storage.torch_legacy._FIRST_WINDOW", 100)
    state = {f"t{number}": torch.full((3,), float(number)) for number in range(200)}
    assert_reads(save(tmp_path / "m.pt", state, is_zip=False), state)
    monkeypatch.setattr("converters.storage.torch_legacy.MAX_PICKLE_NBYTES", 1000)
    assert "its pickles don't end within 1,000 bytes" in refusal(tmp_path / "m.pt")


# --- many files ----------------------------------------------------------------------------------------------------


def test_shards_that_the_hub_library_wrote(tmp_path: Path) -> None:
    state = {f"layers.{number}.w": some_tensor("float32", 3, 5, seed=number) for number in range(9)}
    huggingface_hub.save_torch_state_dict(state, tmp_path, max_shard_size=200, safe_serialization=False)
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert "pytorch_model.bin.index.json" in names
    assert len(names) == 4
    for given in (tmp_path, tmp_path / "pytorch_model.bin.index.json"):
        with open_checkpoint(given) as reader:
            assert isinstance(reader, TorchReader)
            assert contents(reader) == {name: bits(value) for name, value in state.items()}
            assert not reader.notes
    first = names[0]
    with open_checkpoint(tmp_path / first) as reader:
        assert set(reader.tensors) < set(state)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    files = {name: save(tmp_path / name, {"a": torch.ones(1)}) for name in ("one.bin", "two.bin")}
    with pytest.raises(CheckpointError, match=r"this tensor is in one\.bin, too"):
        TorchReader(tmp_path, files)


def test_descriptors_are_given_back_when_opening_fails(tmp_path: Path) -> None:
    good, bad = save(tmp_path / "a.bin", {"a": torch.ones(1)}), tmp_path / "b.bin"
    bad.write_bytes(b"PK\x03\x04")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(CheckpointError):
        TorchReader(tmp_path, {"a.bin": good, "b.bin": bad})
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_rereading_goes_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_reader, "_CHUNK", 100)
    path = save(tmp_path / "m.pt", {"a": some_tensor("uint8", 950)})
    with open_one(path) as reader:
        reader.read_into("a", 1, memoryview(bytearray(1)))
        reader.check_unchanged()
        assert not any(reader._crcs.values())
