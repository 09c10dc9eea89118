"""`fill` and `drop` of single blocks: padding, trimming, and what only one layout has."""

from __future__ import annotations

import pytest
import torch

from converters.errors import CoverageError, SpecError
from tests.both_ways import convert, plan_for, there_and_back
from tests.planning import plan_of, refusal_of, spec_of, spec_refusal_of

PAD = """
    dims: {P: 3}
    rules:
      - from: e
        to: e
        layout: "V h -> (rows: V | pad: P) h"
        fill: {pad: zeros}
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.float8_e4m3fn, torch.bool])
def test_padding_is_added_and_taken_off_again(dtype: torch.dtype) -> None:
    table = (torch.arange(1, 41).reshape(8, 5) % 3).to(dtype)
    made = there_and_back(PAD, {"e": table})["e"]
    expected = torch.nn.functional.pad(table.float(), (0, 0, 0, 3)).to(dtype)
    assert torch.equal(made.float(), expected.float())
    assert made.dtype == dtype
    assert spec_of(PAD).exactness == spec_of(PAD).inverse().exactness == "exact"


def test_padding_that_was_trained_is_not_lost() -> None:
    padded = torch.nn.functional.pad(torch.ones(8, 5), (0, 0, 0, 3))
    padded[9, 2] = 0.5
    with pytest.raises(CoverageError) as caught:
        convert(PAD, {"e": padded}, reverse=True)
    assert "e doesn't hold what the rule fills it with, in a block of its own, from element 7 on" in str(caught.value)
    assert "s.yaml:7:5" in str(caught.value)


def test_blocks_are_filled_anywhere_and_after_the_operations() -> None:
    """A bias that one layout lacks, between two that it has, in columns, beside values that are changed."""
    q, v = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    body = """
        dims: {K: 2, Q: 3}
        rules:
          - from: {q: q, v: v}
            to: qkv
            layout: {q: "n Q i", v: "n V i", to: "i n (q: Q | k: K | v: V)"}
            fill: {k: ones}
            apply: {op: affine, scale: -4}
    """
    made = there_and_back(body, {"q": q, "v": v})["qkv"]
    assert torch.equal(made, torch.cat([-4 * q, torch.ones(2, 2, 4), -4 * v], dim=1).permute(2, 0, 1))


def test_each_shard_is_padded() -> None:
    body = """
        dims: {P: 1, T: 2}
        placeholders: {t: 0..T}
        rules:
          - from: e
            to: "{t}.e"
            layout: "(t V) h -> (rows: V | pad: P) h"
            fill: {pad: zeros}
    """
    table = torch.randn(6, 2)
    made = there_and_back(body, {"e": table})
    for t in range(2):
        assert torch.equal(made[f"{t}.e"], torch.cat([table[3 * t : 3 * t + 3], torch.zeros(1, 2)]))


def test_a_padding_of_no_rows_is_none() -> None:
    table = torch.randn(4, 2)
    made = there_and_back(PAD.replace("P: 3", "P: 0"), {"e": table})
    assert torch.equal(made["e"], table)


def test_a_blanket_cast_fills_in_its_dtype() -> None:
    from converters.tensor_info import DType

    plan = plan_of(PAD, {"e": (4, 2)}, cast=DType.BF16)
    assert plan.targets[0].info.dtype is DType.BF16
    assert [fill.copy.size for fill in plan.targets[0].fills] == [6]
    assert plan.bytes_by_way() == {"copied": 0, "rearranged": 0, "computed": 16, "generated": 12}


DROP = """
    dims: {A: 2}
    rules:
      - from: w
        to: w
        layout: "(tail: A | kept: V) h -> h V"
        drop: {tail: two positions that nobody uses}
"""


def test_a_block_is_dropped_by_name() -> None:
    weight = torch.randn(7, 3)
    assert torch.equal(convert(DROP, {"w": weight})["w"], weight[2:].T)
    plan = plan_for(DROP, {"w": weight})
    assert [(drop.reason, drop.size) for drop in plan.dropped] == [("two positions that nobody uses", 6)]
    assert plan.whole_dropped == ()
    assert plan.rules[0].exactness == "one-way"


def test_a_dropped_block_has_no_way_back() -> None:
    with pytest.raises(SpecError) as caught:
        spec_of(DROP).inverse()
    assert "s.yaml:7:5: rules[0]: this rule is one-way" in str(caught.value)
    assert "block 'tail' is dropped: two positions that nobody uses" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("{pad: zeros}", "{pda: zeros}", "fill.pda: the rule's layouts have no block 'pda'"),
        ("{pad: zeros}", "{pad: arange}", "'arange' is no filling of a block"),
        ("fill: {pad: zeros}", "drop: {pad: why}", "drop.pad: only a block of the source can be left out"),
        ("V h ->", "(pad: P | rows: V) h ->", "fill.pad: block 'pad' is on both sides"),
        ("fill: {pad: zeros}", "optional: true", "block 'pad' of '(rows: V | pad: P) h' comes from nowhere"),
        ("fill: {pad: zeros}", "drop: {pad: ''}", "dropping block 'pad' needs a reason"),
        ("fill: {pad: zeros}", "fill: {pad: zeros}\n        shape: [3]", "shape belongs to 'fill' of a whole tensor"),
    ],
)
def test_what_makes_no_sense(old: str, new: str, what: str) -> None:
    assert old in PAD
    assert what in spec_refusal_of(PAD.replace(old, new))


def test_a_size_that_nothing_gives() -> None:
    body = PAD.replace("dims: {P: 3}", "")
    assert "nothing gives the size of P in '(rows: V | pad: P) h'" in refusal_of(body, {"e": (4, 2)})


def test_what_an_operation_makes_has_no_block_to_leave_out() -> None:
    body = """
        rules:
          - from: w
            to: w
            layout: "(a: 2 | b: V) r -> V"
            apply: {op: mean, over: r}
            drop: {a: no use}
    """
    assert "drop.a: 'mean' makes new values of this block" in spec_refusal_of(body)
