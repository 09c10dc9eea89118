"""Names beside an output: what is ours, whose it is, and what only looks like it."""

from __future__ import annotations

from pathlib import Path

import pytest

from converters.staging_names import (
    REPLACED,
    STAGING,
    Leftover,
    leftovers,
    leftovers_in,
    lock_name,
    new_staging,
    output_of_lock,
    replaced_name,
)

TOKEN = "0123456789abcdef"


def test_a_staging_directory_lies_beside_the_output_and_has_no_name_twice(tmp_path: Path) -> None:
    names = {new_staging(tmp_path / "out") for _ in range(100)}
    assert len(names) == 100
    assert {path.parent for path in names} == {tmp_path}


@pytest.mark.parametrize("name", ["out", "a.b", ".hidden", "x.staging-y", "x.staging-0123456789abcdef", " ", "ü\n"])
def test_what_is_made_for_an_output_is_found_as_its(tmp_path: Path, name: str) -> None:
    output = tmp_path / name
    staging = new_staging(output)
    aside = replaced_name(output, staging)
    staging.mkdir()
    aside.mkdir()
    assert leftovers(output, STAGING) == [staging]
    assert leftovers(output, REPLACED) == [aside]
    assert set(leftovers_in(tmp_path)) == {Leftover(staging, output, STAGING), Leftover(aside, output, REPLACED)}
    assert output_of_lock(lock_name(output)) == output


@pytest.mark.parametrize(
    "name",
    [
        f"out.staging-{TOKEN}",
        f".out.staging-{TOKEN[1:]}",
        f".out.staging-{TOKEN}0.",
        f".out.staging-{TOKEN.upper()}",
        f".out.staging-{TOKEN[:-1]}g",
        f".out.stage-{TOKEN}",
        f".staging-{TOKEN}",
        f"..staging-{TOKEN}",
        f".out.staging{TOKEN}",
    ],
)
def test_other_names_are_not_ours(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert leftovers_in(tmp_path) == []


def test_files_and_links_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / f".out.staging-{TOKEN}").write_text("")
    (tmp_path / f".out.replaced-{TOKEN}").symlink_to(tmp_path)
    assert leftovers_in(tmp_path) == []


def test_the_nested_output_is_not_taken_for_the_outer_one(tmp_path: Path) -> None:
    (tmp_path / f".a.staging-b.staging-{TOKEN}").mkdir()
    assert leftovers(tmp_path / "a", STAGING) == []
    assert leftovers(tmp_path / "b", STAGING) == []
    assert leftovers(tmp_path / "a.staging-b", STAGING) == [tmp_path / f".a.staging-b.staging-{TOKEN}"]


@pytest.mark.parametrize("name", ["out.lock", ".lock", "..lock", ".out.lck", "lock"])
def test_files_that_are_no_lock_of_an_output(tmp_path: Path, name: str) -> None:
    assert output_of_lock(tmp_path / name) is None
