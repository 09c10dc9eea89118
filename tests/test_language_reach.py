"""What the language can say, each against a plain evaluation with torch, and back in the same bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from converters.errors import CoverageError, SpecError
from tests.both_ways import convert, there_and_back
from tests.planning import spec_refusal_of


def numbers(*shape: int, start: int = 1) -> Tensor:
    """Different numbers, so that every element shows where it came from."""
    size = torch.Size(shape).numel()
    return torch.arange(start, start + size, dtype=torch.float32).reshape(shape)


# --- layouts ---------------------------------------------------------------------------------------------------------


def test_grouped_blocks_with_different_head_sizes_for_k_and_v() -> None:
    groups, queries, key, value, width = 2, 3, 4, 5, 7
    fused = numbers(groups * (queries * key + key + value), width)
    body = """
        dims: {G: 2, r: 3, K: 4, V: 5}
        rules:
          - from: qkv
            to: {q: q, k: k, v: v}
            layout: {from: "(G (q: r K | k: K | v: V)) i", q: "(G r K) i", k: "(G K) i", v: "(G V) i"}
    """
    made = there_and_back(body, {"qkv": fused})
    groupwise = fused.reshape(groups, -1, width).split([queries * key, key, value], dim=1)
    for name, expected in zip("qkv", groupwise, strict=True):
        assert torch.equal(made[name], expected.reshape(-1, width))


def test_uneven_groups_beside_each_other() -> None:
    fused = numbers(2 * 3 + 4 * 3 + 5, 2)
    body = """
        dims: {A: 2, B: 4, D: 3}
        rules:
          - from: f
            to: {a: a, b: b, c: c}
            layout: {from: "(a: A D | b: B D | c: C) i", a: "(A D) i", b: "B D i", c: "C i"}
    """
    made = there_and_back(body, {"f": fused})
    assert torch.equal(made["a"], fused[:6])
    assert torch.equal(made["b"], fused[6:18].reshape(4, 3, 2))
    assert torch.equal(made["c"], fused[18:])


@pytest.mark.parametrize("shards", [1, 2])
def test_shards_then_heads(shards: int) -> None:
    """Each shard holds the q, then the k, then the v of its own heads."""
    heads, groups, dim, width = 3, 1, 2, 5
    parts = {f"{t}.qkv": numbers((heads + 2 * groups) * dim, width, start=1 + 1000 * t) for t in range(shards)}
    body = f"""
        dims: {{T: {shards}, h: 3, g: 1, D: 2}}
        placeholders: {{t: 0..T}}
        rules:
          - from: "{{t}}.qkv"
            to: {{q: q, k: k, v: v}}
            layout: {{from: "(q: h D | k: g D | v: g D) i", q: "(t h D) i", k: "(t g D) i", v: "(t g D) i"}}
    """
    made = there_and_back(body, parts)
    split = [part.split([heads * dim, groups * dim, groups * dim]) for part in parts.values()]
    for number, name in enumerate("qkv"):
        assert torch.equal(made[name], torch.cat([each[number] for each in split]))


def test_interleaved_rows() -> None:
    fused = numbers(3, 8, 5)
    body = """
        rules:
          - from: gate_up
            to: {gate: gate, up: up}
            layout: {from: "e (f (gate: 1 | up: 1)) i", gate: e f i, up: e f i}
    """
    made = there_and_back(body, {"gate_up": fused})
    assert torch.equal(made["gate"], fused[:, 0::2])
    assert torch.equal(made["up"], fused[:, 1::2])


def test_blocks_in_another_order() -> None:
    k, v, q = numbers(4, 3), numbers(6, 3, start=100), numbers(8, 3, start=200)
    body = """
        dims: {K: 4, V: 6}
        rules:
          - {from: kvq, to: qkv, layout: "(k: K | v: V | q: Q) i -> (q: Q | k: K | v: V) i"}
    """
    made = there_and_back(body, {"kvq": torch.cat([k, v, q])})
    assert torch.equal(made["qkv"], torch.cat([q, k, v]))


def test_many_tensors_become_many_others() -> None:
    first, second = numbers(5, 4), numbers(7, 4, start=100)
    body = """
        dims: {A: 2, C: 3}
        rules:
          - from: {one: x, two: z}
            to: {outer: outer, inner: inner}
            layout:
              one: "(a: A | b: B) i"
              two: "(c: C | d: D) i"
              outer: "(d: D | a: A) i"
              inner: "i (b: B | c: C)"
    """
    made = there_and_back(body, {"x": first, "z": second})
    assert torch.equal(made["outer"], torch.cat([second[3:], first[:2]]))
    assert torch.equal(made["inner"], torch.cat([first[2:], second[:3]]).T)


def test_one_source_in_disjoint_slices_of_several_rules() -> None:
    source = numbers(9, 4)
    body = """
        dims: {A: 2, B: 3, C: 4}
        rules:
          - from: w
            to: {a: first}
            layout: {from: "(a: A | _: B | _: C) i", a: A i}
          - from: w
            to: {b: second}
            layout: {from: "(_: A | b: B | _: C) i", b: i B}
          - from: w
            to: {c: third}
            layout: {from: "(_: A | _: B | c: C) i", c: C i}
    """
    made = there_and_back(body, {"w": source})
    assert torch.equal(made["first"], source[:2])
    assert torch.equal(made["second"], source[2:5].T)
    assert torch.equal(made["third"], source[5:])


# --- keys ------------------------------------------------------------------------------------------------------------


def test_division_and_remainder_in_keys() -> None:
    """Layers counted through, in stages of three."""
    layers = {f"l.{i}.w": numbers(2, start=10 * i) for i in range(7)}
    made = there_and_back('rename: {"l.{i}.w": "stage.{(i+2)//3}.{(i+2)%3}.w"}', layers)
    assert {name: int(each[0]) // 10 for name, each in made.items()} == {
        f"stage.{(i + 2) // 3}.{(i + 2) % 3}.w": i for i in range(7)
    }


TYPES = {"layer_types": ["full", "linear", "linear", "full", "linear"], "full_layers": [0, 3]}


def layers_of_two_types() -> dict[str, Tensor]:
    return {
        f"l.{i}.{'attn' if kind == 'full' else 'mixer'}.w": numbers(2 + (kind == "full"), 4, start=100 * i)
        for i, kind in enumerate(TYPES["layer_types"])
    }


BY_TYPE = """
    placeholders: {i: 0..5}
    rules:
      - from: l.{i}.attn.w
        to: l.{i}.block.w
        layout: o i -> i o
        when: config.layer_types[i] == 'full'
      - from: l.{i}.mixer.w
        to: l.{i}.block.w
        when: config.layer_types[i] != 'full'
