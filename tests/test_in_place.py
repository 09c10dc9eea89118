"""Conversion in place: only names change, and a kill at any moment leaves the old state or the new one to be had."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from converters.convert import Options
from converters.errors import CheckpointError, OutputError
from converters.filesystem import exclusive_lock
from converters.in_place import MANIFEST, convert_in_place, undo_interrupted
from converters.spec import Spec
from converters.spec_file import parse_spec
from converters.storage import in_place_journal
from converters.storage.checkpoint import open_checkpoint
from converters.storage.unfinished import JOURNAL
from converters.tensor_info import DType
from tests.commands.support import weightmap, write_checkpoint

TEXT = """
weightmap: 1
source: {layout: long, config: {kind: long}}
target: {layout: short, config: {kind: short}}
config: {rename: {hidden: width}}
placeholders: {i: "0..2", p: weight&bias}
rename:
  model.blocks.{i}.linear.{p}: blocks.{i}.proj.{p}
  model.embedding.weight: embed.weight
rules:
  - from: model.scale.{p}
    to: scale.{p}
"""
SHAPES = {
    "model.embedding.weight": [11, 3],
    "model.blocks.0.linear.weight": [5, 3],
    "model.blocks.0.linear.bias": [5],
    "model.blocks.1.linear.weight": [5, 3],
    "model.blocks.1.linear.bias": [5],
    "model.scale.weight": [3],
    "model.scale.bias": [3],
}
NEW_NAMES = {
    "model.embedding.weight": "embed.weight",
    "model.blocks.0.linear.weight": "blocks.0.proj.weight",
    "model.blocks.0.linear.bias": "blocks.0.proj.bias",
    "model.blocks.1.linear.weight": "blocks.1.proj.weight",
    "model.blocks.1.linear.bias": "blocks.1.proj.bias",
    "model.scale.weight": "scale.weight",
    "model.scale.bias": "scale.bias",
}
CONFIG = {"kind": "long", "hidden": 3, "vocab": 11}
KILLED = 9


def spec(text: str = TEXT) -> Spec:
    return parse_spec(text, "spec.yaml")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = write_checkpoint(tmp_path / "model", SHAPES, config=CONFIG, shards=2)
    (directory / MANIFEST).write_text('{"files": {}}')
    (directory / "tokenizer.json").write_text("{}")
    (directory / "config.json").chmod(0o640)
    return directory


def snapshot(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mode) for path in directory.iterdir()}


def by_library(directory: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """What the safetensors library reads, file by file."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                array = file.get_tensor(name)
                found[name] = (str(array.dtype), list(array.shape), array.tobytes())
    return found


def test_there_and_back(checkpoint: Path) -> None:
    before, values = snapshot(checkpoint), by_library(checkpoint)
    done = convert_in_place(spec(), checkpoint, Options())

    assert by_library(checkpoint) == {NEW_NAMES[name]: value for name, value in values.items()}
    after = snapshot(checkpoint)
    assert set(before) - set(after) == {MANIFEST}
    assert done.removed == (MANIFEST,)
    assert set(done.changed) == {name for name in after if after[name] != before[name]}
    assert after["tokenizer.json"] == before["tokenizer.json"]
    assert after["config.json"][1] == before["config.json"][1]
    assert json.loads(after["config.json"][0]) == {"kind": "short", "width": 3, "vocab": 11}
    index = json.loads(after["model.safetensors.index.json"][0])
    old_index = json.loads(before["model.safetensors.index.json"][0])
    assert index["weight_map"] == {NEW_NAMES[name]: file for name, file in old_index["weight_map"].items()}
    sizes = {name: len(content) for name, (content, _) in after.items() if name.endswith(".safetensors")}
    assert sizes == {name: len(before[name][0]) for name in sizes}
    with open_checkpoint(checkpoint) as reader:
        assert set(reader.tensors) == set(NEW_NAMES.values())

    convert_in_place(spec().inverse(), checkpoint, Options())
    assert by_library(checkpoint) == values
    assert json.loads((checkpoint / "config.json").read_text()) == CONFIG
    # What comes back is spelled as ours: from then on both ways give the same bytes each time.
    ours = snapshot(checkpoint)
    convert_in_place(spec(), checkpoint, Options())
    convert_in_place(spec().inverse(), checkpoint, Options())
    assert snapshot(checkpoint) == ours


