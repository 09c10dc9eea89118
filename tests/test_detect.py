"""Specs are held against a checkpoint: config and keys first, the proof only for those that they speak for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from converters.bind import bind
from converters.detect import Candidate, Seen, alike, both_ways, detect
from converters.errors import Problem, WeightmapError
from converters.plan import Source
from converters.planner import make_plan
from converters.spec import Side, Spec
from converters.spec_file import parse_spec
from converters.tensor_info import DType, TensorInfo

FIRST = """\
weightmap: 1
name: first
source: {layout: a/x, config: {model_type: x}}
target: {layout: b, config: {model_type: z}}
dims: {L: config.layers}
placeholders: {i: 0..L}
rename:
  layers.{i}.w: blocks.{i}.v
  head: out
"""
SECOND = """\
weightmap: 1
name: second
source: {layout: c, strip_prefix: [module.], drop: {"*.buffer": made anew}}
target: {layout: d}
rules:
  - from: layers.{i}.w
    to: "stack.{i+1}"
    cast: F16
  - {from: head, to: top}
"""
KEYS = ("layers.0.w", "layers.1.w", "head")
CONFIG = {"model_type": "x", "layers": 2}


def tensors(*names: str) -> list[TensorInfo]:
    return [TensorInfo(name, (2, 3), DType.F32) for name in names]


def run(
    names: Iterable[str],
    config: Mapping[str, Any] | None,
    *specs: str,
    named: str = "",
) -> tuple[tuple[Candidate, ...], list[str]]:
    """The candidates, and the names of the specs that a proof was asked of."""
    asked: list[str] = []
    infos = tensors(*names)

    def look(side: Side) -> Seen:
        if side.layout == "d":
            return Seen(trouble=(Problem("no such files"),))
        return Seen(alike(infos), config, named=side.layout == named)

    def prove(spec: Spec) -> tuple[Problem, ...]:
        asked.append(f"{spec.source.layout}>{spec.target.layout}")
        try:
            make_plan(bind(spec, config), [Source(info, "f") for info in infos])
        except WeightmapError as error:
            return error.problems
        return ()

    return detect(look, prove, [parse_spec(spec) for spec in specs]), asked


def test_what_is_proved_comes_first() -> None:
    found, asked = run(KEYS, CONFIG, SECOND, FIRST)
    best = found[0]
    assert (best.spec.name, best.spec.reverse, best.proved, best.share) == ("first", False, True, 1.0)
    assert [str(condition) for condition in best.conditions] == ['model_type is "x"']
    # The second fits as well, without a word of the config; the way back of the first doesn't look like it at all.
    assert [(each.spec.name, each.proved) for each in found] == [("first", True), ("second", True), ("first", False)]
    assert asked == ["c>d", "a/x>b"]


def test_another_config_is_no_reason_to_plan() -> None:
    found, asked = run(KEYS, {"model_type": "w", "layers": 2}, FIRST)
    assert asked == []
    assert not found[0].proved
    assert found[0].share == 1.0
    assert str(found[0].conditions[0]) == 'model_type is "w", not "x"'


def test_without_a_config_nobody_can_say() -> None:
    found, asked = run(KEYS, None, FIRST)
    assert found[0].conditions[0].met is None
    assert str(found[0].conditions[0]) == 'model_type should be "x", and there is no config'
    assert asked == ["a/x>b"]


def test_what_the_planner_finds_is_kept() -> None:
    found, _ = run([*KEYS, "layers.0.extra", "layers.1.extra"], CONFIG, FIRST)
    assert not found[0].proved
    assert [info.name for info in found[0].unclaimed] == ["layers.0.extra", "layers.1.extra"]
    assert found[0].share == 3 / 5
    assert "layers.0.extra and 1 more like it" in found[0].problems[0].what


def test_prefixes_drops_and_index_arithmetic_are_claimed() -> None:
    names = [f"module.{key}" for key in (*KEYS, "layers.0.buffer")]
    found, _ = run(names, {}, SECOND)
    assert found[0].unclaimed == ()
    assert found[0].proved
    # Turned around, `stack.{i+1}` has no key 0, but the last of the group shows that the rule means it.
    back = FIRST.replace("layers.{i}.w: blocks.{i}.v", '"layers.{i+1}.w": blocks.{i}.v')
    found, _ = run(("layers.1.w", "layers.2.w", "head"), CONFIG, back)
    assert found[0].proved


def test_a_side_whose_files_are_not_there_is_no_candidate() -> None:
    backwards = SECOND.replace("cast: F16", "cast: {from: F16, to: F32}")
    found, _ = run(KEYS, CONFIG, backwards)
    assert [each.spec.source.layout for each in found] == ["c"]


def test_a_one_way_spec_goes_one_way() -> None:
    assert len(both_ways(parse_spec(SECOND))) == 1
    assert [way.reverse for way in both_ways(parse_spec(FIRST))] == [False, True]


def test_the_names_of_files_speak_for_a_layout() -> None:
    other = FIRST.replace("name: first", "name: other").replace("a/x", "e")
    assert run(KEYS, CONFIG, FIRST, other, named="e")[0][0].spec.name == "other"
    assert run(KEYS, CONFIG, FIRST, other, named="a/x")[0][0].spec.name == "first"


def test_a_hundred_layers_are_one_group() -> None:
    names = [f"layers.{layer}.{part}" for layer in range(100) for part in ("w", "v")]
    groups = alike(tensors(*names))
    assert [len(group) for group in groups] == [100, 100]
    assert sorted(info.name for group in groups for info in group) == sorted(names)