"""


def test_layers_of_different_types_under_one_key() -> None:
    sources = layers_of_two_types()
    made = there_and_back(BY_TYPE, sources, TYPES)
    for i, kind in enumerate(TYPES["layer_types"]):
        here = sources[f"l.{i}.{'attn' if kind == 'full' else 'mixer'}.w"]
        assert torch.equal(made[f"l.{i}.block.w"], here.T if kind == "full" else here)


@pytest.mark.parametrize(("missing", "rule"), [("l.1.mixer.w", "rules[1]: no key for i=1"), ("l.3.attn.w", "i=3")])
def test_a_layer_of_its_type_must_be_there(missing: str, rule: str) -> None:
    sources = layers_of_two_types()
    del sources[missing]
    with pytest.raises(CoverageError) as caught:
        convert(BY_TYPE, sources, TYPES)
    assert rule in str(caught.value)
    assert len(caught.value.problems) == 1


def test_a_layer_of_another_type_is_nobodys() -> None:
    sources = {**layers_of_two_types(), "l.1.attn.w": numbers(3, 4)}
    with pytest.raises(CoverageError, match=r"l.1.attn.w: the rule isn't on for i=1: when config.layer_types"):
        convert(BY_TYPE, sources, TYPES)


def test_types_that_the_config_does_not_give_decide_nothing() -> None:
    with pytest.raises(SpecError, match=r"'when: .*' can't be decided for i=0: config.layer_types is not in"):
        convert(BY_TYPE, layers_of_two_types(), {"other": 1})
    with pytest.raises(SpecError, match=r"the list has 1 items, and none with the number 1"):
        convert(BY_TYPE, layers_of_two_types(), {"layer_types": ["full"]})


def test_a_condition_may_compute_with_the_index() -> None:
    body = """
        dims: {L: 6}
        placeholders: {i: 0..L}
        rules:
          - {from: "l.{i}.w", to: "local.{i}.w", when: (i + 1) % 3 != 0}
          - {from: "l.{i}.w", to: "global.{i}.w", when: (i + 1) % 3 == 0}
    """
    made = there_and_back(body, {f"l.{i}.w": numbers(3, start=i) for i in range(6)})
    assert sorted(name for name in made if name.startswith("global")) == ["global.2.w", "global.5.w"]


def test_a_list_of_the_config_gives_the_indices() -> None:
    """Layers 0 and 3 are stacked; their neighbours are another rule's."""
    body = """
        placeholders: {i: config.full_layers}
        rules:
          - {from: "l.{i}.attn.w", to: attn, layout: o h -> h i o}
          - {from: "l.{j}.mixer.w", to: "mixer.{j}.w"}
    """
    sources = layers_of_two_types()
    made = there_and_back(body, sources, TYPES)
    assert torch.equal(made["attn"], torch.stack([sources["l.0.attn.w"], sources["l.3.attn.w"]]).permute(2, 0, 1))
    assert {name for name in made if "mixer" in name} == {"mixer.1.w", "mixer.2.w", "mixer.4.w"}
    del sources["l.3.attn.w"]
    with pytest.raises(CoverageError, match=r"'l.{i}.attn.w' lacks i = 3; there are 0"):
        convert(body, sources, TYPES)


