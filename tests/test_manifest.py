"""The manifest: all that it says, computed again from the bytes; and that two runs write the same."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from safetensors.torch import save_file

import converters
from converters.errors import CheckpointError, WeightmapError
from converters.manifest import MANIFEST, creation_time, read_manifest
from converters.spec_file import parse_spec
from tests.commands.support import REPOSITORY, SPEC, environment, phi_shapes, weightmap, write_checkpoint


def manifest_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / MANIFEST).read_text())
    return found


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def digest(data: bytes, algorithm: str = "xxh3") -> str:
    made = xxhash.xxh3_128_hexdigest(data) if algorithm == "xxh3" else hashlib.sha256(data).hexdigest()
    return f"{algorithm}:{made}"


def tensors_in(path: Path) -> dict[str, tuple[str, list[int], int, int, bytes]]:
    """Dtype, shape, first byte, last byte plus one, and bytes of each tensor, by the format's own description."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            found[name] = (entry["dtype"], entry["shape"], start, end, data[start:end])
    return found


def assert_right(
    source: Path, output: Path, algorithm: str = "xxh3", labels: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Compare everything that bytes tell with the manifest.

    Args:
        source: what was read; all of its files are recorded that were.
        output: what was written.
        algorithm: of the digests.
        labels: for each file of a part, the label before its tensors' names.
    """
    manifest = manifest_of(output)
    inputs, outputs = bytes_of(source), bytes_of(output)
    del outputs[MANIFEST]
    for entry in manifest["inputs"]:
        data = inputs[entry["file"]]
        assert entry == {"file": entry["file"], "nbytes": len(data), "digest": digest(data, algorithm)}
    assert manifest["outputs"] == [
        {"file": name, "nbytes": len(data), "digest": digest(data, algorithm)} for name, data in sorted(outputs.items())
    ]
    for section in ("inputs", "outputs"):
        names = [entry["file"] for entry in manifest[section]]
        assert names == sorted(set(names))
    expected = {}
    for name in outputs:
        if name.endswith(".safetensors"):
            prefix = (labels or {}).get(name, "")
            for key, (dtype, shape, start, end, data) in tensors_in(output / name).items():
                expected[prefix + key] = (dtype, shape, name, [start, end], digest(data, algorithm))
    if expected:
        found = {
            key: (entry["dtype"], entry["shape"], entry["file"], entry["bytes"], entry["digest"])
            for key, entry in manifest["tensors"].items()
        }
        assert found == expected
    checked = weightmap("verify-files", output)
    assert checked.exit_code == 0, checked.output
    return manifest


@pytest.fixture
def phi(tmp_path: Path) -> Path:
    source = write_checkpoint(tmp_path / "phi", shards=2)
    (source / "tokenizer.json").write_text("{}")
    (source / "README.md").write_text("not carried, not recorded")
    return source


@pytest.mark.parametrize("algorithm", ["xxh3", "sha256"])
def test_everything_that_bytes_tell(phi: Path, tmp_path: Path, algorithm: str) -> None:
    words = ("--max-shard-size", "1KB", "--digest", algorithm)
    assert weightmap("convert", "--spec", SPEC, phi, tmp_path / "out", *words).exit_code == 0
    manifest = assert_right(phi, tmp_path / "out", algorithm)
    assert {entry["file"] for entry in manifest["inputs"]} == set(bytes_of(phi)) - {"README.md"}
    text = (REPOSITORY / "mappings" / f"{SPEC}.yaml").read_bytes()
    assert manifest["spec"] == {
        "name": SPEC, "digest": f"sha256:{hashlib.sha256(text).hexdigest()}", "reverse": False, "from": "hf/phi",
        "to": "tenny",
    }  # fmt: skip
    assert manifest["versions"]["weightmap"] == converters.__version__
    assert manifest["checks"]["read_back"] is True
    assert manifest["checks"]["exactness"] == "exact"
    assert manifest["tensors"]["transformer_encoder.layers.1.self_attn.multihead_attn.in_proj_weight"]["from"] == [
        f"model.layers.1.self_attn.{name}_proj.weight" for name in "qkv"
    ]
    assert manifest["tensors"]["pos_encoder.pe"]["from"] == []
    assert (manifest["dtype_changes"], manifest["dropped"]) == ([], [])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", manifest["created"])


def test_a_single_file_is_recorded_with_the_config_that_was_read(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "phi")
    converters.convert(converters.load_spec(SPEC), source / "model.safetensors", tmp_path / "out")
    manifest = assert_right(source, tmp_path / "out")
    assert [entry["file"] for entry in manifest["inputs"]] == ["config.json", "model.safetensors"]


def test_an_index_that_was_given_is_recorded(phi: Path, tmp_path: Path) -> None:
    converters.convert(converters.load_spec(SPEC), phi / "model.safetensors.index.json", tmp_path / "out")
    manifest = assert_right(phi, tmp_path / "out")
    assert {entry["file"] for entry in manifest["inputs"]} == set(bytes_of(phi)) - {"README.md", "tokenizer.json"}


def test_the_way_back_records_the_manifest_of_the_way_there(phi: Path, tmp_path: Path) -> None:
    spec = converters.load_spec(SPEC)
    converters.convert(spec, phi, tmp_path / "out")
    converters.convert(spec, tmp_path / "out", tmp_path / "back", reverse=True)
    manifest = assert_right(tmp_path / "out", tmp_path / "back")
    assert MANIFEST in {entry["file"] for entry in manifest["inputs"]}
    assert (manifest["spec"]["reverse"], manifest["spec"]["to"]) == (True, "hf/phi")
    for words in (
        ["verify", "--spec", SPEC, phi, tmp_path / "out", "--level", "roundtrip"],
        ["inspect", tmp_path / "out"],
    ):
        result = weightmap(*words)
        assert result.exit_code == 0, result.output
        assert MANIFEST not in result.output


def test_dtype_changes_and_dropped_keys(tmp_path: Path) -> None:
    shapes = phi_shapes() | {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": [2] for layer in range(2)}
    source = write_checkpoint(tmp_path / "phi", shapes)
    assert weightmap("convert", "--spec", SPEC, source, tmp_path / "out", "--dtype", "bf16").exit_code == 0
    manifest = assert_right(source, tmp_path / "out")
    from_source = [name for name, entry in manifest["tensors"].items() if entry["from"]]
    changes = [change for change in manifest["dtype_changes"] if change["tensor"] in from_source]
    assert changes == [{"tensor": name, "from": "F32", "to": "BF16"} for name in from_source]
    assert {(entry["key"], entry["reason"]) for entry in manifest["dropped"]} == {
        (f"model.layers.{layer}.self_attn.rotary_emb.inv_freq", "recomputed from rope_theta") for layer in range(2)
    }
    assert "numpy" in manifest["versions"]


def test_a_tensor_of_several_dtypes_is_recorded_in_one_order() -> None:
    """The order of a set of dtypes differs from process to process."""
    from types import SimpleNamespace

    from converters.manifest import _dtype_changes
    from converters.tensor_info import DType, TensorInfo

    dtypes = [DType.F16, DType.BF16, DType.F64, DType.F32]
    plan = SimpleNamespace(
        targets=[
            SimpleNamespace(info=TensorInfo("t", (4,), DType.F32), moves=[SimpleNamespace(source=n) for n in range(4)])
        ],
        tensor=lambda source: TensorInfo("s", (1,), dtypes[source]),
    )
    found = _dtype_changes(plan)  # type: ignore[arg-type]
    assert [change["from"] for change in found] == ["BF16", "F16", "F64"]


def test_without_digests(phi: Path, tmp_path: Path) -> None:
    assert weightmap("convert", "--spec", SPEC, phi, tmp_path / "out", "--digest", "none").exit_code == 0
    manifest = manifest_of(tmp_path / "out")
    assert manifest["checks"]["read_back"] is False
    assert manifest["command"] == f"weightmap convert --spec {SPEC} --digest none SOURCE OUTPUT"
    for entry in (*manifest["inputs"], *manifest["outputs"]):
        assert set(entry) == {"file", "nbytes"}
    assert all(set(entry) == {"dtype", "shape", "from"} for entry in manifest["tensors"].values())


NAMES = """
weightmap: 1
name: 'a "b" \\ c'
source: {layout: a}
target: {layout: b}
rename: {"x{n}": "y{n}"}
"""


def test_names_with_quotes_and_control_characters(tmp_path: Path) -> None:
    strange = ['"', "\\", "\n", "\x1b[31m", "größe🤗", "'", "\x7f", "\u2028", "</script>", "a b"]
    source = tmp_path / "source"
    source.mkdir()
    save_file(
        {f"x{name}": torch.full((3,), float(n + 2)) for n, name in enumerate(strange)}, source / "model.safetensors"
    )
    spec = parse_spec(NAMES, "names.yaml")
    converters.convert(spec, source, tmp_path / "out")
    assert_right(source, tmp_path / "out")


def run_there(place: Path, source: Path, *words: str, seed: str, **more: str) -> dict[str, bytes]:
    place.mkdir()
    line = [sys.executable, str(REPOSITORY / "cli.py"), "convert", "--spec", SPEC, str(source), "out", *words]
    done = subprocess.run(
        line, capture_output=True, text=True, check=False, cwd=place, env=environment(PYTHONHASHSEED=seed, **more)
    )
    assert done.returncode == 0, done.stderr
    return bytes_of(place / "out")


def test_two_runs_give_the_same_bytes(phi: Path, tmp_path: Path) -> None:
    """From other directories, of a copy of the source, with other threads, memory and hashes of Python's own."""
    copied = tmp_path / "elsewhere" / "copy"
    write_checkpoint(copied, shards=2)
    (copied / "tokenizer.json").write_text("{}")
    first = run_there(tmp_path / "a", phi, "--dtype", "bf16", seed="1")
    second = run_there(
        tmp_path / "b",
        copied,
        "--dtype",
        "bf16",
        "--threads",
        "1",
        "--max-memory",
        "200MB",
        "--io",
        "mmap",
        "--no-sync",
        seed="2",
    )
    manifests = [each.pop(MANIFEST).decode() for each in (first, second)]
    assert first == second
    lines = [[line for line in each.splitlines() if not line.startswith(' "created": ')] for each in manifests]
    assert lines[0] == lines[1]
    assert len(lines[0]) == len(manifests[0].splitlines()) - 1
    assert str(tmp_path) not in manifests[0]


def test_with_a_date_given_all_bytes_are_the_same(phi: Path, tmp_path: Path) -> None:
    runs = [run_there(tmp_path / seed, phi, seed=seed, SOURCE_DATE_EPOCH="86399") for seed in "12"]
    assert runs[0] == runs[1]
    assert manifest_of(tmp_path / "1" / "out")["created"] == "1970-01-01T23:59:59Z"


@pytest.mark.parametrize("value", ["0", "1700000000", "99999999999"])
def test_dates(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    import datetime as dt

    monkeypatch.setenv("SOURCE_DATE_EPOCH", value)
    expected = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=int(value))
    assert creation_time() == expected.strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize("value", ["-1", "1.5", "now", "٣", "9" * 12, " 1", "1e3"])
def test_dates_that_are_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", value)
    with pytest.raises(WeightmapError, match="SOURCE_DATE_EPOCH"):
        creation_time()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "")
    assert creation_time().startswith("2")


