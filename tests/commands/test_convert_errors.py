"""Each way in which a conversion can't be done gives one clear error that names the place, and leaves no output."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.commands.support import CONFIG, SPEC, phi_shapes, weightmap, write_checkpoint, write_safetensors

HEAD = "weightmap: 1\nsource: {layout: a}\ntarget: {layout: b}\n"
EXPERTS = (
    HEAD
    + """\
rules:
  - from: "experts.{e}.w"
    to: w
    layout: "o i -> e o i"
"""
)


@dataclass
class Case:
    """A conversion that must fail.

    Attributes:
        code: the exit code.
        says: what the message must hold: the place, and what is wrong with it.
        options: more words of the command line.
    """

    code: int
    says: tuple[str, ...]
    options: tuple[str | Path, ...] = ()
    spec: str | Path = SPEC
    source: Path | None = None
    output: Path | None = None
    kept: set[str] = field(default_factory=set)


def phi(root: Path, **more: object) -> Path:
    return write_checkpoint(root / "phi", **more)  # type: ignore[arg-type]


def spec_file(root: Path, text: str) -> Path:
    path = root / "spec.yaml"
    path.write_text(text)
    return path


def renames(root: Path, text: str, shapes: dict[str, list[int]]) -> tuple[Path, Path]:
    """A spec of renames, and a checkpoint for it."""
    return spec_file(root, HEAD + "rename:\n" + text), write_checkpoint(root / "phi", shapes, config=None)


def unknown_key_left_over(root: Path) -> Case:
    return Case(
        3,
        ("model.layers.1.extra.weight", "no rule claims"),
        source=phi(root, shapes=phi_shapes() | {"model.layers.1.extra.weight": [2]}),
    )


def rule_that_matches_nothing(root: Path) -> Case:
    spec, source = renames(root, "  a.weight: x\n  b.weight: z\n", {"a.weight": [2]})
    return Case(3, ("spec.yaml:6:3", "no key matches 'b.weight'"), spec=spec, source=source)


def two_rules_for_one_key(root: Path) -> Case:
    spec, source = renames(root, '  "a.{p}": "x.{p}"\n  a.weight: z\n', {"a.weight": [2]})
    return Case(3, ("a.weight is claimed by", "line 5", "line 6"), spec=spec, source=source)


def two_rules_for_one_target(root: Path) -> Case:
    spec, source = renames(root, "  a.weight: x\n  b.weight: x\n", {"a.weight": [2], "b.weight": [3]})
    return Case(3, ("spec.yaml:6:3", "line 5", "make x"), spec=spec, source=source)


def missing_expert_index(root: Path) -> Case:
    shapes = {f"experts.{expert}.w": [2, 3] for expert in (0, 1, 3)}
    source = write_checkpoint(root / "phi", shapes, config=None)
    return Case(3, ("experts.{e}.w", "lacks e = 2", "spec.yaml:5"), spec=spec_file(root, EXPERTS), source=source)


def missing_layer(root: Path) -> Case:
    shapes = {name: shape for name, shape in phi_shapes().items() if not name.startswith("model.layers.1.")}
    return Case(3, ("phi2_to_tenny.yaml:", "no key for", "i=1"), source=phi(root, shapes=shapes))


def block_sizes_that_do_not_add_up(root: Path) -> Case:
    shapes = phi_shapes() | {"model.layers.1.self_attn.k_proj.weight": [6, 8]}
    return Case(
        3, ("model.layers.1.self_attn.k_proj.weight", "phi2_to_tenny.yaml:", "6", "8"), source=phi(root, shapes=shapes)
    )


def wrong_dims(root: Path) -> Case:
    return Case(
        3, ("phi2_to_tenny.yaml:", "self_attn.q_proj"), source=phi(root, config={**CONFIG, "num_attention_heads": 3})
    )


def wrong_dims_from_the_user(root: Path) -> Case:
    return Case(3, ("self_attn.q_proj",), ("--dim", "H=5"), source=phi(root))


def unknown_dim_from_the_user(root: Path) -> Case:
    return Case(5, ("heads",), ("--dim", "heads=5"), source=phi(root))


def config_that_is_not_phi(root: Path) -> Case:
    return Case(
        6, ("config.json", "model_type", "'phi'", "'llama'"), source=phi(root, config={**CONFIG, "model_type": "llama"})
    )


def config_that_is_no_json(root: Path) -> Case:
    source = phi(root)
    (source / "config.json").write_text("{")
    return Case(6, ("config.json",), source=source)


def no_config(root: Path) -> Case:
    return Case(6, ("config.json", "--config FILE"), source=phi(root, config=None))


def the_way_back_of_something_else(root: Path) -> Case:
    return Case(6, ("config.json", "model_type", "'tenny'"), ("--reverse",), source=phi(root))


def unreadable_shard_truncated(root: Path) -> Case:
    source = phi(root, shards=3)
    shard = source / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    return Case(7, ("model-00002-of-00003.safetensors",), source=source)


def unreadable_shard_is_a_pipe(root: Path) -> Case:
    source = phi(root, shards=3)
    shard = source / "model-00002-of-00003.safetensors"
    shard.unlink()
    os.mkfifo(shard)
    return Case(7, ("model-00002-of-00003.safetensors", "named pipe"), source=source)


def unreadable_shard_is_a_page(root: Path) -> Case:
    source = phi(root, shards=3)
    (source / "model-00002-of-00003.safetensors").write_text("<!DOCTYPE html><html><body>Sign in</body></html>" * 9)
    return Case(7, ("model-00002-of-00003.safetensors", "HTML"), source=source)


def unreadable_shard_is_a_pointer(root: Path) -> Case:
    source = phi(root, shards=3)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n"
    (source / "model-00002-of-00003.safetensors").write_text(pointer)
    return Case(7, ("model-00002-of-00003.safetensors", "LFS"), source=source)


def shard_missing_from_the_index(root: Path) -> Case:
    source = phi(root, shards=3)
    index = source / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"] = {name: file for name, file in data["weight_map"].items() if "00002" not in file}
    index.write_text(json.dumps(data))
    return Case(7, ("model-00002-of-00003.safetensors", "not mentioned in model.safetensors.index.json"), source=source)


def shard_that_is_not_there(root: Path) -> Case:
    source = phi(root, shards=3)
    (source / "model-00002-of-00003.safetensors").unlink()
    return Case(7, ("model-00002-of-00003.safetensors", "the file is missing"), source=source)


def key_in_the_index_but_not_in_the_shard(root: Path) -> Case:
    source = phi(root, shards=3)
    index = source / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["model.ghost.weight"] = "model-00002-of-00003.safetensors"
    index.write_text(json.dumps(data))
    return Case(
        7, ("model.safetensors.index.json", "model.ghost.weight", "model-00002-of-00003.safetensors"), source=source
    )


def key_in_the_shard_but_not_in_the_index(root: Path) -> Case:
    source = phi(root, shards=3)
    index = source / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    del data["weight_map"]["lm_head.bias"]
    index.write_text(json.dumps(data))
    return Case(7, ("lm_head.bias", "index"), source=source)


def no_source(root: Path) -> Case:
    return Case(7, ("nowhere", "No such file"), source=root / "nowhere")


def pickles(root: Path) -> Case:
    source = phi(root)
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(pickle.dumps({"a": print}))
    return Case(7, ("pytorch_model.bin", "torch.save did not write this file", "a pickle"), source=source)


def output_exists(root: Path) -> Case:
    (root / "outputs" / "out").mkdir()
    return Case(8, ("outputs/out", "already exists", "--overwrite"), source=phi(root), kept={"out"})


def output_is_no_checkpoint(root: Path) -> Case:
    output = root / "outputs" / "out"
    output.mkdir()
    (output / "thesis.tex").write_text("years of work")
    return Case(8, ("outputs/out", "thesis.tex"), ("--overwrite",), source=phi(root), kept={"out"})


def output_is_the_source(root: Path) -> Case:
    source = phi(root)
    return Case(8, ("phi", "is the input itself"), ("--overwrite",), source=source, output=source)


def output_in_no_directory(root: Path) -> Case:
    return Case(
        8, ("outputs/no/where", "doesn't exist"), source=phi(root), output=root / "outputs" / "no" / "where" / "out"
    )


def spec_that_is_not_valid(root: Path) -> Case:
    spec = spec_file(root, HEAD + 'rename:\n  "a.{i": b\nrulez: []\n')
    return Case(
        5, ("spec.yaml:5:3", "spec.yaml:6:1", "did you mean 'rules'", "2 problems"), spec=spec, source=phi(root)
    )


def spec_that_is_not_there(root: Path) -> Case:
    return Case(5, ("phi2_to_teny", "shipped are:"), spec="phi2_to_teny", source=phi(root))


def spec_without_a_way_back(root: Path) -> Case:
    text = HEAD + "rules:\n  - from: a.weight\n    to: b.weight\n    cast: F16\n"
    source = write_checkpoint(root / "phi", {"b.weight": [2]}, config=None)
    return Case(5, ("spec.yaml:5", "one-way"), ("--reverse",), spec=spec_file(root, text), source=source)


def memory_that_is_too_little(root: Path) -> Case:
    return Case(1, ("--max-memory", "at least"), ("--max-memory", "1MB"), source=phi(root))


def tensors_that_must_be_equal_and_are_not(root: Path) -> Case:
    source = phi(root)
    tenny = root / "tenny"
    assert weightmap("convert", "--spec", SPEC, source, tenny).exit_code == 0
    flip(tenny / "model.safetensors", "transformer_encoder.layers.1.norm2.weight")
    says = ("transformer_encoder.layers.1.norm1.weight", "transformer_encoder.layers.1.norm2.weight", "must be equal")
    return Case(3, says, ("--reverse",), source=tenny)


def buffer_that_is_not_what_would_be_made(root: Path) -> Case:
    source = phi(root)
    tenny = root / "tenny"
    assert weightmap("convert", "--spec", SPEC, source, tenny).exit_code == 0
    flip(tenny / "model.safetensors", "pos_encoder.pe")
    return Case(3, ("pos_encoder.pe", "phi2_to_tenny.yaml:"), ("--reverse",), source=tenny)


def value_that_the_dtype_does_not_hold(root: Path) -> Case:
    source = phi(root)
    path = source / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = b"\x00\x00\x80\x4f"  # 2**32, in the last element of the last tensor
    path.write_bytes(data)
    return Case(7, ("model.layers.1.mlp.fc2.bias", "don't fit F16"), ("--dtype", "float16"), source=source)


def flip(path: Path, name: str) -> None:
    """Change a tensor's first element."""
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    start = 8 + length + json.loads(data[8 : 8 + length])[name]["data_offsets"][0]
    data[start + 3] ^= 0x40
    path.write_bytes(data)


