from __future__ import annotations

import io
import random
import shutil
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.errors import CheckpointError
from converters.storage import torch_zip
from converters.storage.torch_zip import DEFLATED, STORED, Member, read_directory, read_member
from tests.storage.torch_files import bits, open_one, refusal, some_tensor


def reader_of(data: bytes) -> Callable[[int, int], bytes]:
    def read(position: int, nbytes: int) -> bytes:
        assert 0 <= position <= position + nbytes <= len(data), "read outside of the file"
        return data[position : position + nbytes]

    return read


def directory(data: bytes) -> dict[str, Member]:
    return read_directory(reader_of(data), len(data), "m.pt")


def refused(data: bytes) -> str:
    try:
        found = directory(data)
    except CheckpointError as error:
        return str(error)
    raise AssertionError(f"accepted, with {list(found)}")


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as opened:
        for name, data in members.items():
            opened.writestr(zipfile.ZipInfo(name), data, compression)
    return out.getvalue()


CONTENT = {"m/data.pkl": b"pickle " * 20, "m/data/0": bytes(range(100)), "m/empty": b"", "m/ключ": b"utf-8"}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_python_wrote(compression: int) -> None:
    data = zipped(CONTENT, compression)
    found = directory(data)
    assert list(found) == list(CONTENT)
    for name, member in found.items():
        assert member.method == (STORED if compression == zipfile.ZIP_STORED else DEFLATED)
        assert member.crc == zlib.crc32(CONTENT[name])
        assert read_member(reader_of(data), member, 1000, "m.pt") == CONTENT[name]
        if member.method == STORED:
            assert data[member.start : member.start + member.nbytes] == CONTENT[name]


def test_what_torch_wrote(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({str(number): some_tensor("uint8", number * 7) for number in range(20)}, path)
    data = path.read_bytes()
    found = directory(data)
    with zipfile.ZipFile(path) as opened:
        assert list(found) == opened.namelist()
        for name, member in found.items():
            assert data[member.start : member.start + member.nbytes] == opened.read(name)
            assert member.crc == opened.getinfo(name).CRC


def test_what_the_zip_program_wrote(tmp_path: Path) -> None:
    """Its files have extra fields of other kinds, and are compressed where that helps."""
    for name, data in CONTENT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    program = shutil.which("zip")
    if program is None:
        pytest.skip("there is no zip program")
    subprocess.run([program, "-qr", "m.zip", "m"], cwd=tmp_path, check=True)
    data = (tmp_path / "m.zip").read_bytes()
    found = directory(data)
    assert set(CONTENT) <= set(found)
    for name, expected in CONTENT.items():
        assert read_member(reader_of(data), found[name], 1000, "m.zip") == expected


def test_sizes_above_four_gigabytes_are_read_from_where_they_are(tmp_path: Path) -> None:
    """A sparse file, as large as zip64 is needed for: only headers are read."""
    path = tmp_path / "m.pt"
    large = 5 << 30
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 45, 0, 0, 0, 0, 7, 0xFFFFFFFF, 0xFFFFFFFF, 1, 20)
    local += b"a" + struct.pack("<2H2Q", 1, 16, large, large)
    second = len(local) + large
    small = struct.pack("<4s5H3L2H", b"PK\3\4", 45, 0, 0, 0, 0, zlib.crc32(b"xyz"), 3, 3, 1, 0) + b"bxyz"
    start = second + len(small)
    entries = struct.pack("<4s6H3L5H2L", b"PK\1\2", 45, 45, 0, 0, 0, 0, 7, 0xFFFFFFFF, 0xFFFFFFFF, 1, 20, 0, 0, 0, 0, 0)
    entries += b"a" + struct.pack("<2H2Q", 1, 16, large, large)
    entries += struct.pack(
        "<4s6H3L5H2L", b"PK\1\2", 45, 45, 0, 0, 0, 0, zlib.crc32(b"xyz"), 3, 3, 1, 12, 0, 0, 0, 0, 0xFFFFFFFF
    )
    entries += b"b" + struct.pack("<2HQ", 1, 8, second)
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2, 2, len(entries), start)
    end += struct.pack("<4sLQL", b"PK\6\7", 0, start + len(entries), 1)
    end += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    with path.open("wb") as file:
        file.write(local)
        file.seek(second)
        file.write(small + entries + end)
    with zipfile.ZipFile(path) as opened:  # Python reads the same
        assert [info.file_size for info in opened.infolist()] == [large, 3]
    with path.open("rb") as file:

        def read(position: int, nbytes: int) -> bytes:
            file.seek(position)
            return file.read(nbytes)

        found = read_directory(read, path.stat().st_size, "m.pt")
        assert [member.nbytes for member in found.values()] == [large, 3]
        assert read_member(read, found["b"], 10, "m.pt") == b"xyz"