@pytest.mark.parametrize("file_format", ["bin", "dcp"])
def test_other_formats(phi: Path, tmp_path: Path, file_format: str) -> None:
    words = ("--format", file_format, "--max-shard-size", "1KB")
    assert weightmap("convert", "--spec", SPEC, phi, tmp_path / "out", *words).exit_code == 0
    manifest = assert_right(phi, tmp_path / "out")
    plain = tmp_path / "plain"
    assert weightmap("convert", "--spec", SPEC, phi, plain).exit_code == 0
    expected = {name: digest(data) for name, (*_, data) in tensors_in(plain / "model.safetensors").items()}
    assert {name: entry["digest"] for name, entry in manifest["tensors"].items()} == expected
    for entry in manifest["tensors"].values():
        start, end = entry["bytes"]
        assert digest((tmp_path / "out" / entry["file"]).read_bytes()[start:end]) == entry["digest"]
    back = tmp_path / "back"
    assert weightmap("convert", "--spec", SPEC, "--reverse", tmp_path / "out", back).exit_code == 0
    recorded = {entry["file"] for entry in assert_right(tmp_path / "out", back)["inputs"]}
    assert recorded == set(bytes_of(tmp_path / "out"))


PARTS = """
weightmap: 1
name: parts
source: {layout: a}
target:
  layout: b
  files: {unet: unet/model.safetensors, text: text/model.safetensors}
rename: {"u.{k}": "unet:{k}", "t.{k}": "text:{k}"}
"""