def test_a_single_file_without_index_or_config(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "model", SHAPES, config=None)
    values = by_library(directory)
    convert_in_place(spec(TEXT.replace(", config: {kind: long}", "")), directory, Options(config={"hidden": 3}))
    assert by_library(directory) == {NEW_NAMES[name]: value for name, value in values.items()}


def test_a_change_of_shape_moves_no_byte(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "model", {"a": [3, 4]}, config=None)
    old = by_library(directory)["a"][2]
    text = """
weightmap: 1
source: {layout: a}
target: {layout: b}
dims: {K: 2}
rules:
  - {from: a, to: b, layout: r (K c) -> r K c}
"""
    convert_in_place(spec(text), directory, Options())
    assert by_library(directory) == {"b": ("float32", [3, 2, 2], old)}


def test_a_second_time_there_is_nothing_to_do(checkpoint: Path) -> None:
    """Names that stay as they are change no file, and leave the manifest."""
    names = "".join(f"  {name}: {name}\n" for name in SHAPES)
    same = f"weightmap: 1\nsource: {{layout: a}}\ntarget: {{layout: b}}\nrename:\n{names}"
    before = snapshot(checkpoint)
    assert convert_in_place(spec(same), checkpoint, Options()).changed == ()
    assert snapshot(checkpoint) == before


# --- refusals --------------------------------------------------------------------------------------------------------


def refusal(directory: Path, text: str, options: Options | None = None, *, reverse: bool = False) -> list[str]:
    before = snapshot(directory)
    chosen = spec(text).inverse() if reverse else spec(text)
    with pytest.raises(OutputError) as caught:
        convert_in_place(chosen, directory, options or Options())
    assert snapshot(directory) == before
    assert "another directory" in (caught.value.problems[-1].hint or "")
    return [problem.what for problem in caught.value.problems]


def test_all_that_is_more_than_a_name_is_said_at_once(tmp_path: Path) -> None:
    shapes = {
        "q": [4, 4],
        "k": [4, 4],
        "turned": [3, 4],
        "old": [2],
        "one": [6],
        "plain": [5],
        "kept": [2],
        "both": [6],
    }
    directory = write_checkpoint(tmp_path / "model", shapes, config=None)
    text = """
weightmap: 1
source: {layout: a}
target: {layout: b}
rules:
  - from: {q: q, k: k}
    to: qk
    layout: {q: o i, k: o i, to: "(q: o | k: o) i"}
  - {from: turned, to: turned2, layout: i o -> o i}
  - {from: one, copy: [one1, one2]}
  - {from: plain, to: plain2}
  - {fill: zeros, to: made, shape: [3], dtype: float32}
  - {from: kept, to: kept2, apply: {op: affine, add: 1}}
  - {from: both, to: {b: b2, c: c2}, layout: {from: "(b: m | c: k)", b: m, c: k}}
drop:
  old: it is not needed
dims: {m: 2, k: 4}
"""
    assert refusal(directory, text) == [
        "b2, c2: made of a part of a tensor",
        "kept2: its values are computed",
        "made: made anew, from no tensor",
        "one2: a copy of a tensor that becomes another one, too",
        "qk: put together of several pieces",
        "turned2: its elements come in another order",
        "old: left out (it is not needed)",
    ]
    assert (
        refusal(directory, text.replace("affine, add: 1", "cast, to: float16"))[1] == "kept2: its values are computed"
    )


def test_tensors_that_the_way_back_would_leave_out_are_not(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "model", {"a1": [3], "a2": [3], "zero": [4]}, config=None)
    text = """
weightmap: 1
source: {layout: a}
target: {layout: b}
rules:
  - {from: a, copy: [a1, a2]}
  - {fill: zeros, to: zero, shape: [4]}
"""
    assert refusal(directory, text, reverse=True) == [
        "a2: becomes one tensor with another, equal one",
        "zero: left out, since the way back makes it anew",
    ]