# --- hostile ---------------------------------------------------------------------------------------------------------


def change(data: bytes, magic: bytes, offset: int, value: bytes, nth: int = 0) -> bytes:
    at = -1
    for _ in range(nth + 1):
        at = data.index(magic, at + 1)
    at += offset
    return data[:at] + value + data[at + len(value) :]


GOOD = zipped({"m/a": b"first", "m/b": b"second"})
LOCAL, ENTRY, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "at least 22 bytes, this file has 0"),
        (b"PK\3\4", "at least 22 bytes"),
        (GOOD + b"x", "does not end as a zip archive does"),
        (GOOD[:-1], "does not end as a zip archive does"),
        (GOOD[:60], "does not end"),
        (b"x" + GOOD, "its directory should end at byte"),
        (change(GOOD, END, 4, b"\1\0"), "one part of an archive in several files"),
        (change(GOOD, END, 8, b"\3\0\3\0"), "its directory has 2 members, but should have 3"),
        (change(GOOD, END, 8, b"\1\0\1\0"), "its directory has 2 members, but should have 1"),
        (change(GOOD, END, 12, b"\1\0\0\0"), "its directory should end"),
        (change(GOOD, END, 16, b"\0\0\0\0"), "its directory should end"),
        (change(GOOD, END, 20, b"\5\0"), "does not end as a zip archive does"),
        (change(GOOD, ENTRY, 0, b"PK\1\3"), "its directory is not valid at byte 0"),
        (change(GOOD, ENTRY, 28, b"\xff\xff"), "its directory is cut off"),
        (change(GOOD, ENTRY, 8, b"\1\0"), "m/a: is encrypted"),
        (change(GOOD, ENTRY, 34, b"\1\0"), "lies in another file of the archive"),
        (change(change(GOOD, ENTRY, 46, b"\xff"), ENTRY, 8, b"\0\x08"), "the name of a member is not valid"),
        (change(GOOD, ENTRY, 20, b"\4\0\0\0"), "takes 4 bytes as they are, but holds 5"),
        (change(GOOD, ENTRY, 24, b"\6\0\0\0"), "takes 5 bytes as they are, but holds 6"),
        (change(GOOD, ENTRY, 20, b"\xff\xff\xff\xff" * 2), "larger than 4 GiB, but its size is missing"),
        (change(GOOD, ENTRY, 42, b"\xf0\0\0\0"), "past the end of the archive's data"),
        (change(GOOD, ENTRY, 42, b"\1\0\0\0"), "the header before it is not what"),
        (change(GOOD, ENTRY, 42, b"\0\0\0\0", 1), "overlap"),
        (change(GOOD, ENTRY, 10, b"\x08\0"), "the header before it is not what"),
        (change(GOOD, ENTRY, 16, b"\1\2\3\4"), "the header before it is not what"),
        (change(GOOD, ENTRY, 46, b"x"), "the header before it is not what"),
        (change(GOOD, LOCAL, 0, b"PK\3\5"), "the header before it is not what"),
        (change(GOOD, LOCAL, 6, b"\1\0"), "the header before it is not what"),
        (change(GOOD, LOCAL, 18, b"\6\0\0\0"), "the header before it is not what"),
        (change(GOOD, LOCAL, 26, b"\4\0"), "the header before it is not what"),
        (change(GOOD, LOCAL, 28, b"\xff\0"), "end past the archive's data"),
        (change(change(GOOD, ENTRY, 46, b"m/b"), LOCAL, 30, b"m/b"), "two members of the archive have this name"),
    ],
)
def test_an_archive_that_contradicts_itself_is_refused(data: bytes, message: str) -> None:
    text = refused(data)
    assert message in text
    assert "m.pt" in text


def test_members_that_share_bytes_are_refused() -> None:
    """A zip bomb without compression: many members, all with the same data."""
    first = GOOD.index(ENTRY)
    entry = GOOD[first : GOOD.index(ENTRY, first + 1)]
    entries = b"".join(entry[:46] + name + entry[49:] for name in (b"m/a", b"m/c", b"m/d"))
    end = struct.pack("<4s4H2LH", END, 0, 0, 3, 3, len(entries), first, 0)
    assert "overlap" in refused(GOOD[:first] + entries + end)


