"""What lies beside the weights: what is carried along, what is left, and configs that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from converters.errors import CheckpointError, ConfigError, OutputError
from converters.side_files import SideFiles, find_side_files, read_config, write_config

CARRIED = [
    "LICENSE", "NOTICE.txt", "USE_POLICY.md", "additional_chat_templates/tool.jinja", "chat_template.jinja",
    "generation_config.json", "merges.txt", "special_tokens_map.json", "tokenizer.model", "tokenizer_config.json",
    "vocab.json",
]  # fmt: skip
LEFT = ["README.md", "modeling_x.py", "original/", "pytorch_model.bin", "training_args.bin"]


def fill(root: Path) -> None:
    for name in [
        *CARRIED,
        "README.md",
        "modeling_x.py",
        "original/params.json",
        "pytorch_model.bin",
        "training_args.bin",
    ]:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(f"content of {name}")
    for name in ("config.json", "model.safetensors", "model.safetensors.index.json", ".gitattributes"):
        (root / name).write_text("{}")
    (root / ".cache").mkdir()


def test_what_is_carried_and_what_is_left(tmp_path: Path) -> None:
    root = tmp_path / "source"
    root.mkdir()
    fill(root)
    found = find_side_files(root, ["model.safetensors"])
    assert list(found.carried) == sorted(CARRIED, key=lambda name: name.split("/")[0])
    assert sorted(found.left) == sorted(LEFT)
    out = tmp_path / "out"
    out.mkdir()
    found.copy_to(out)
    for name in CARRIED:
        assert (out / name).read_text() == f"content of {name}"
    assert sum(path.is_file() for path in out.rglob("*")) == len(CARRIED)


def test_beside_a_single_file_only_its_config_counts(tmp_path: Path) -> None:
    fill(tmp_path)
    file = tmp_path / "model.safetensors"
    expected = SideFiles(tmp_path, described=("config.json",))
    assert find_side_files(file, ["model.safetensors"]) == expected


def test_links_out_of_the_directory_are_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "source"
    root.mkdir()
    (tmp_path / "secret").write_text("secret")
    (root / "tokenizer.json").symlink_to(tmp_path / "secret")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(CheckpointError):
        find_side_files(root, []).copy_to(out)
    assert not (out / "tokenizer.json").exists()


def test_a_config_is_found_beside_the_weights(tmp_path: Path) -> None:
    assert read_config(tmp_path) is None
    (tmp_path / "config.json").write_text('{"a": 1}')
    for path in (tmp_path, tmp_path / "model.safetensors", tmp_path / "config.json"):
        assert read_config(path) == {"a": 1}
    assert read_config(tmp_path / "model.safetensors.index.json") == {"a": 1}


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": 1, "a": 2}', "null", "\xff"])
def test_a_config_that_is_no_json_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)
    assert "config.json must be one JSON object" in str(caught.value)


def test_a_config_is_written_as_transformers_does(tmp_path: Path) -> None:
    write_config(tmp_path, {"b": [1], "a": {"d": None, "c": "ключ"}})
    text = (tmp_path / "config.json").read_text()
    assert text.startswith('{\n  "a": {\n    "c": ')
    assert text.endswith("\n}\n")
    assert read_config(tmp_path) == {"b": [1], "a": {"d": None, "c": "ключ"}}
    with pytest.raises(OutputError, match="File exists"):
        write_config(tmp_path, {})
