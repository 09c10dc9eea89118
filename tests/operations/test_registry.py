"""Operations by name, and those that other packages bring along."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from converters.errors import SpecError
from converters.operations.registry import make_operation, operation_class, operation_names
from tests.both_ways import convert
from tests.operations.plugins import install_operation
from tests.planning import spec_of, spec_refusal_of

BODY = "rules: [{from: a, to: b, layout: i o -> o i, apply: test_square}]"


def test_a_package_brings_an_operation_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no operation 'test_square'" in spec_refusal_of(BODY)
    install_operation(tmp_path, monkeypatch)
    assert "test_square" in operation_names()
    values = torch.rand(3, 5) + 0.5
    made = convert(BODY, {"a": values})
    assert torch.allclose(made["b"], values.T**2)
    assert torch.allclose(convert(BODY, made, reverse=True)["a"], values, atol=1e-6)
    assert spec_of(BODY).rules[0].kind == "test_square"


def test_no_package_takes_the_name_of_one_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_operation(tmp_path, monkeypatch, "affine = ours_too:Square\n", "ours_too")
    assert operation_class("affine").__module__ == "converters.operations.affine"


@pytest.mark.parametrize(
    ("package", "entry", "what"),
    [
        ("no_module", "test_other = nowhere:Square", "the operation 'test_other' of no_module can't be loaded"),
        ("no_class", "test_other = no_class:NoOperation", "neither an Elementwise nor a TensorOperation"),
        ("other_name", "test_other = other_name:Square", "calls itself 'test_square'"),
    ],
)
def test_a_package_that_does_not_keep_its_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, entry: str, what: str
) -> None:
    install_operation(tmp_path, monkeypatch, entry + "\n", package)
    with pytest.raises(SpecError) as caught:
        make_operation("test_other", {})
    assert what in str(caught.value)
    assert package in str(caught.value)


def test_two_packages_with_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("first_one", "second_one"):
        (tmp_path / package).mkdir()
        install_operation(tmp_path / package, monkeypatch, f"test_twice = {package}:Square\n", package)
    with pytest.raises(SpecError, match="both bring an operation 'test_twice'"):
        make_operation("test_twice", {})


def test_a_misspelt_operation_is_guessed_at() -> None:
    with pytest.raises(SpecError, match="did you mean 'neglog'"):
        make_operation("neglogg", {})