def test_a_cast_is_no_rename(checkpoint: Path) -> None:
    said = refusal(checkpoint, TEXT, Options(dtype=DType.BF16))
    assert any("its values are computed" in what for what in said)


def test_another_format_is_no_rename(checkpoint: Path) -> None:
    assert "another format, to pytorch_model.bin" in refusal(checkpoint, TEXT, Options(file_format="bin"))[0]


def test_layouts_whose_files_have_names_of_their_own(checkpoint: Path) -> None:
    fixed = TEXT.replace("layout: short", "layout: short, file: weights.safetensors")
    assert "keeps its weights in weights.safetensors" in refusal(checkpoint, fixed)[0]


def test_files_of_torch_are_refused(tmp_path: Path) -> None:
    import torch  # not at the top: a process that has it takes long to fork

    directory = tmp_path / "model"
    directory.mkdir()
    torch.save({"a": torch.full((3,), 1.5)}, directory / "pytorch_model.bin")
    text = "weightmap: 1\nsource: {layout: a}\ntarget: {layout: b}\nrename: {a: b}\n"
    assert "only safetensors files" in refusal(directory, text)[0]


def test_names_that_need_more_room_than_there_is(checkpoint: Path) -> None:
    longer = TEXT.replace("embed.weight", "embed" + "g" * 400 + ".weight")
    said = refusal(checkpoint, longer)
    assert len(said) == 1
    assert "its header has room for" in said[0]


def test_a_name_that_no_file_can_hold(checkpoint: Path) -> None:
    assert "no tensor can have this name" in refusal(checkpoint, TEXT.replace("embed.weight", "__metadata__"))[0]


def test_files_that_belong_to_others_too_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    os.link(checkpoint / "model-00001-of-00002.safetensors", tmp_path / "elsewhere/copy.safetensors")
    (checkpoint / "model-00002-of-00002.safetensors").rename(checkpoint / "data")
    (checkpoint / "model-00002-of-00002.safetensors").symlink_to("data")
    said = refusal(checkpoint, TEXT)
    assert [what.split(",")[0] for what in said] == [
        "the file has other names (hard links)",
        "it is a link to data",
    ]


def test_one_file_of_a_directory_is_refused(checkpoint: Path) -> None:
    with pytest.raises(OutputError, match="only a directory on this machine"):
        convert_in_place(spec(), checkpoint / "model-00001-of-00002.safetensors", Options())


def test_two_runs_at_once_are_refused(checkpoint: Path) -> None:
    with (
        exclusive_lock(checkpoint.parent / f".{checkpoint.name}.lock"),
        pytest.raises(OutputError, match="another run is working"),
    ):
        convert_in_place(spec(), checkpoint, Options())


# --- interruptions ---------------------------------------------------------------------------------------------------

CALLS = ("open", "pwrite", "fsync", "rename", "unlink", "chmod", "chown", "ftruncate")


class Interrupter:
    """Does something in place of one call to the system that changes files, or in the middle of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, interrupt: Callable[[], None]) -> None:
        self.count = 0
        self.log: list[str] = []
        self._at = at
        self._interrupt = interrupt
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **keywords)
            if name == "pwrite":
                self._count(name)
                half = real(args[0], bytes(args[1][: len(args[1]) // 2]), args[2])
                self._count(f"half of {name}")
                return half + real(args[0], args[1][half:], args[2] + half)
            self._count(name)
            result = real(*args, **keywords)
            if name != "open":  # who gets no descriptor can't close it
                self._count(f"after {name}")
            return result

        return call

    def _count(self, what: str) -> None:
        self.count += 1
        self.log.append(what)
        if self.count == self._at:
            self._interrupt()


def killed_at(at: int, work: Callable[[], object]) -> bool:
    """Do it in a process of its own, that is gone at this point without any cleaning up; False once it isn't."""
    child = os.fork()
    if child == 0:
        try:
            with pytest.MonkeyPatch.context() as patch:
                Interrupter(patch, at, lambda: os._exit(KILLED))
                work()
        except BaseException:  # noqa: BLE001 - the child must not go on with the tests
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in {0, KILLED}
    return code == KILLED


