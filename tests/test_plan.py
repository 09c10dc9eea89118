"""Plans as JSON: there and back, and what isn't one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.errors import WeightmapError
from converters.plan import Plan
from converters.tensor_info import DType
from tests.planning import plan_of

BODY = """
rules:
  - {from: {tie: [a, b]}, copy: [c, d], layout: i o -> o i}
  - {from: w, to: v, cast: {from: F32, to: BF16}}
  - {fill: ones, to: pe, shape: [3], dtype: F16}
  - {fill: zeros, from: old, shape: [2]}
  - {from: x, to: z, when: config.off}
drop: {junk: no use}
notes: [{say: "ключ"}]
"""
SHAPES = {"a": (2, 3), "b": (2, 3), "w": (4,), "old": (2,), "junk": (7,)}


def a_plan() -> Plan:
    return plan_of(BODY, SHAPES, config={"x": [1, None, {"y": 2.5}]})


def test_there_and_back() -> None:
    plan = a_plan()
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()
    assert json.loads(plan.to_json())["bytes"]["written"] == plan.bytes_written


def test_what_it_costs() -> None:
    plan = a_plan()
    assert plan.bytes_written == 24 + 24 + 8 + 6
    assert plan.bytes_read == 24 + 24 + 16
    assert plan.bytes_checked == 48 + 8
    assert plan.bytes_by_way() == {"copied": 0, "rearranged": 48, "computed": 8, "generated": 6}
    assert [(rule.kind, rule.instances, rule.off) for rule in plan.rules] == [
        ("copy", 1, None), ("cast", 1, None), ("fill", 1, None), ("fill", 1, None), ("rename", 0, "config.off"),
    ]  # fmt: skip
    narrow = plan_of("rename: {a: b}", {"a": (6, 4)}, dtype=DType.F6_E2M3)
    assert (narrow.bytes_read, narrow.bytes_written, narrow.bytes_by_way()["copied"]) == (18, 18, 18)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "3",
        '"plan"',
        "[]",
        "{}",
        '{"weightmap_plan": 2}',
        "[" * 100_000,
        "\ud800",
        '{"weightmap_plan": [}',
    ],
)
def test_what_is_no_plan(text: str) -> None:
    with pytest.raises(WeightmapError, match="this is not a plan that weightmap wrote"):
        Plan.from_json(text)


def test_another_version_is_refused() -> None:
    with pytest.raises(WeightmapError, match="this plan has version 3, and this weightmap reads 2; plan anew"):
        Plan.from_json('{"weightmap_plan": 3}')


@given(st.data())
def test_a_plan_that_lost_a_part_is_refused(data: st.DataObject) -> None:
    plan = json.loads(a_plan().to_json())
    del plan["bytes"]  # told to people, and worked out anew
    key = data.draw(st.sampled_from(sorted(plan)))
    broken = plan | {key: data.draw(st.sampled_from([None, 3, [None], [[1]], [{"a": 1}]]))}
    if key in ("spec", "spec_digest", "reverse", "config") or (key == "notes" and broken[key]):
        return
    with pytest.raises(WeightmapError):
        Plan.from_json(json.dumps(broken))
