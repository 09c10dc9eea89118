"""Configs in JSON and in YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from converters.config_file import config_text, load_config
from converters.errors import ConfigError
from converters.parts import parse_part
from converters.side_files import find_side_files, read_config, write_config
from converters.spec import Side

CONFIG: dict[str, Any] = {
    "name": "no",
    "b": {"eps": 1e-05, "z": None, "a": [1, 2.0, "012"]},
    "a": True,
    "date": "2026-01-02",
    "text": "ключ: x # y",
}


def test_yaml_that_every_reader_reads_alike() -> None:
    text = config_text("model_config.yaml", CONFIG)
    assert list(yaml.safe_load(text)) == ["a", "b", "date", "name", "text"]
    assert list(yaml.safe_load(text)["b"]) == ["a", "eps", "z"]
    assert yaml.safe_load(text) == CONFIG


@pytest.mark.parametrize("name", ["model_config.yaml", "model_config.yml", "params.json", "named"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(config_text(name, CONFIG))
    assert load_config(tmp_path / name) == CONFIG


def test_what_another_yaml_library_writes(tmp_path: Path) -> None:
    file = tmp_path / "model_config.yaml"
    file.write_text(yaml.dump(CONFIG))
    assert load_config(file) == CONFIG


def test_a_layout_says_where_its_config_is(tmp_path: Path) -> None:
    side = Side("a", config_file="model_config.yaml")
    write_config(tmp_path, CONFIG, side)
    assert [file.name for file in tmp_path.iterdir()] == ["model_config.yaml"]
    assert read_config(tmp_path, side) == CONFIG
    assert read_config(tmp_path / "weights.pth", side) == CONFIG
    assert read_config(tmp_path / "model_config.yaml") == CONFIG
    assert read_config(tmp_path) is None


def test_a_layout_may_have_no_config(tmp_path: Path) -> None:
    side = Side("a", config_file="")
    write_config(tmp_path, CONFIG, side)
    assert not any(tmp_path.iterdir())
    (tmp_path / "config.json").write_text('{"of": "another tool"}')
    assert read_config(tmp_path, side) == {}


def test_configs_of_their_own(tmp_path: Path) -> None:
    side = Side("a", config_file="", configs=(("noise", "noise/noise_config.json"), ("whole", "model_index.json")))
    config = {"noise": {"steps": 3}, "whole": {"noise": ["x", "y"]}}
    write_config(tmp_path, config, side)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json")}
    assert files == {"noise/noise_config.json", "model_index.json"}
    assert load_config(tmp_path / "model_index.json") == config["whole"]
    assert read_config(tmp_path, side) == config
    assert find_side_files(tmp_path, [], side).left == ()
    (tmp_path / "model_index.json").unlink()
    assert read_config(tmp_path, side) == {"noise": {"steps": 3}}


def test_a_key_of_the_main_config_is_not_taken_for_that_of_a_component(tmp_path: Path) -> None:
    side = Side("a", config_file="model_index.json", files=(parse_part("unet", "unet/m.safetensors"),))
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"channels": 3}')
    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "UNet"]}')
    with pytest.raises(ConfigError, match=r"'unet' is a key of it, and the label of unet/config\.json"):
        read_config(tmp_path, side)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ConfigError, match="'unet' is a key of it"):
        write_config(out, {"unet": ["diffusers", "UNet"]}, side)


def test_the_name_of_a_link_tells_the_format(tmp_path: Path) -> None:
    """In a cache of the Hub, what a link points to is called by its checksum."""
    (tmp_path / "1f3a").write_text(config_text("x.yaml", CONFIG))
    (tmp_path / "model_config.yaml").symlink_to(tmp_path / "1f3a")
    assert read_config(tmp_path, Side("a", config_file="model_config.yaml")) == CONFIG
    assert load_config(tmp_path / "1f3a", "model_config.yaml") == CONFIG


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.yaml", "a: 1\na: 2\n", r"c\.yaml:2:1: "),
        ("c.yaml", "- 1\n", "it isn't a mapping of keys to values"),
        ("c.yaml", "eps: 1e-6\n", "1e-6 is read as a number by some YAML readers and as text by others"),
        ("c.yaml", "a: !!python/object:os.system {}\n", "tag"),
        ("c.json", "[1]", r"c\.json must be one JSON object"),
        ("c.json", "a: 1", r"c\.json must be one JSON object"),
    ],
)
def test_a_config_that_is_none(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / name)


def test_a_value_that_yaml_has_no_common_spelling_for() -> None:
    with pytest.raises(ConfigError, match=r"c\.yaml: the config can't be written as YAML: .* not finite"):
        config_text("c.yaml", {"limit": [0, float("inf")]})
    assert "Infinity" in config_text("c.json", {"limit": [0, float("inf")]})
