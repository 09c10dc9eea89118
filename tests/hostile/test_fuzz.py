"""Whatever parsers are fed, nothing but the documented errors comes out."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.errors import WeightmapError
from tests.hostile.parsers import FEEDS, inputs


@pytest.mark.parametrize("parser", FEEDS)
@settings(max_examples=200)
@given(data=st.data())
def test_nothing_but_the_documented_errors_comes_out(parser: str, data: st.DataObject) -> None:
    content = data.draw(inputs(parser))
    feed, _ = FEEDS[parser]
    with suppress(WeightmapError):
        feed(content)


@pytest.mark.parametrize("parser", FEEDS)
def test_right_input_is_taken(parser: str) -> None:
    feed, right = FEEDS[parser]
    assert feed(right[0])