def test_a_bomb_is_refused_before_it_is_inflated() -> None:
    data = zipped({"m/bomb": bytes(10_000_000)}, zipfile.ZIP_DEFLATED)
    assert len(data) < 20_000
    member = directory(data)["m/bomb"]
    with pytest.raises(CheckpointError, match=r"9,7.. bytes inflate to 10,000,000, more than 100 times as many"):
        read_member(reader_of(data), member, 100_000_000, "m.pt")
    with pytest.raises(CheckpointError, match="expected at most 1,000 bytes"):
        read_member(reader_of(data), member, 1000, "m.pt")


def test_a_bomb_that_lies_about_its_size_is_not_inflated_further() -> None:
    data = zipped({"m/bomb": bytes(1_000_000)}, zipfile.ZIP_DEFLATED)
    size = struct.pack("<L", 5000)
    data = change(change(data, ENTRY, 24, size), LOCAL, 22, size)
    with pytest.raises(CheckpointError, match="should hold 5,000 bytes, but inflates to others"):
        read_member(reader_of(data), directory(data)["m/bomb"], 100_000, "m.pt")


def test_damage_of_a_member_that_is_read_whole_is_noticed() -> None:
    for compression, messages in [(zipfile.ZIP_STORED, "CRC"), (zipfile.ZIP_DEFLATED, "CRC|inflate")]:
        data = bytearray(zipped({"m/a": b"pickle" * 30}, compression))
        member = directory(bytes(data))["m/a"]
        data[member.start + 3] ^= 1
        with pytest.raises(CheckpointError, match=messages):
            read_member(reader_of(bytes(data)), member, 1000, "m.pt")


def test_other_compressions_are_named() -> None:
    data = zipped({"m/a": b"pickle" * 30}, zipfile.ZIP_BZIP2)
    with pytest.raises(CheckpointError, match="is compressed by method 12"):
        read_member(reader_of(data), directory(data)["m/a"], 1000, "m.pt")


def test_the_directory_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_zip.MAX_DIRECTORY_NBYTES == 100_000_000
    monkeypatch.setattr(torch_zip, "MAX_DIRECTORY_NBYTES", 50)
    assert "above the limit of 50" in refused(GOOD)


def test_an_archive_whose_every_byte_is_changed_in_turn_is_read_right_or_refused(tmp_path: Path) -> None:
    """Never another tensor than the one that was saved, without a word: CRCs, names and sizes give each other away."""
    path = tmp_path / "m.pt"
    state = {"a": torch.arange(5.0), "b": some_tensor("uint8", 3, 2).t()}
    torch.save(state, path)
    whole = path.read_bytes()
    expected = {name: bits(value) for name, value in state.items()}
    shuffler = random.Random(0)  # noqa: S311 - no secret
    outcomes = {"right": 0, "refused": 0}
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << shuffler.randrange(8)
        path.write_bytes(damaged)
        try:
            with open_one(path) as reader:
                found = {}
                for name, info in reader.tensors.items():
                    buffer = bytearray(info.nbytes)
                    reader.read_into(name, 0, memoryview(buffer))
                    found[name] = bytes(buffer)
                reader.check_unchanged()
        except CheckpointError:
            outcomes["refused"] += 1
            continue
        assert found == expected, position
        outcomes["right"] += 1
    # What may change: padding, times, versions, attributes, and members that are no part of the state dict.
    assert outcomes["refused"] > len(whole) // 3
    assert outcomes["right"] > 0


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_the_bytes_are_only_documented_errors_come_out(data: st.DataObject) -> None:
    base = data.draw(st.sampled_from([GOOD, zipped(CONTENT, zipfile.ZIP_DEFLATED)]))
    raw = bytearray(base)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + 1] = data.draw(st.sampled_from([b"\0", b"\xff", b"\1", b"PK\5\6", b"PK\1\2", b""]))
        if not raw:
            break
    with suppress(CheckpointError):
        found = directory(bytes(raw))
        for member in found.values():
            assert member.start + member.stored_nbytes <= len(raw)
            with suppress(CheckpointError):
                read_member(reader_of(bytes(raw)), member, 10_000, "m.pt")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError):
        directory(data + b"PK\5\6" + bytes(17) + b"\1")


def test_refusals_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "broken.pt"
    path.write_bytes(GOOD[:-3])
    assert refusal(path).startswith(f"{path}: this zip archive is not valid")