@pytest.mark.parametrize("beside", [False, True])
def test_parts_with_indexes(tmp_path: Path, *, beside: bool) -> None:
    source = tmp_path / "source"
    source.mkdir()
    state = {name: torch.randn(7, 3) + 2 for name in ("u.a", "u.b", "u.c", "t.a", "t.z")}
    save_file(state, source / "model.safetensors")
    spec = parse_spec(PARTS.replace("/model.safe", ".safe") if beside else PARTS, "parts.yaml")
    converters.convert(spec, source, tmp_path / "out", max_shard_size=100)
    output = tmp_path / "out"
    names = [name for name in bytes_of(output) if name.endswith(".safetensors")]
    assert len(names) == 5
    labels = {name: "unet:" if name.startswith("unet") else "text:" for name in names}
    assert_right(source, output, labels=labels)
    converters.convert(spec, output, tmp_path / "back", reverse=True)
    manifest = assert_right(output, tmp_path / "back")
    expected = {name for name in bytes_of(output) if name.endswith((".safetensors", ".index.json"))} | {MANIFEST}
    assert {entry["file"] for entry in manifest["inputs"]} == expected
    index = output / ("unet.safetensors.index.json" if beside else "unet/model.safetensors.index.json")
    index.write_text(index.read_text().replace("-00001-of", "-00002-of"))
    assert weightmap("verify-files", output).exit_code == 4


