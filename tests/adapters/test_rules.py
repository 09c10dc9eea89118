"""A rule on the factors does what the rule on weights does to their product, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import converters
from converters.errors import CoverageError
from converters.spec import Spec
from converters.spec_file import parse_spec
from tests.adapters.support import read_adapter, whole, write_adapter

HEAD = "weightmap: 1\nname: small\nsource: {layout: a}\ntarget: {layout: b}\n"
DIMS = "dims: {H: 3, D: 2, G: 5}\n"


def spec_of(rule: str, dims: str = DIMS) -> Spec:
    return parse_spec(f"{HEAD}{dims}rules:\n  - {rule}\n", "small.yaml")


def product(tensors: dict[str, Tensor], module: str, *, fan_in_fan_out: bool) -> Tensor:
    """What PEFT adds to a module's weight, before scaling."""
    if f"{module}.lora_embedding_A" in tensors:
        return (tensors[f"{module}.lora_embedding_B"] @ tensors[f"{module}.lora_embedding_A"]).T
    first, second = tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"]
    if first.dim() > 2:
        return torch.einsum("or,rikl->oikl", second[:, :, 0, 0], first)
    return (second @ first).T if fan_in_fan_out else second @ first


def factors(module: str, out: int, inside: tuple[int, ...], seed: int = 1, rank: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ones = (1,) * (len(inside) - 1)
    return {
        f"{module}.lora_A.weight": whole(generator, rank, *inside),
        f"{module}.lora_B.weight": whole(generator, out, rank, *ones),
    }


COMMUTING: dict[str, tuple[str, int, tuple[int, ...], bool, bool]] = {
    # a rule, out-features, in-features, and whether the source's and the target's weights are [in, out]
    "rename": ("{from: a.weight, to: b.weight}", 4, (7,), False, False),
    "named": ("{from: a.weight, to: b.weight, layout: o i -> o i}", 4, (7,), False, False),
    "rotary": ("{from: a.weight, to: b.weight, layout: (H d 2) i -> (H 2 d) i}", 12, (7,), False, False),
    "columns": ("{from: a.weight, to: b.weight, layout: o (H d) -> o (d H)}", 4, (12,), False, False),
    "both sides": ("{from: a.weight, to: b.weight, layout: (H d) (D e) -> (d H) (e D)}", 12, (8,), False, False),
    "turned": ("{from: a.weight, to: b.weight, layout: i o -> o i}", 4, (7,), True, False),
    "turned back": ("{from: a.weight, to: b.weight, layout: o i -> i o}", 4, (7,), False, True),
    "turned and permuted": ("{from: a.weight, to: b.weight, layout: i (H d) -> (d H) i}", 12, (7,), True, False),
    "not turned": ("{from: a.weight, to: b.weight, layout: i (H d) -> i (d H)}", 12, (7,), True, True),
    "1x1 convolution": ("{from: a.weight, to: b.weight, layout: o i 1 1 -> o i}", 4, (7, 1, 1), False, False),
    "convolution": ("{from: a.weight, to: b.weight, layout: (H d) ... -> (d H) ...}", 12, (5, 3, 2), False, False),
    "convolution beside turned layers": (
        "{from: a.weight, to: b.weight, layout: (H d) ... -> (d H) ...}",
        12,
        (5, 3, 2),
        True,
        True,
    ),
    "by any name": ("{from: 'a.{p}', to: 'b.{p}', layout: (H d) ... -> (d H) ...}", 12, (5,), False, False),
    "by a path": ("{from: '{rest:path}', to: 'x.{rest}'}", 4, (7,), False, False),
}


@pytest.mark.parametrize("case", COMMUTING)
def test_one_to_one(tmp_path: Path, case: str) -> None:
    rule, out, inside, turned, target_turned = COMMUTING[case]
    spec, tensors = spec_of(rule), factors("a", out, inside)
    write_adapter(tmp_path / "adapter", tensors, fan_in_fan_out=turned)
    converters.convert(spec, tmp_path / "adapter", tmp_path / "out")
    found, config = read_adapter(tmp_path / "out")
    (module,) = {name.split(".lora_")[0] for name in found}
    assert config["fan_in_fan_out"] is target_turned
    weight = product(tensors, "a", fan_in_fan_out=turned)
    expected = converters.convert_state_dict(spec, {"a.weight": weight})[f"{module}.weight"]
    assert torch.equal(product(found, module, fan_in_fan_out=target_turned), expected)
    converters.convert(spec, tmp_path / "out", tmp_path / "back", reverse=True)
    again, config = read_adapter(tmp_path / "back")
    assert config["fan_in_fan_out"] is turned
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


SPLITTING = {
    "blocks": ('"(q: H D | k: G D)', "(H D) i", "(G D) i", 16, 7),
    "heads": ('"(H (q: D | k: D))', "(H D) i", "(H D) i", 12, 7),
    "other order": ('"(k: G D | q: H D)', "(D H) i", "(G D) i", 16, 7),
    "columns": ('"o (q: H D | k: G D)', "o (H D)", "o (G D)", 7, 16),
}


@pytest.mark.parametrize("case", SPLITTING)
def test_a_split_copies_one_factor_and_comes_back_where_it_is_still_one(tmp_path: Path, case: str) -> None:
    start, query, key, out, inside = SPLITTING[case]
    fused = f'{start}{"" if case == "columns" else " i"}"'
    spec = spec_of(f"{{from: a.weight, to: {{q: q.weight, k: k.weight}}, "
                   f"layout: {{from: {fused}, q: {query}, k: {key}}}}}")  # fmt: skip
    tensors = factors("a", out, (inside,))
    write_adapter(tmp_path / "adapter", tensors)
    converters.convert(spec, tmp_path / "adapter", tmp_path / "out")
    found, config = read_adapter(tmp_path / "out")
    assert config["target_modules"] == ["k", "q"]
    expected = converters.convert_state_dict(spec, {"a.weight": product(tensors, "a", fan_in_fan_out=False)})
    for module in ("q", "k"):
        assert torch.equal(product(found, module, fan_in_fan_out=False), expected[f"{module}.weight"])
    converters.convert(spec, tmp_path / "out", tmp_path / "back", reverse=True)
    again, _ = read_adapter(tmp_path / "back")
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    shared = "B" if case == "columns" else "A"
    found[f"q.lora_{shared}.weight"][1, 2] += 1
    write_adapter(tmp_path / "trained", found)
    with pytest.raises(CoverageError) as caught:
        converters.convert(spec, tmp_path / "trained", tmp_path / "never", reverse=True)
    (problem,) = caught.value.problems
    assert f"q.lora_{shared}.weight" in problem.what
    assert f"k.lora_{shared}.weight" in problem.what
    assert str(problem.where) == "small.yaml:7:5"
    assert "merge" in (problem.hint or "")
    assert not (tmp_path / "never").exists()


def test_a_join_wants_all_of_its_sources(tmp_path: Path) -> None:
    spec = spec_of('{from: {q: q.weight, k: k.weight}, to: a.weight, '
                   'layout: {q: (H D) i, k: (G D) i, to: "(q: H D | k: G D) i"}}')  # fmt: skip
    write_adapter(tmp_path / "adapter", factors("q", 6, (7,)))
    with pytest.raises(CoverageError, match=r"small\.yaml:7:5: rules\[0\].*joins several.*k\.weight has no lora_A\.w"):
        converters.convert(spec, tmp_path / "adapter", tmp_path / "out")


PERMUTES_ONE_PART = """
    from: a.weight
    to: {u: b.weight, w: c.weight}
    layout: {from: "(u: H | w: 9) (G e)", u: H (G e), w: 9 (e G)}"""

FILLS = """
    from: {u: a.weight}
    to: b.weight
    layout: {u: o i, to: "(u: o | pad: 4) i"}
    fill: {pad: zeros}"""

REFUSED = {
    "mixes": ("{from: a.weight, to: b.weight, layout: (x y) z -> (x z) y}", "mixes out-features with in-features"),
    "regroups": ("{from: a.weight, to: b.weight, layout: (H x) y -> H (x y)}", "mixes out-features with in-features"),
    "turns with a 2 on both sides": ("{from: a.weight, to: b.weight, layout: (2 x) (2 y) -> (2 y) (2 x)}", "a number"),
    "permutes one part": (
        PERMUTES_ONE_PART,
        "mixes out-features with in-features",
    ),
    "fills": (FILLS, "fills or drops blocks of a tensor (pad)"),
    "takes a part": ('{from: a.weight, to: b.weight, layout: "(u: H D | _: 6) i -> (u: H D) i"}', "only a part"),
    "stacks": ("{from: 'a.{e}.weight', to: b.weight, layout: o i -> e o i}", "along e"),
    "computes": ("{from: a.weight, to: b.weight, cast: {from: F32, to: F64}}", "computes with values"),
    "no module": ("{from: a.weight, to: in_proj_weight}", "'in_proj_weight' isn't the weight of a module"),
    "shares": ("{from: a.weight, to: {tie: [b.weight, c.weight]}}", "1 on one side and 2 on the other"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_commute_is_refused(tmp_path: Path, case: str) -> None:
    rule, reason = REFUSED[case]
    module = "a.0" if case == "stacks" else "a"
    write_adapter(tmp_path / "adapter", factors(module, 12, (10,)))
    with pytest.raises(CoverageError) as caught:
        converters.convert(spec_of(rule), tmp_path / "adapter", tmp_path / "out")
    (problem,) = caught.value.problems
    assert reason in problem.what
    assert f"base_model.model.{module}.lora_A.weight" in problem.what
    assert problem.what.startswith("rules[0]: ")
    assert str(problem.where).startswith("small.yaml:")
    assert "merge" in (problem.hint or "")


def test_a_rule_that_does_not_commute_is_no_matter_where_the_adapter_does_not_need_it(tmp_path: Path) -> None:
    rule = "{from: m.weight, to: n.weight, layout: (x y) z -> (x z) y}\n  - {from: a.weight, to: b.weight}"
    write_adapter(tmp_path / "adapter", factors("a", 4, (7,)))
    plan = converters.convert(spec_of(rule), tmp_path / "adapter", tmp_path / "out")
    assert len(plan.rules) == 2


def test_keys_that_share_a_weight_are_paired_in_their_order(tmp_path: Path) -> None:
    spec = spec_of("{from: {tie: [embed.weight, head.weight]}, copy: [first.weight, last.weight], layout: V E -> V E}")
    generator = torch.Generator().manual_seed(5)
    tensors = {
        "embed.lora_embedding_A": whole(generator, 3, 11),
        "embed.lora_embedding_B": whole(generator, 7, 3),
        **factors("head", 11, (7,)),
    }
    write_adapter(tmp_path / "adapter", tensors)
    converters.convert(spec, tmp_path / "adapter", tmp_path / "out")
    found, _ = read_adapter(tmp_path / "out")
    renamed = {name.replace("embed.", "first.").replace("head.", "last."): tensor for name, tensor in tensors.items()}
    assert found.keys() == renamed.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in renamed.items())


@pytest.mark.parametrize("end", ["", ".weight"])
def test_a_rule_for_modules_of_all_kinds(tmp_path: Path, end: str) -> None:
    generator = torch.Generator().manual_seed(5)
    tensors = {
        "embed.lora_embedding_A": whole(generator, 3, 11),
        "embed.lora_embedding_B": whole(generator, 7, 3),
        "embed.lora_magnitude_vector": whole(generator, 7),
        **factors("h.0.q", 4, (7,)),
        "h.0.q.lora_magnitude_vector": whole(generator, 4),
        **factors("conv", 4, (5, 3, 3)),
        **({"norm.weight": whole(generator, 7)} if not end else {}),
    }
    write_adapter(tmp_path / "adapter", tensors, modules_to_save=["norm"])
    spec = spec_of(f"{{from: '{{rest:path}}{end}', to: 'x.{{rest}}{end}'}}")
    converters.convert(spec, tmp_path / "adapter", tmp_path / "out")
    found, config = read_adapter(tmp_path / "out")
    assert found.keys() == {f"x.{name}" for name in tensors}
    assert all(torch.equal(found[f"x.{name}"], tensor) for name, tensor in tensors.items())
    assert config["target_modules"] == ["x.conv", "x.embed", "x.h.0.q"]
    assert config["modules_to_save"] == (None if end else ["x.norm"])


def test_an_embedding_is_split_along_its_features(tmp_path: Path) -> None:
    spec = spec_of(
        '{from: a.weight, to: {u: u.weight, w: w.weight}, layout: {from: "V (u: H | w: G)", u: V H, w: V G}}'
    )
    generator = torch.Generator().manual_seed(5)
    tensors = {"a.lora_embedding_A": whole(generator, 3, 11), "a.lora_embedding_B": whole(generator, 8, 3)}
    write_adapter(tmp_path / "adapter", tensors)
    converters.convert(spec, tmp_path / "adapter", tmp_path / "out")
    found, _ = read_adapter(tmp_path / "out")
    expected = converters.convert_state_dict(spec, {"a.weight": product(tensors, "a", fan_in_fan_out=False)})
    for module in ("u", "w"):
        assert torch.equal(product(found, module, fan_in_fan_out=False), expected[f"{module}.weight"])
    turned = spec_of("{from: a.weight, to: b.weight, layout: V E -> E V}")
    with pytest.raises(CoverageError, match="turns an embedding's weight around"):
        converters.convert(turned, tmp_path / "adapter", tmp_path / "never")


@pytest.mark.parametrize("name", ["lora_magnitude_vector", "lora_magnitude_vector.weight", "lora_B.bias"])
def test_what_each_out_feature_has_once_follows_the_rows(tmp_path: Path, name: str) -> None:
    spec = spec_of("{from: a.weight, to: b.weight, layout: (H d) i -> (d H) i}")
    once = torch.arange(12.0)
    write_adapter(tmp_path / "adapter", {**factors("a", 12, (7,)), f"a.{name}": once})
    converters.convert(spec, tmp_path / "adapter", tmp_path / "out")
    found, _ = read_adapter(tmp_path / "out")
    assert torch.equal(found[f"b.{name}"], once.reshape(3, 4).t().reshape(12))
    columns = spec_of(
        '{from: a.weight, to: {u: u.weight, w: w.weight}, layout: {from: "o (u: H | w: 4)", u: o H, w: o 4}}'
    )
    with pytest.raises(CoverageError, match="divides the in-features"):
        converters.convert(columns, tmp_path / "adapter", tmp_path / "never")


def test_parameters_stored_whole_go_by_the_rule_itself(tmp_path: Path) -> None:
    text = """{from: 'a.{p}', to: 'b.{p}', layout: (H d) ... -> (d H) ...}
  - {from: head.weight, to: out.weight, layout: i o -> o i}"""
    head, bias = torch.arange(12.0).reshape(3, 4), torch.arange(12.0)
    tensors = {**factors("a", 12, (7,)), "a.base_layer.bias": bias, "head.weight": head}
    write_adapter(tmp_path / "adapter", tensors, bias="lora_only", modules_to_save=["head"])
    converters.convert(spec_of(text), tmp_path / "adapter", tmp_path / "out")
    found, config = read_adapter(tmp_path / "out")
    assert torch.equal(found["out.weight"], head.t())
    assert torch.equal(found["b.base_layer.bias"], bias.reshape(3, 4).t().reshape(12))
    assert (config["target_modules"], config["modules_to_save"], config["bias"]) == (["b"], ["out"], "lora_only")


def test_choices_of_which_all_must_be_there_in_a_checkpoint(tmp_path: Path) -> None:
    text = f"""{HEAD}placeholders: {{p: weight&bias}}
rename: {{"a.{{m:q&k}}.{{p}}": "b.{{m}}.{{p}}", "norm.{{p}}": "last.{{p}}"}}
"""
    tensors = {**factors("a.q", 4, (7,)), "a.q.base_layer.bias": torch.arange(4.0), "norm.bias": torch.arange(7.0)}
    write_adapter(tmp_path / "adapter", tensors, bias="all")
    converters.convert(parse_spec(text, "small.yaml"), tmp_path / "adapter", tmp_path / "out")
    found, _ = read_adapter(tmp_path / "out")
    assert found.keys() == {"b.q.lora_A.weight", "b.q.lora_B.weight", "b.q.base_layer.bias", "last.bias"}


def test_modules_that_no_rule_claims_are_named(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for module in ("x.0", "x.1", "x.2", "x.3", "a"):
        tensors |= factors(module, 4, (7,))
    write_adapter(tmp_path / "adapter", tensors)
    with pytest.raises(CoverageError, match=r"no rule claims the weight of 4 modules that .*: x\.0, x\.1, x\.2 and 1"):
        converters.convert(spec_of("{from: a.weight, to: b.weight}"), tmp_path / "adapter", tmp_path / "out")


def test_updates_of_what_the_spec_drops_are_dropped_with_its_reason(tmp_path: Path) -> None:
    spec = parse_spec(f'{HEAD}drop: {{"cls.*": no place for it}}\nrename: {{a.weight: b.weight}}\n', "small.yaml")
    write_adapter(tmp_path / "adapter", {**factors("a", 4, (7,)), **factors("cls.x", 4, (7,))})
    plan = converters.convert(spec, tmp_path / "adapter", tmp_path / "out")
    assert [drop.reason for drop in plan.dropped] == ["no place for it"] * 2
    assert read_adapter(tmp_path / "out")[1]["target_modules"] == ["b"]


def test_sizes_that_contradict_the_base_model(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", factors("a", 12, (7,)))
    config: dict[str, Any] = {"width": 8}
    spec = spec_of("{from: a.weight, to: b.weight, layout: o E -> o E}", "dims: {E: config.width}\n")
    with pytest.raises(CoverageError, match=r"lora_A.*'E' is 8 .*, but dim 1 is 7"):
        converters.convert(spec, tmp_path / "adapter", tmp_path / "out", config=config)


def test_a_dim_called_rank_is_no_hindrance(tmp_path: Path) -> None:
    spec = spec_of("{from: a.weight, to: b.weight, layout: (rank x) i -> (x rank) i}", "dims: {rank: 6}\n")
    tensors = factors("a", 12, (7,))
    write_adapter(tmp_path / "adapter", tensors)
    converters.convert(spec, tmp_path / "adapter", tmp_path / "out")
    found, _ = read_adapter(tmp_path / "out")
    expected = converters.convert_state_dict(spec, {"a.weight": product(tensors, "a", fan_in_fan_out=False)})
    assert torch.equal(product(found, "b", fan_in_fan_out=False), expected["b.weight"])
