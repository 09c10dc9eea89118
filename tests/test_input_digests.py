"""Digests of input files: the same whether their bytes pass by, in whatever order, or are read."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

import converters
from converters import input_digests
from converters.convert import Options, prepare
from converters.errors import CheckpointError
from converters.input_digests import InputDigests, in_order
from converters.manifest import Input
from converters.storage.open_files import LocalFile
from tests.commands.support import write_checkpoint

GAP, CHUNK = 12, 8
CONTENT = bytes(number * 53 % 251 for number in range(300))


@pytest.fixture(autouse=True, scope="module")
def small_steps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(input_digests, "GAP", GAP)
        patch.setattr(input_digests, "CHUNK", CHUNK)
        yield


class File:
    """A file in memory, which notes what is read of it."""

    def __init__(self, content: bytes, *, is_local: bool = True) -> None:
        self.content, self.nbytes, self.is_local, self.identity = content, len(content), is_local, "etag 1"
        self.reads: list[tuple[int, int]] = []
        self.error: Exception | None = None

    def read_into(self, position: int, buffer: memoryview) -> None:
        if self.error is not None:
            raise self.error
        self.reads.append((position, position + len(buffer)))
        buffer[:] = self.content[position : position + len(buffer)]

    def change(self) -> str | None:
        raise AssertionError

    def close(self) -> None:
        raise AssertionError


def xxh3(content: bytes) -> str:
    return f"xxh3:{xxhash.xxh3_128_hexdigest(content)}"


@given(
    st.sets(st.integers(1, len(CONTENT) - 1), max_size=12),
    st.data(),
    st.sampled_from([["f"], []]),
)
def test_whatever_passes_the_digest_is_that_of_the_file(
    cuts: set[int], more: st.DataObject, passing: list[str]
) -> None:
    borders = [0, *sorted(cuts), len(CONTENT)]
    spans = more.draw(st.permutations(list(pairwise(borders))))
    seen = spans[: more.draw(st.integers(0, len(spans)))]
    file = File(CONTENT)
    digests = InputDigests({"f": file}, "xxh3", passing)
    for start, stop in seen:
        digests.passed(file, start, memoryview(CONTENT)[start:stop])
    assert digests.result() == [Input("f", len(CONTENT), xxh3(CONTENT))]
    digests.close()


def test_what_passes_in_order_is_not_read_again_and_small_gaps_are() -> None:
    file, other = File(CONTENT), File(CONTENT[:50])
    digests = InputDigests({"f": file, "g": other}, "xxh3", ["f"])
    for start, stop in ((10, 100), (100, 150), (162, 300)):
        digests.passed(file, start, memoryview(CONTENT)[start:stop])
        digests.passed(other, start, memoryview(CONTENT)[start:stop])
    assert [each.digest for each in digests.result()] == [xxh3(CONTENT), xxh3(CONTENT[:50])]
    assert file.reads == [(0, 8), (8, 10), (150, 158), (158, 162)]
    assert sum(stop - start for start, stop in other.reads) == 50
    digests.close()


def test_a_large_gap_is_left_for_later_with_all_that_follows() -> None:
    file = File(CONTENT)
    digests = InputDigests({"f": file}, "xxh3", ["f"])
    digests.passed(file, 0, memoryview(CONTENT)[:20])
    digests.passed(file, 20 + GAP + 1, memoryview(CONTENT)[20 + GAP + 1 :])
    assert file.reads == []
    assert digests.result()[0].digest == xxh3(CONTENT)
    assert file.reads[0][0] == 20
    digests.close()


def test_files_that_do_not_pass_are_read_at_once() -> None:
    file = File(CONTENT)
    digests = InputDigests({"f": file}, "sha256", [])
    for _ in range(1000):
        if file.reads and file.reads[-1][1] == len(CONTENT):
            break
        threading.Event().wait(0.005)
    assert file.reads[-1][1] == len(CONTENT)
    assert digests.result()[0].digest == f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    digests.close()


@pytest.mark.parametrize("algorithm", ["xxh3", None])
def test_what_is_in_a_store_is_never_read(algorithm: str | None) -> None:
    stored, here = File(CONTENT, is_local=False), File(CONTENT)
    digests = InputDigests({"s": stored, "h": here}, algorithm, ["s"])
    digests.passed(stored, 0, memoryview(CONTENT))
    found = digests.result()
    assert found[0] == Input("s", len(CONTENT), None, "etag 1")
    assert found[1] == Input("h", len(CONTENT), xxh3(CONTENT) if algorithm else None)
    assert stored.reads == []
    digests.close()


def test_an_error_of_reading_is_raised_with_the_result() -> None:
    file = File(CONTENT)
    file.error = CheckpointError("can't be read", "f")
    digests = InputDigests({"f": file}, "xxh3", ["f"])
    with pytest.raises(CheckpointError, match="f: can't be read"):
        digests.result()


def test_what_is_copied_without_being_read_is_read_meanwhile() -> None:
    file = File(CONTENT)
    digests = InputDigests({"f": file}, "xxh3", ["f"])
    digests.passed(file, 0, memoryview(CONTENT)[:50])
    digests.no_more()
    for _ in range(1000):
        if file.reads and file.reads[-1][1] == len(CONTENT):
            break
        threading.Event().wait(0.005)
    digests.passed(file, 50, memoryview(CONTENT)[50:])
    assert file.reads[0][0] == 50
    assert digests.result()[0].digest == xxh3(CONTENT)
    digests.close()


@pytest.mark.parametrize("passing", [["f"], []])
def test_closing_ends_it(passing: list[str]) -> None:
    before = threading.active_count()
    InputDigests({"f": File(CONTENT)}, "xxh3", passing).close()
    assert threading.active_count() == before


SPEC = """
weightmap: 1
name: s
source: {layout: a}
target: {layout: b}
rules:
  - {from: 'a.{i}', to: 'b.{i}', layout: %s}
"""


@pytest.mark.parametrize(("layout", "expected"), [("i o -> i o", {"model.safetensors"}), ("i o -> o i", set())])
def test_which_files_pass_in_order_follows_from_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, expected: set[str]
) -> None:
    monkeypatch.setattr(input_digests, "GAP", 1 << 20)  # room for a header
    write_checkpoint(tmp_path / "a", {f"a.{i}": (40, 7) for i in range(5)})
    (tmp_path / "s.yaml").write_text(SPEC % layout)
    with prepare(converters.load_spec(tmp_path / "s.yaml"), tmp_path / "a", Options()) as prepared:
        assert in_order(prepared.plan, prepared.reader) == expected


def test_a_conversion_reads_its_input_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the header, which is read when it is opened, too."""
    monkeypatch.setattr(input_digests, "GAP", 1 << 20)
    write_checkpoint(tmp_path / "a", {f"a.{i}": (40, 7) for i in range(5)})
    (tmp_path / "s.yaml").write_text(SPEC % "i o -> i o")
    reads: list[tuple[int, int]] = []
    read_into = LocalFile.read_into

    def read(file: LocalFile, position: int, buffer: memoryview) -> None:
        reads.append((position, position + len(buffer)))
        read_into(file, position, buffer)

    monkeypatch.setattr(LocalFile, "read_into", read)
    converters.convert(converters.load_spec(tmp_path / "s.yaml"), tmp_path / "a", tmp_path / "b")
    nbytes = (tmp_path / "a" / "model.safetensors").stat().st_size
    data = nbytes - 5 * 40 * 7 * 4
    assert sorted(span for span in reads if span[0] >= data) == [
        (data + n * 1120, data + (n + 1) * 1120) for n in range(5)
    ]