CASES: list[Callable[[Path], Case]] = [
    unknown_key_left_over,
    rule_that_matches_nothing,
    two_rules_for_one_key,
    two_rules_for_one_target,
    missing_expert_index,
    missing_layer,
    block_sizes_that_do_not_add_up,
    wrong_dims,
    wrong_dims_from_the_user,
    unknown_dim_from_the_user,
    config_that_is_not_phi,
    config_that_is_no_json,
    no_config,
    the_way_back_of_something_else,
    unreadable_shard_truncated,
    unreadable_shard_is_a_pipe,
    unreadable_shard_is_a_page,
    unreadable_shard_is_a_pointer,
    shard_missing_from_the_index,
    shard_that_is_not_there,
    key_in_the_index_but_not_in_the_shard,
    key_in_the_shard_but_not_in_the_index,
    no_source,
    pickles,
    output_exists,
    output_is_no_checkpoint,
    output_is_the_source,
    output_in_no_directory,
    spec_that_is_not_valid,
    spec_that_is_not_there,
    spec_without_a_way_back,
    memory_that_is_too_little,
    tensors_that_must_be_equal_and_are_not,
    buffer_that_is_not_what_would_be_made,
    value_that_the_dtype_does_not_hold,
]


def snapshot(directory: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            yield str(path), path.read_bytes()


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_it_gives_one_clear_error_and_leaves_no_output(make: Callable[[Path], Case], tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    case = make(tmp_path)
    assert case.source is not None
    before = dict(snapshot(tmp_path))
    words = ("convert", "--spec", case.spec, case.source, case.output or outputs / "out", *case.options)

    result = weightmap(*words)

    assert result.exit_code == case.code, result.output
    assert result.stdout == ""
    message = " ".join(result.stderr.split())
    for text in case.says:
        assert text in message
    assert message.startswith("Error: ")
    assert "Traceback" not in message
    assert "mistake in weightmap" not in message
    # Locks stay on purpose: removing one while another run waits for it would let two runs in.
    assert {path.name for path in outputs.iterdir() if not path.name.endswith(".lock")} == case.kept
    assert {name: data for name, data in snapshot(tmp_path) if not name.endswith(".lock")} == before

    # The same for machines.
    data = json.loads(weightmap(*words, "--json").stdout)
    assert data["error"]["exit_code"] == case.code
    assert all(problem["what"] for problem in data["error"]["problems"])


KNOWN_ONLY_WHEN_IT_IS_DONE = [
    output_exists,
    output_is_no_checkpoint,
    output_is_the_source,
    output_in_no_directory,
    tensors_that_must_be_equal_and_are_not,
    buffer_that_is_not_what_would_be_made,
    value_that_the_dtype_does_not_hold,
]


@pytest.mark.parametrize(
    "make", [make for make in CASES if make not in KNOWN_ONLY_WHEN_IT_IS_DONE], ids=lambda make: make.__name__
)
def test_a_plan_says_the_same(make: Callable[[Path], Case], tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    case = make(tmp_path)
    result = weightmap("plan", "--spec", case.spec, str(case.source), *case.options)
    assert result.exit_code == case.code
    for text in case.says:
        assert text in " ".join(result.stderr.split())


def test_one_unreadable_shard_does_not_hide_another(tmp_path: Path) -> None:
    source = phi(tmp_path, shards=3)
    (source / "model-00001-of-00003.safetensors").write_bytes(b"short")
    (source / "model-00003-of-00003.safetensors").unlink()
    result = weightmap("convert", "--spec", SPEC, source, tmp_path / "out")
    assert result.exit_code == 7
    assert "2 problems" in result.stderr
    assert "model-00001-of-00003" in result.stderr
    assert "model-00003-of-00003" in result.stderr


def test_a_tensor_in_two_shards_is_an_error(tmp_path: Path) -> None:
    source = phi(tmp_path, shards=3)
    names = [*list(phi_shapes())[1::3], "lm_head.weight"]
    write_safetensors(source / "model-00002-of-00003.safetensors", {name: phi_shapes()[name] for name in names})
    result = weightmap("convert", "--spec", SPEC, source, tmp_path / "out")
    assert result.exit_code == 7
    assert "lm_head.weight" in result.stderr
