"""That a wrong output is told from a right one; what is right, the row end to end in test_suite.py shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.contents import digests, places
from benchmarks.expected import EXPECTED, Source, difference, digest, expected
from benchmarks.sources import make


@pytest.fixture(scope="module")
def phi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sources") / "phi"
    make("phi", "toy", directory)
    return directory


def test_a_checkpoint_is_what_it_is(phi: Path) -> None:
    assert difference(phi, expected("same", phi)) == ""
    assert digests(phi)["lm_head.weight"].startswith("F16 [101, 128] ")


def test_one_bit_a_shape_and_a_missing_tensor_are_seen(phi: Path, tmp_path: Path) -> None:
    wanted = expected("same", phi)
    name = "model.layers.1.mlp.fc2.weight"
    place = places(phi)[name]
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in phi.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    raw = bytearray((copy / place.file.name).read_bytes())
    raw[place.offset + place.nbytes - 1] ^= 1
    (copy / place.file.name).write_bytes(raw)
    assert difference(copy, wanted) == f"1 other bytes, shape or dtype, such as {name}"
    other = {key: value.replace("[128]", "[64, 2]") for key, value in wanted.items()}
    assert "other bytes, shape or dtype" in difference(phi, other)
    assert difference(phi, wanted | {"x": "F16 [1] 00"}) == "1 missing, such as x"
    del wanted[name]
    assert difference(phi, wanted) == f"1 not expected, such as {name}"


def test_a_transposed_array_has_the_digest_of_its_own_order() -> None:
    values = np.arange(600 * 7, dtype=np.uint16).reshape(7, 600)
    assert digest(values.T) == digest(np.ascontiguousarray(values.T)) != digest(values)


@pytest.mark.parametrize("name", [name for name in EXPECTED if name not in {"meta", "torchtune", "megatron"}])
def test_nothing_that_is_expected_of_a_phi_comes_twice(phi: Path, name: str) -> None:
    names = [key for key, _, _ in EXPECTED[name](Source(phi))]
    assert len(names) == len(set(names)) > 0
