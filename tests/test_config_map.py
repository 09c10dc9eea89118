"""config.json from one side to the other and back."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from converters.bind import bind
from converters.config_map import parse_assignments, with_dtype
from converters.errors import ConfigError
from converters.spec_file import parse_spec
from converters.tensor_info import DType
from tests.planning import spec_of

BODY = """
rename: {a: b}
config:
  rename: {hidden: width, rope.theta: base, one: two, two: one}
  source:
    set: {architectures: [A]}
    derive: {half: config.width // 2}
    delete: {flash: says how to compute}
  target:
    set: {architectures: [B]}
    derive: {double: 2 * config.hidden}
    default: {scale: 1.5}
"""


def map_there(config: dict[str, Any], body: str = BODY, *, reverse: bool = False) -> dict[str, Any]:
    spec = spec_of(body)
    before = copy.deepcopy(config)
    found = bind(spec.inverse() if reverse else spec, config, where="config.json").target_config
    assert config == before, "the source's config isn't changed"
    assert found is not None
    return found


def test_there_and_back() -> None:
    source = {
        "architectures": ["A"],
        "hidden": 8,
        "half": 4,
        "rope": {"theta": 1e4},
        "one": 1,
        "two": 2,
        "other": [1, {"x": None}],
    }
    target = {
        "architectures": ["B"],
        "width": 8,
        "double": 16,
        "base": 1e4,
        "two": 1,
        "one": 2,
        "other": [1, {"x": None}],
        "scale": 1.5,
    }
    assert map_there({**source, "flash": True}) == target
    # A default is spelled out on the way there, and carried back: it is no guess any more.
    assert map_there(target, reverse=True) == {**source, "scale": 1.5}


def test_a_default_yields_to_what_is_carried() -> None:
    assert map_there({"hidden": 2, "scale": 3})["scale"] == 3
    assert map_there({"hidden": 2, "scale": None})["scale"] == 1.5


def test_what_the_side_must_say() -> None:
    checked = parse_spec(
        "weightmap: 1\nname: phi\nsource: {layout: hf/phi, config: {model_type: phi, deep.er: 1}}\n"
        "target: {layout: b, config: {model_type: x}}\nrename: {a: b}\n"
    )
    with pytest.raises(ConfigError) as caught:
        bind(checked, {"model_type": "llama"}, where="dir/config.json")
    assert str(caught.value) == (
        "dir/config.json: model_type: phi wants 'phi' here (hf/phi), but the config says 'llama'\n"
        "    is this the checkpoint, and the direction, that you meant?\n"
        "dir/config.json: deep.er: phi wants 1 here (hf/phi), but the config doesn't say\n"
        "    is this the checkpoint, and the direction, that you meant?"
    )
    bound = bind(checked, {"model_type": "phi", "deep": {"er": 1}})
    assert bound.target_config == {"model_type": "x"}


def test_a_derived_value_that_the_config_contradicts() -> None:
    with pytest.raises(ConfigError, match="half is 3, but the way back would derive 4"):
        map_there({"hidden": 8, "half": 3})


def test_a_derived_value_that_is_not_known() -> None:
    with pytest.raises(ConfigError, match=r"config.target.derive.double: config.hidden is not in config.json"):
        map_there({})


def test_a_rename_onto_a_key_that_is_there() -> None:
    with pytest.raises(ConfigError, match=r"config\.rename: hidden becomes width, but the config has a width already"):
        map_there({"hidden": 8, "width": 3})


def test_a_rename_into_a_value_loses_nothing() -> None:
    body = "rename: {a: b}\nconfig: {rename: {theta: rope.theta}}\n"
    assert map_there({"theta": 1}, body) == {"rope": {"theta": 1}}
    assert map_there({"theta": 1, "rope": {"x": 2}}, body) == {"rope": {"theta": 1, "x": 2}}
    with pytest.raises(ConfigError, match=r"theta becomes rope\.theta, but rope is 'linear' and holds no keys"):
        map_there({"theta": 1, "rope": "linear"}, body)


def test_values_set_by_the_user_have_the_last_word() -> None:
    bound = bind(spec_of(BODY), {"hidden": 8}, set_config={"double": 1, "new.key": [2]})
    assert bound.target_config is not None
    assert (bound.target_config["double"], bound.target_config["new"]) == (1, {"key": [2]})
    assert parse_assignments({"a.b": 1}, {"a": 3}) == {"a": {"b": 1}}


def test_the_dtype_that_a_cast_leaves() -> None:
    assert with_dtype({"torch_dtype": "float32", "x": 1}, DType.BF16) == {"torch_dtype": "bfloat16", "x": 1}
    assert with_dtype({"dtype": "float32"}, DType.F16) == {"dtype": "float16"}
    nested = {"text_config": {"dtype": "float32", "y": [1]}}
    assert with_dtype(nested, DType.F16) == {"text_config": {"dtype": "float16", "y": [1]}}
    assert nested == {"text_config": {"dtype": "float32", "y": [1]}}
    assert with_dtype({}, DType.F16) == {}


HELD = """
rename: {a: b}
config:
  rename: {hidden: width, depth: depth}
  source: {derive: {act: config.inner.act}}
  target:
    derive: {inner.act: config.act, double: 2 * config.hidden}
    delete: {inner.org: says where it was found}
    carry_under: inner
"""


def test_a_side_that_keeps_the_others_keys_in_a_place_of_their_own() -> None:
    source = {"hidden": 8, "depth": 3, "act": "gelu", "rope": {"theta": 1e4}, "dtype": "float32"}
    inner = {"act": "gelu", "rope": {"theta": 1e4}, "dtype": "float32"}
    target = {"width": 8, "depth": 3, "double": 16, "inner": inner}
    assert map_there(source, HELD) == target
    back = map_there({**target, "inner": {**inner, "org": "someone"}}, HELD, reverse=True)
    assert back == source
    assert map_there({"hidden": 8}, HELD) == {"width": 8, "double": 16}
    assert map_there({"width": 8, "inner": None}, HELD, reverse=True) == {"hidden": 8}


def test_keys_from_a_place_of_their_own_meet_others() -> None:
    with pytest.raises(ConfigError, match=r"inner\.rope becomes rope, but the config has a rope already"):
        map_there({"width": 8, "rope": 1, "inner": {"rope": 2}}, HELD, reverse=True)
    with pytest.raises(ConfigError, match="inner is 3, and should hold the keys of the other side's config"):
        map_there({"width": 8, "inner": 3}, HELD, reverse=True)
    with pytest.raises(ConfigError, match=r"config\.rename: width becomes hidden, but the config has a hidden already"):
        map_there({"width": 8, "inner": {"hidden": 2}}, HELD, reverse=True)
