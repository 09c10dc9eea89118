"""What weightmap writes may be replaced by `--overwrite`, and nothing else. More refusals are in test_publish.py."""

from __future__ import annotations

from pathlib import Path

import pytest

import converters
from converters.errors import OutputExistsError
from converters.output_checks import check_replaceable, is_of_checkpoint
from tests.commands.support import SPEC, read_tensors, write_checkpoint

FORMATS = ["safetensors", "bin", "dcp"]


@pytest.mark.parametrize("max_shard_size", [2000, "5GB"])
@pytest.mark.parametrize("second", FORMATS)
@pytest.mark.parametrize("first", FORMATS)
def test_an_output_of_each_format_is_replaced_by_one_of_each(
    tmp_path: Path, first: str, second: str, max_shard_size: int | str
) -> None:
    source = write_checkpoint(tmp_path / "source")
    for name in ("tokenizer.json", "LICENSE", "vocab.txt", "sentencepiece.bpe.model"):
        (source / name).write_text("{}")
    spec, output = converters.load_spec(SPEC), tmp_path / "out"
    converters.convert(spec, source, output, file_format=first, max_shard_size=max_shard_size)
    with pytest.raises(OutputExistsError, match="already exists"):
        check_replaceable(output, overwrite=False)
    before = read_tensors(output)
    converters.convert(spec, source, output, file_format=second, overwrite=True)
    assert read_tensors(output) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_every_file_of_an_output_is_known_by_its_name(tmp_path: Path) -> None:
    """So that one in an object store is replaced, too."""
    source = write_checkpoint(tmp_path / "source")
    for file_format in FORMATS:
        output = tmp_path / file_format
        converters.convert(
            converters.load_spec(SPEC), source, output, file_format=file_format, max_shard_size=2000
        )  # fmt: skip
        assert [path.name for path in output.iterdir() if not is_of_checkpoint(path.name)] == []


@pytest.mark.parametrize("name", [".metadata.db", "x.metadata", ".weightmap-journal", "distcp", ".metadatas"])
def test_names_that_only_look_like_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    (tmp_path / "out" / "model.safetensors").write_text("")
    with pytest.raises(OutputExistsError, match=f"it holds what no checkpoint does: {name}"):
        check_replaceable(tmp_path / "out", overwrite=True)


def test_metadata_without_weights_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".metadata").write_text("mine")
    with pytest.raises(OutputExistsError, match="it holds no "):
        check_replaceable(tmp_path / "out", overwrite=True)
