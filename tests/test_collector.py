from __future__ import annotations

import gc

import pytest

from converters.collector import paused


@paused()
def is_enabled() -> bool:
    return gc.isenabled()


def test_it_is_off_within_and_on_again_after() -> None:
    assert gc.isenabled()
    assert not is_enabled()
    assert not is_enabled()
    assert gc.isenabled()


def test_it_is_on_again_after_an_error() -> None:
    with pytest.raises(ValueError, match="no"), paused():
        raise ValueError("no")
    assert gc.isenabled()


def test_within_another_it_stays_off() -> None:
    with paused():
        assert not is_enabled()
        assert not gc.isenabled()
    assert gc.isenabled()