def test_a_list_is_a_range_with_gaps() -> None:
    body = """
        placeholders: {i: config.full_layers}
        rename: {"l.{i}.attn.w": "a.{i}.w", "l.{j}.mixer.w": "mixer.{j}.w"}
    """
    sources = layers_of_two_types()
    there_and_back(body, sources, TYPES)
    with pytest.raises(CoverageError, match=r"l.2.attn.w: i is 2, outside 0, 3"):
        convert(body, {**sources, "l.2.attn.w": numbers(2)}, TYPES)
    del sources["l.0.attn.w"]
    with pytest.raises(CoverageError, match=r"no key for i=0"):
        convert(body, sources, TYPES)


def test_tensors_are_made_for_each_of_a_list() -> None:
    body = """
        placeholders: {i: config.full_layers}
        rules:
          - {from: "a", to: "b"}
          - {fill: ones, to: "l.{i}.scale", shape: [3], dtype: F32}
          - {fill: zeros, to: "l.{i}.bias", shape: [i], dtype: F32, when: i > 0}
    """.replace("shape: [i]", "shape: [2]")
    made = there_and_back(body, {"a": numbers(2)}, TYPES)
    assert made.keys() == {"b", "l.0.scale", "l.3.scale", "l.3.bias"}


@pytest.mark.parametrize("listed", [[0, 0], ["a"], "abc", [0.5], [-1], 3, {"a": 1}])
def test_what_is_no_list_of_indices(listed: object) -> None:
    body = 'placeholders: {i: config.full_layers}\nrename: {"l.{i}.w": "m.{i}.w"}'
    with pytest.raises(SpecError, match=r"must list the indices of {i}"):
        convert(body, {"l.0.w": numbers(1)}, {"full_layers": listed})


def test_a_list_that_is_not_there() -> None:
    body = 'placeholders: {i: config.full_layers}\nrename: {"l.{i}.w": "m.{i}.w"}'
    with pytest.raises(SpecError, match=r"the indices of {i} need config.full_layers: config.full_layers is not in"):
        convert(body, {"l.0.w": numbers(1)}, {"other": 1})


def test_a_condition_must_know_its_indices() -> None:
    body = 'rules: [{from: "l.{i}.w", to: w, layout: o -> i o, when: i > 2}]'
    assert "'when: i > 2' looks at {i}, which isn't in every key of the rule" in spec_refusal_of(body)
    body = "rules: [{from: w, to: w, when: j > 2}]"
    assert "no dim and no placeholder of the rule is called j" in spec_refusal_of(body)


def test_the_config_of_the_way_back_gives_the_list() -> None:
    body = """
        placeholders: {i: config.full_layers}
        rename: {"l.{i}.w": "m.{i}.w"}
        config: {rename: {full_layers: attention.layers}}
    """
    sources = {"l.0.w": numbers(2), "l.3.w": numbers(2)}
    made = convert(body, sources, TYPES)
    assert convert(body, made, {"attention": {"layers": [0, 3]}}, reverse=True).keys() == sources.keys()
