"""A package with an operation of its own, installed for the time of a test."""

from __future__ import annotations

from pathlib import Path

import pytest

SOURCE = '''
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from converters.errors import CheckpointError
from converters.operations.numeric import check_arithmetic, fit, working_values
from converters.tensor_info import DType


@dataclass(frozen=True)
class Square:
    """x * x, of values that aren't negative."""

    name: ClassVar[str] = "test_square"
    exactness: ClassVar[str] = "approximate"

    def inverse(self):
        return SquareRoot()

    def output_dtype(self, dtype):
        check_arithmetic(dtype, self.name)
        return dtype

    def apply(self, raw, dtype, name):
        values = working_values(raw, dtype, DType.F64)
        with np.errstate(all="ignore"):
            found = self.compute(values)
            if (values < 0).any() or ((found == 0) & (values != 0)).any() or (found[values == 0] != 0).any():
                raise CheckpointError("a value is negative, or too small", name)
            return fit(found, dtype, name)

    def compute(self, values):
        return values * values

    def options(self):
        return {}

    @classmethod
    def from_options(cls, options):
        return cls()


@dataclass(frozen=True)
class SquareRoot(Square):
    name: ClassVar[str] = "test_square_root"

    def inverse(self):
        return Square()

    def compute(self, values):
        return np.sqrt(values)


class NoOperation:
    pass
'''


def install_operation(
    folder: Path, monkeypatch: pytest.MonkeyPatch, names: str | None = None, package: str = "test_package"
) -> None:
    """Put a package on the path, with entry points for its operations."""
    (folder / f"{package}.py").write_text(SOURCE)
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    names = names or f"test_square = {package}:Square\ntest_square_root = {package}:SquareRoot\n"
    (metadata / "entry_points.txt").write_text(f"[weightmap.operations]\n{names}")
    monkeypatch.syspath_prepend(str(folder))