def restored(saved: Path, directory: Path) -> None:
    shutil.rmtree(directory)
    shutil.copytree(saved, directory)


@pytest.fixture
def states(checkpoint: Path, tmp_path: Path) -> tuple[Path, Any, Any]:
    """A copy of the old state, and what files there are in the old and in the new one."""
    shutil.copytree(checkpoint, tmp_path / "saved")
    old = snapshot(checkpoint)
    convert_in_place(spec(), checkpoint, Options())
    new = snapshot(checkpoint)
    restored(tmp_path / "saved", checkpoint)
    assert old == snapshot(checkpoint) != new
    return tmp_path / "saved", old, new


def test_a_kill_at_any_call_leaves_the_old_state_or_the_new_one(
    checkpoint: Path, states: tuple[Path, Any, Any]
) -> None:
    saved, old, new = states
    outcomes = []
    for at in range(1, 1000):
        restored(saved, checkpoint)
        if not killed_at(at, lambda: convert_in_place(spec(), checkpoint, Options())):
            break
        interrupted = (checkpoint / JOURNAL).exists()
        if interrupted:
            with pytest.raises(CheckpointError, match="interrupted here"):
                open_checkpoint(checkpoint)
            with pytest.raises(CheckpointError, match="interrupted here"):
                open_checkpoint(checkpoint / "model-00001-of-00002.safetensors")
        assert undo_interrupted(checkpoint) is interrupted
        found = snapshot(checkpoint)
        assert found in (old, new)
        outcomes.append(found == new)
        if found == old:
            convert_in_place(spec(), checkpoint, Options())
            assert snapshot(checkpoint) == new
    else:
        pytest.fail("it never came to an end")
    # Up to some call all is taken back, and from the removal of the journal on all is new.
    assert outcomes == sorted(outcomes)
    assert outcomes.count(False) > 30
    assert outcomes.count(True) >= 2


def test_a_kill_while_taking_back_is_taken_back_too(checkpoint: Path, states: tuple[Path, Any, Any]) -> None:
    saved, old, new = states
    tried = 0
    for first in range(12, 1000, 14):
        restored(saved, checkpoint)
        if not killed_at(first, lambda: convert_in_place(spec(), checkpoint, Options())):
            break
        shutil.rmtree(saved.parent / "half", ignore_errors=True)
        shutil.copytree(checkpoint, saved.parent / "half")
        for second in range(1, 1000, 3):
            restored(saved.parent / "half", checkpoint)
            if not killed_at(second, lambda: undo_interrupted(checkpoint)):
                break
            tried += 1
            undo_interrupted(checkpoint)
            assert snapshot(checkpoint) in (old, new)
    assert tried > 20