def test_an_adapter(tmp_path: Path) -> None:
    """Its own config and weights are recorded under their names, and so is what its factors came from."""
    from tests.adapters.test_commands import prepared

    options = prepared(tmp_path)
    assert weightmap("convert", *options, tmp_path / "out").exit_code == 0
    manifest = assert_right(tmp_path / "adapter", tmp_path / "out")
    names = ["adapter_config.json", "adapter_model.safetensors"]
    assert [entry["file"] for entry in manifest["inputs"]] == names
    assert [entry["file"] for entry in manifest["outputs"]] == names
    assert {name.rpartition("l.1.")[2] for name in manifest["tensors"]} == {"lora_A.weight", "lora_B.weight"}
    assert all(entry["from"] for entry in manifest["tensors"].values())


def test_a_carried_file_whose_name_is_no_text_is_left(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "phi")
    Path(str(source / "tokenizer\udcff.json")).write_text("{}")
    result = weightmap("convert", "--spec", SPEC, source, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "leaves   tokenizer" in result.stdout
    assert_right(source, tmp_path / "out")


def test_transformers_reads_an_output_with_a_manifest(tmp_path: Path) -> None:
    import transformers

    from tests.models import tiny_phi

    model = tiny_phi(seed=3)
    model.save_pretrained(tmp_path / "model")
    spec = converters.load_spec(SPEC)
    converters.convert(spec, tmp_path / "model", tmp_path / "out")
    converters.convert(spec, tmp_path / "out", tmp_path / "back", reverse=True)
    assert (tmp_path / "back" / MANIFEST).exists()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    expected = model.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())


def test_reading_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no weightmap_manifest"):
        read_manifest(tmp_path)


def test_the_example_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own spec makes the page's own manifest, the versions of programs aside."""
    page = (REPOSITORY / "docs" / "provenance.md").read_text()
    (text,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (example,) = re.findall(r"^```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767225600")
    (tmp_path / "a").mkdir()
    save_file(
        {"wte.weight": torch.arange(12.0).reshape(4, 3), "h.mask": torch.ones(2, 2)},
        tmp_path / "a" / "model.safetensors",
        {"format": "pt"},
    )
    (tmp_path / "small.yaml").write_text(text)
    command = next(line for line in page.splitlines() if line.startswith("`weightmap convert"))
    words = command.split("`")[1].split()[1:]
    monkeypatch.chdir(tmp_path)
    assert weightmap(*words).exit_code == 0
    found, shown = (tmp_path / "b" / MANIFEST).read_text(), json.loads(example)
    assert json.loads(found) | {"versions": shown["versions"]} == shown
    ours = [line for line in found.splitlines() if "versions" not in line]
    assert ours == [line for line in example.splitlines() if "versions" not in line]
    start, end = shown["tensors"]["embed.weight"]["bytes"]
    assert f"tail -c +{start + 1} b/model.safetensors | head -c {end - start}" in page
    keys = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert keys == set(shown) - {"weightmap_manifest"}
