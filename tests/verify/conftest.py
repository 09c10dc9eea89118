"""A correct conversion, made once, and copies of it to damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import converters
from converters.verify.report import Report
from tests.verify.damage import SPEC, Tensors, edit, make_source, make_target


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("verify") / "source")


@pytest.fixture(scope="session")
def good(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_target(source, tmp_path_factory.mktemp("verify") / "good")


@pytest.fixture
def target(good: Path, tmp_path: Path) -> Path:
    """A copy of the correct target."""
    copy = tmp_path / "target"
    shutil.copytree(good, copy)
    return copy


Check = Callable[..., Report]


@pytest.fixture
def check(source: Path, target: Path) -> Check:
    """Damage the copy, if asked to, and verify it."""

    def run(change: Callable[[Tensors], None] | None = None, level: str = "roundtrip", **options: object) -> Report:
        if change is not None:
            edit(target, change)
        return converters.verify(converters.load_spec(SPEC), source, target, level=level, **options)  # type: ignore[arg-type]

    return run