def test_an_error_at_any_call_is_taken_back_at_once(
    checkpoint: Path, states: tuple[Path, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, old, new = states

    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    said = set()
    for at in range(1, 1000):
        restored(saved, checkpoint)
        with monkeypatch.context() as patch:
            calls = Interrupter(patch, at, fail)
            try:
                convert_in_place(spec(), checkpoint, Options())
            except OutputError as error:
                said.add(error.problems[0].what)
            else:
                if calls.count < at:
                    break
        undo_interrupted(checkpoint)  # only where removing the journal is what failed
        assert snapshot(checkpoint) in (old, new)
    assert any("can't be written" in what for what in said)


def test_a_disk_that_fails_for_good_leaves_the_journal(
    checkpoint: Path, states: tuple[Path, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, old, _ = states
    real = os.pwrite

    def fail(descriptor: int, data: Any, position: int) -> int:
        if b"weightmap_in_place" not in bytes(data[:40]) and not bytes(data[:40]).startswith(b"process"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, data, position)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        with pytest.raises(OutputError, match="and so did taking it back") as caught:
            convert_in_place(spec(), checkpoint, Options())
    assert "run the same command" in (caught.value.problems[0].hint or "")
    assert undo_interrupted(checkpoint)
    assert snapshot(checkpoint) == old


def test_the_journal_is_on_the_disk_before_the_first_change_and_until_after_the_last(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut keeps what was flushed; so each step is flushed before the next one begins."""
    events: list[tuple[str, str]] = []
    real_fsync, real_pwrite, real_rename, real_unlink = os.fsync, os.pwrite, os.rename, os.unlink

    def path_of(descriptor: int) -> str:
        return Path(f"/proc/self/fd/{descriptor}").readlink().name

    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(("fsync", path_of(fd))), real_fsync(fd))[1])
    monkeypatch.setattr(
        os, "pwrite", lambda fd, *rest: (events.append(("write", path_of(fd))), real_pwrite(fd, *rest))[1]
    )
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append(("rename", Path(b).name)), real_rename(a, b))[1])
    monkeypatch.setattr(os, "unlink", lambda a: (events.append(("unlink", Path(a).name)), real_unlink(a))[1])
    convert_in_place(spec(), checkpoint, Options())
    events = [event for event in events if not event[1].endswith(".lock")]
    weights = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    assert events == [
        ("write", f"{JOURNAL}.new"),
        ("fsync", f"{JOURNAL}.new"),
        ("rename", JOURNAL),
        ("fsync", checkpoint.name),
        *[(what, name) for name in weights for what in ("write", "fsync")],
        *[
            event
            for name in ("model.safetensors.index.json", "config.json")
            for event in (("write", f"{JOURNAL}.part"), ("fsync", f"{JOURNAL}.part"), ("rename", name))
        ],
        ("unlink", MANIFEST),
        ("fsync", checkpoint.name),
        ("unlink", JOURNAL),
        ("fsync", checkpoint.name),
    ]


@pytest.fixture
def interrupted(checkpoint: Path) -> Path:
    """A directory in which the first header is new, and the second is not."""
    shutil.copytree(checkpoint, checkpoint.parent / "whole")
    first = checkpoint / "model-00001-of-00002.safetensors"
    old = first.read_bytes()
    for at in range(1, 1000):
        restored(checkpoint.parent / "whole", checkpoint)
        assert killed_at(at, lambda: convert_in_place(spec(), checkpoint, Options()))
        if old[100:200] != first.read_bytes()[100:200]:
            break
    return checkpoint


def test_a_damaged_journal_is_refused_and_nothing_is_touched(interrupted: Path) -> None:
    whole = (interrupted / JOURNAL).read_bytes()
    damaged = [
        whole[:-40],
        whole[: len(whole) // 2],
        b"",
        b"{}",
        b"\xff\n",
        whole.replace(b"model-00001", b"model-00003"),
    ]
    for content in damaged:
        (interrupted / JOURNAL).write_bytes(content)
        before = snapshot(interrupted)
        with pytest.raises(CheckpointError, match="is damaged"):
            undo_interrupted(interrupted)
        assert snapshot(interrupted) == before


@pytest.mark.parametrize(
    "name", ["../model-00001-of-00002.safetensors", "/etc/passwd", "..", "", "a\0b", "\ud800", 5, None, ["a"]]
)
def test_a_journal_from_a_stranger_reaches_no_file_elsewhere(interrupted: Path, name: object) -> None:
    lines = (interrupted / JOURNAL).read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), "file": name})
    body = "".join(f"{line}\n" for line in lines[:-1])
    digest = hashlib.sha256(body.encode()).hexdigest()
    (interrupted / JOURNAL).write_text(body + json.dumps({"sha256": digest}) + "\n")
    with pytest.raises(CheckpointError, match="is damaged"):
        undo_interrupted(interrupted)


@pytest.mark.parametrize(
    "file", ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
)
def test_a_file_that_was_changed_meanwhile_is_not_written_over(interrupted: Path, file: str) -> None:
    content = bytearray((interrupted / file).read_bytes())
    content[20] ^= 1
    (interrupted / file).write_bytes(content)
    before = snapshot(interrupted)
    with pytest.raises(CheckpointError, match="was changed since") as caught:
        undo_interrupted(interrupted)
    assert [problem.where for problem in caught.value.problems] == [str(interrupted / file)]
    assert snapshot(interrupted) == before


def test_a_file_that_has_gone_meanwhile(interrupted: Path) -> None:
    (interrupted / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has gone since"):
        undo_interrupted(interrupted)


def test_a_link_in_place_of_a_file_is_not_followed(interrupted: Path, tmp_path: Path) -> None:
    content = (interrupted / "model-00001-of-00002.safetensors").read_bytes()
    (tmp_path / "victim").write_bytes(content)
    (interrupted / "model-00001-of-00002.safetensors").unlink()
    (interrupted / "model-00001-of-00002.safetensors").symlink_to(tmp_path / "victim")
    with pytest.raises(CheckpointError, match="symbolic link"):
        undo_interrupted(interrupted)
    assert (tmp_path / "victim").read_bytes() == content


@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_journal_raises_anything_but_the_documented_error(content: bytes) -> None:
    digest = json.dumps({"sha256": hashlib.sha256(content + b"\n").hexdigest()}).encode()
    for journal in (content, content + b"\n" + digest + b"\n"):
        with pytest.raises(CheckpointError):
            in_place_journal._decode(journal, "journal")


def test_without_locks_a_journal_may_be_that_of_a_running_one(
    interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    before = snapshot(interrupted)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", no_locks)
        with pytest.raises(OutputError, match="has no locks to tell which"):
            convert_in_place(spec(), interrupted, Options())
    assert snapshot(interrupted) == before


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(TEXT)
    return path


def test_the_command_says_what_it_did(checkpoint: Path, spec_file: Path) -> None:
    values = by_library(checkpoint)
    result = weightmap("convert", "--in-place", "--spec", spec_file, checkpoint)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"Converted {checkpoint} in place\n")
    assert "7 tensors; their data stays where it is" in result.stdout
    assert f"Warning: {MANIFEST} was removed" in result.stderr
    back = weightmap("convert", "--in-place", "--reverse", "--spec", spec_file, checkpoint, "--json")
    assert json.loads(back.stdout)["in_place"] is True
    assert by_library(checkpoint) == values


def test_the_command_takes_back_what_was_interrupted(interrupted: Path, spec_file: Path) -> None:
    refused = weightmap("inspect", interrupted)
    assert refused.exit_code == 7
    assert "weightmap convert --in-place" in refused.stderr
    elsewhere = weightmap("convert", "--spec", spec_file, interrupted, interrupted.parent / "out")
    assert elsewhere.exit_code == 7
    result = weightmap("convert", "--in-place", "--spec", spec_file, interrupted)
    assert result.exit_code == 0, result.output
    assert "was undone first" in result.stderr
    assert set(by_library(interrupted)) == set(NEW_NAMES.values())


@pytest.mark.parametrize(
    ("more", "message"),
    [(["out"], "no OUTPUT"), (["--overwrite"], "leave out --overwrite")],
)
def test_an_output_and_in_place_exclude_each_other(
    checkpoint: Path, spec_file: Path, more: list[str], message: str
) -> None:
    result = weightmap("convert", "--in-place", "--spec", spec_file, checkpoint, *more)
    assert result.exit_code == 2
    assert message in result.stderr


def test_without_in_place_an_output_is_needed(checkpoint: Path, spec_file: Path) -> None:
    result = weightmap("convert", "--spec", spec_file, checkpoint)
    assert result.exit_code == 2
    assert "Missing argument 'OUTPUT'" in result.stderr


def test_the_command_refuses_with_all_reasons(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "phi")
    result = weightmap("convert", "--in-place", "--spec", "phi2_to_tenny", directory)
    assert result.exit_code == 8
    assert "put together of several pieces" in result.stderr
    assert "Convert into another directory" in result.stderr
