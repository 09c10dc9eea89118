"""`convert` from the outside: what it makes, what it says, and what is left when it is stopped."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.commands.support import (
    CONFIG,
    SPEC,
    phi_shapes,
    read_tensors,
    run_weightmap,
    stop_weightmap,
    weightmap,
    write_checkpoint,
)


@pytest.fixture
def phi(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "phi", shards=2)


def names_in(directory: Path) -> set[str]:
    """What is in a directory; the locks that outputs leave beside them aside."""
    return {path.name for path in directory.iterdir() if not path.name.endswith(".lock")}


def test_there_and_back(phi: Path, tmp_path: Path) -> None:
    there = weightmap("convert", "--spec", SPEC, phi, tmp_path / "tenny")
    assert there.exit_code == 0, there.output
    assert json.loads((tmp_path / "tenny/config.json").read_text())["model_type"] == "tenny"
    back = weightmap("convert", "--spec", SPEC, "--reverse", tmp_path / "tenny", tmp_path / "back")
    assert back.exit_code == 0, back.output
    assert read_tensors(tmp_path / "back") == read_tensors(phi)
    assert json.loads((tmp_path / "back/config.json").read_text()) == CONFIG


def test_the_summary_says_what_was_done(phi: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "README.md"):
        (phi / name).write_text("x")
    result = weightmap("convert", "--spec", SPEC, phi, tmp_path / "out")
    assert result.stdout.startswith(f"Converted {phi} to {tmp_path / 'out'}\n")
    lines = dict(line.split(None, 1) for line in result.stdout.splitlines()[1:] if len(line.split(None, 1)) == 2)
    assert lines["by"] == "phi2_to_tenny: hf/phi → tenny, exact"
    assert lines["wrote"].startswith("30 tensors, ")
    assert lines["rules"] == "10 applied, 1 off (only when config.tie_word_embeddings)"
    assert lines["carries"] == "config.json (mapped), tokenizer.json"
    assert lines["leaves"] == "README.md"
    assert "MB/s" in lines["took"] or "KB/s" in lines["took"]
    assert result.stderr == ""


def test_what_is_dropped_is_said_with_the_reason(tmp_path: Path) -> None:
    shapes = phi_shapes() | {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": [2] for layer in range(2)}
    source = write_checkpoint(tmp_path / "phi", shapes)
    result = weightmap("convert", "--spec", SPEC, source, tmp_path / "out")
    assert "2 tensors: model.layers.{0,1}.self_attn.rotary_emb.inv_freq (recomputed from rope_theta)" in " ".join(
        result.stdout.split()
    )


def test_notes_are_warnings_even_when_quiet(phi: Path, tmp_path: Path) -> None:
    result = weightmap("convert", "--spec", SPEC, phi, tmp_path / "out", "--set", "block=classic", "--quiet")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr.startswith("Warning: ")
    assert "computes another function" in result.stderr


def test_json(phi: Path, tmp_path: Path) -> None:
    result = weightmap("convert", "--spec", SPEC, phi, tmp_path / "out", "--json", "--set", "block=classic")
    data = json.loads(result.stdout)
    assert data["output"] == str(tmp_path / "out")
    assert data["source"] == str(phi)
    assert data["tensors"] == {"read": 33, "written": 30}
    assert data["bytes"]["written"] == sum(file["nbytes"] for file in data["files"])
    assert data["bytes"]["written"] == sum(
        data["bytes"][way] for way in ("copied", "rearranged", "computed", "generated")
    )
    assert data["files"][0]["name"] == "model.safetensors"
    assert data["memory"]["measured_peak"] > 0
    assert data["config"]["block"] == "classic"
    assert len(data["notes"]) == 1
    assert data["seconds"] >= 0
    assert "Warning: " in result.stderr


def test_an_output_is_replaced_only_when_asked(phi: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert weightmap("convert", "--spec", SPEC, phi, output).exit_code == 0
    (output / "mark.json").write_text("{}")
    refused = weightmap("convert", "--spec", SPEC, phi, output)
    assert refused.exit_code == 8
    assert "--overwrite" in refused.stderr
    assert (output / "mark.json").exists()
    assert weightmap("convert", "--spec", SPEC, phi, output, "--overwrite").exit_code == 0
    assert not (output / "mark.json").exists()


def test_a_spec_or_config_inside_of_the_output_is_not_deleted(phi: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert weightmap("convert", "--spec", SPEC, phi, output).exit_code == 0
    config = output / "mine.json"
    config.write_text(json.dumps(CONFIG))
    result = weightmap("convert", "--spec", SPEC, phi, output, "--overwrite", "--config", config)
    assert result.exit_code == 8
    assert "mine.json" in result.stderr
    assert config.exists()


def test_shards_dtype_threads_and_memory(phi: Path, tmp_path: Path) -> None:
    words = ("--max-shard-size", "1KB", "--dtype", "float16", "--threads", "1", "--max-memory", "64MB")
    result = weightmap("convert", "--spec", SPEC, phi, tmp_path / "out", *words, "--json")
    data = json.loads(result.stdout)
    assert len(data["files"]) > 3
    assert (tmp_path / "out/model.safetensors.index.json").exists()
    assert data["bytes"]["computed"] > 0
    sizes = {name: len(tensor) for name, tensor in read_tensors(tmp_path / "out").items()}
    assert sizes["encoder.weight"] == 11 * 8 * 2


def test_values_for_the_targets_config(phi: Path, tmp_path: Path) -> None:
    words = (
        "--set",
        "block=classic",
        "--set",
        "max_len=7",
        "--set",
        "a.b=[1, 2]",
        "--set",
        "text=07",
        "--set",
        "no=null",
    )
    result = weightmap("convert", "--spec", SPEC, phi, tmp_path / "out", *words, "--quiet")
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["block"] == "classic"
    assert config["a"] == {"b": [1, 2]}
    assert config["text"] == "07"
    assert config["no"] is None
    assert len(read_tensors(tmp_path / "out")["pos_encoder.pe"]) == 7 * 8 * 4


def test_a_config_and_dims_from_the_user(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "phi", config=None)
    given = tmp_path / "given.json"
    given.write_text(json.dumps({**CONFIG, "num_attention_heads": 3}))
    missing = weightmap("convert", "--spec", SPEC, source, tmp_path / "out")
    assert missing.exit_code == 6
    assert "--config FILE" in missing.stderr
    wrong = weightmap("convert", "--spec", SPEC, source, tmp_path / "out", "--config", given)
    assert wrong.exit_code == 3
    right = ("--config", given, "--dim", "H=4", "--dim", "D=2")
    result = weightmap("convert", "--spec", SPEC, source, tmp_path / "out", *right)
    assert result.exit_code == 0, result.output


def test_piped_it_shows_no_bar(phi: Path, tmp_path: Path) -> None:
    result = run_weightmap("convert", "--spec", SPEC, phi, tmp_path / "out")
    assert result.returncode == 0
    assert result.stderr == ""
    assert "\x1b" not in result.stdout
    assert result.stdout.startswith("Converted ")


def test_names_from_a_checkpoint_are_escaped(tmp_path: Path) -> None:
    name = "evil\x1b[2J\u202e[red]name"
    source = write_checkpoint(tmp_path / "phi", phi_shapes() | {f"{name}.rotary_emb.inv_freq": [2]})
    (source / "tokenizer\x1b.json").write_text("x")
    for words in (
        ("convert", "--spec", SPEC, source, tmp_path / "out"),
        ("plan", "--spec", SPEC, source),
        ("inspect", source),
    ):
        result = weightmap(*words)
        assert result.exit_code == 0, result.output
        assert "\x1b" not in result.output
        assert "\u202e" not in result.output
        assert "evil\\x1b[2J\\u202e[red]name" in result.output
    result = weightmap("inspect", source, "--json")
    assert name in {key["name"].removesuffix(".rotary_emb.inv_freq") for key in json.loads(result.stdout)["keys"]}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_leaves_nothing_behind(number: signal.Signals, code: int, tmp_path: Path) -> None:
    shapes = phi_shapes(layers=2, hidden=768, inner=3072, vocab=8000)
    config = {**CONFIG, "hidden_size": 768, "intermediate_size": 3072, "vocab_size": 8000}
    source = write_checkpoint(tmp_path / "phi", shapes, config=config)
    (tmp_path / "outputs").mkdir()
    output = tmp_path / "outputs" / "tenny"
    words = (
        "convert",
        "--spec",
        SPEC,
        source,
        output,
        "--dtype",
        "float64",
        "--threads",
        "1",
        "--max-shard-size",
        "20MB",
    )
    result = stop_weightmap(number, output.parent / ".tenny.staging-*", *words)
    assert result.returncode == code, result.stderr
    assert result.stderr.strip() == f"Error: stopped by {number.name}"
    assert names_in(output.parent) == set()


def test_a_signal_leaves_the_old_output_alone(tmp_path: Path) -> None:
    shapes = phi_shapes(layers=2, hidden=768, inner=3072, vocab=8000)
    config = {**CONFIG, "hidden_size": 768, "intermediate_size": 3072, "vocab_size": 8000}
    source = write_checkpoint(tmp_path / "phi", shapes, config=config)
    output = tmp_path / "outputs" / "tenny"
    write_checkpoint(output, {"old.weight": [2]}, config=None)
    words = ("convert", "--spec", SPEC, source, output, "--overwrite", "--dtype", "float64", "--threads", "1")
    result = stop_weightmap(signal.SIGTERM, output.parent / ".tenny.staging-*", *words)
    assert result.returncode == 143, result.stderr
    assert names_in(output.parent) == {"tenny"}
    assert set(read_tensors(output)) == {"old.weight"}
