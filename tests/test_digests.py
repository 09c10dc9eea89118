"""Digests against test vectors that others published, and against the libraries over whole bytes."""

from __future__ import annotations

import hashlib
import random

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from converters.digests import ALGORITHMS, DEFAULT_ALGORITHM, digest_of, digest_text, make_hasher, piece_digest

# XXH3-128 without a seed, as `xxhsum -H2` prints it: high half first. SHA-256 from FIPS 180-4's examples.
VECTORS = [
    ("xxh3", b"", "99aa06d3014798d86001c324468d497f"),
    ("xxh3", b"a", "a96faf705af16834e6c632b61e964e1f"),
    ("xxh3", b"abc", "06b05ab6733a618578af5f94892f3950"),
    ("sha256", b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ("sha256", b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
]


@pytest.mark.parametrize(("algorithm", "data", "expected"), VECTORS)
def test_published_vectors(algorithm: str, data: bytes, expected: str) -> None:
    assert digest_of([data], algorithm) == f"{algorithm}:{expected}"


@given(st.lists(st.binary(max_size=700), max_size=6))
def test_parts_make_no_difference(parts: list[bytes]) -> None:
    whole = b"".join(parts)
    assert digest_of(parts) == f"xxh3:{xxhash.xxh3_128_hexdigest(whole)}"
    assert digest_of(map(memoryview, parts), "sha256") == f"sha256:{hashlib.sha256(whole).hexdigest()}"
    assert piece_digest(whole) == xxhash.xxh3_64_intdigest(whole)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_byte_and_every_length_counts(algorithm: str) -> None:
    data = random.Random(1).randbytes(1500)  # noqa: S311 - no secret
    found = {digest_of([data[:length]], algorithm) for length in range(len(data))}
    for position in range(0, len(data), 7):
        found.add(digest_of([data[:position], bytes([data[position] ^ 1]), data[position + 1 :]], algorithm))
    assert len(found) == len(data) + len(range(0, len(data), 7))


def test_a_hasher_is_fresh_and_its_text_names_its_algorithm() -> None:
    used = make_hasher("xxh3")
    used.update(b"abc")
    assert digest_text("xxh3", used) != digest_text("xxh3", make_hasher("xxh3"))
    assert DEFAULT_ALGORITHM in ALGORITHMS
    assert digest_of([b"abc"]).partition(":")[0] == DEFAULT_ALGORITHM


@pytest.mark.parametrize("algorithm", ["md5", "", "XXH3", "none"])
def test_there_is_no_other(algorithm: str) -> None:
    with pytest.raises(ValueError, match="only xxh3 and sha256"):
        make_hasher(algorithm)
