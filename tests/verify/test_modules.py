"""The modules level: what is paired with what, and where differences are found."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from converters.verify import modules
from converters.verify.models import open_source, open_target
from converters.verify.module_pairs import feature_order, pair_modules
from converters.verify.module_runs import Outcome
from converters.verify.modules import check_modules
from converters.verify.precision import choose_precision, exact_arithmetic
from converters.verify.report import LevelResult, Verdict
from tests.mutations.cases import CASES, GPT2, LLAMA, MIXTRAL, PHI, PHI_TIED, Case
from tests.mutations.files import Checkpoint
from tests.verify.running import opened


@pytest.fixture(scope="module")
def correct(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for case in CASES:
        made[case.name] = tmp_path_factory.mktemp("case")
        case.write(made[case.name], seed=21)
    return made


def run(case: Case, directory: Path, **options: Any) -> LevelResult:
    with opened(case, directory, **options) as context:
        return check_modules(context)


def damaged(correct: dict[str, Path], case: Case, to: Path) -> Checkpoint:
    for side in ("source", "target"):
        shutil.copytree(correct[case.name] / side, to / side)
    return Checkpoint.read(to / "target")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_correct_conversions_pass(case: Case, correct: dict[str, Path]) -> None:
    result = run(case, correct[case.name])
    assert result.verdict is Verdict.PASS, result.reason
    blocks = [each for each in result.measurements if each.kind == "block"]
    assert [block.layer for block in blocks] == ([0, 1, 2] if case.has_blocks else [])
    assert all(block.added is not None and block.inherited is not None for block in blocks)
    # With the same weights and the same input, the source's own module gives the same bits.
    assert all(each.relative == 0 for each in result.measurements if each.values["compared"] == "weights")


@pytest.mark.parametrize("case", [PHI, PHI_TIED, LLAMA, GPT2], ids=lambda case: case.name)
def test_every_planned_tensor_is_compared(case: Case, correct: dict[str, Path]) -> None:
    """Each tensor that comes from the source is in an edge, and edges hold all of its elements."""
    with opened(case, correct[case.name]) as context, exact_arithmetic():
        precision = choose_precision("cpu", None)
        with open_source(context, precision) as source, open_target(context, precision) as target:
            pairing = pair_modules(context.plan, source, target)
    # A tied tensor has two owners, and an edge from each.
    copies = {(part.target, copy) for edge in pairing.edges for part in edge.parts for copy in part.copies}
    covered: dict[str, int] = {}
    for made, copy in copies:
        covered[made] = covered.get(made, 0) + copy.size
    planned = {made.info.name: made.info.size for made in context.plan.targets if made.moves}
    assert covered == planned
    assert not pairing.left_out


def test_pairs_come_from_the_plan(correct: dict[str, Path]) -> None:
    with opened(PHI, correct[PHI.name]) as context, exact_arithmetic():
        precision = choose_precision("cpu", None)
        with open_source(context, precision) as source, open_target(context, precision) as target:
            pairs = pair_modules(context.plan, source, target).pairs
    layer = "transformer_encoder.layers.1"
    assert pairs[f"{layer}.self_attn.multihead_attn"] == ("model.layers.1.self_attn",)
    assert pairs[f"{layer}.self_attn.multihead_attn.out_proj"] == ("model.layers.1.self_attn.dense",)
    assert pairs[f"{layer}.norm1"] == pairs[f"{layer}.norm2"] == ("model.layers.1.input_layernorm",)
    assert pairs[f"{layer}.ff"] == ("model.layers.1.mlp",)
    assert pairs[layer] == ("model.layers.1",)
    assert pairs["decoder"] == ("lm_head",)


def test_outputs_that_a_layout_reorders_are_compared_in_that_order(correct: dict[str, Path]) -> None:
    with opened(LLAMA, correct[LLAMA.name]) as context, exact_arithmetic():
        precision = choose_precision("cpu", None)
        with open_source(context, precision) as source, open_target(context, precision) as target:
            pairing = pair_modules(context.plan, source, target)
            pair = ("layers.0.attention.wq", "model.layers.0.self_attn.q_proj")
            order = feature_order(pairing.edges, source, target, pair)
    assert order is not None
    assert order[:8] == [0, 2, 4, 6, 1, 3, 5, 7]
    assert sorted(order) == list(range(48))


@pytest.mark.parametrize(
    ("case", "role", "layer", "source", "target"),
    [
        (PHI, "q", 1, "model.layers.1.self_attn.q_proj", "transformer_encoder.layers.1.self_attn.multihead_attn"),
        (PHI, "norm_mlp", 2, "model.layers.2.input_layernorm", "transformer_encoder.layers.2.norm2"),
        (PHI, "embed", None, "model.embed_tokens", "encoder"),
        (LLAMA, "k", 0, "layers.0.attention.wk", "model.layers.0.self_attn.k_proj"),
        (MIXTRAL, "up", 2, "layers.2.feed_forward.experts.3.w3", "model.layers.2.block_sparse_moe.experts.3.w3"),
        (GPT2, "down", 1, "transformer.h.1.mlp.c_proj", "transformer.h.1.mlp.c_proj"),
    ],
)
def test_an_error_is_found_where_it_is(
    case: Case, role: str, layer: int | None, source: str, target: str, correct: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint = damaged(correct, case, tmp_path)
    part = case.view(checkpoint, role, layer or 0, 3)
    part.view(-1)[5] += 0.5
    checkpoint.write()
    result = run(case, tmp_path)
    assert result.verdict is Verdict.FAIL
    assert [(each.where, each.layer, each.values["source"]) for each in result.errors] == [(target, layer, source)]
    assert f"{target} (from {source})" in result.reason
    bad = [each for each in result.measurements if each.kind == "block" and not each.passed]
    assert [block.layer for block in bad] == ([] if layer is None else [layer])


def test_what_a_block_inherits_is_not_held_against_it(correct: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = damaged(correct, PHI, tmp_path)
    PHI.view(checkpoint, "up", 0).neg_()
    checkpoint.write()
    blocks = [each for each in run(PHI, tmp_path).measurements if each.kind == "block"]
    assert [block.passed for block in blocks] == [False, True, True]
    assert [(block.inherited or 0) > 0.01 for block in blocks] == [False, True, True]
    assert [(block.added or 0) > 0.01 for block in blocks] == [True, False, False]


def test_two_errors_are_two_findings(correct: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = damaged(correct, LLAMA, tmp_path)
    LLAMA.view(checkpoint, "down", 2).neg_()
    LLAMA.view(checkpoint, "q", 0).neg_()
    checkpoint.write()
    found = [finding.where for finding in run(LLAMA, tmp_path).errors]
    assert found == ["model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj"]


def test_an_embedding_is_compared_in_rows_that_no_prompt_has(correct: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = damaged(correct, PHI, tmp_path)
    PHI.view(checkpoint, "embed")[250] *= 1.01
    checkpoint.write()
    result = run(PHI, tmp_path, prompt_tokens=8)
    assert [finding.where for finding in result.errors] == ["encoder"]


def test_the_classic_block_is_another_function_of_the_same_weights(tmp_path: Path) -> None:
    import converters

    PHI.write_source(tmp_path / "source", 3)
    converters.convert(PHI.load_spec(), tmp_path / "source", tmp_path / "target", set_config={"block": "classic"})
    result = run(PHI, tmp_path)
    assert result.verdict is Verdict.FAIL
    assert (
        "each projection and norm computes the same from the same input, but the whole isn't equivalent"
        in result.reason
    )
    assert {finding.kind for finding in result.errors} == {"structure-differs"}
    assert all(each.relative == 0 for each in result.measurements if each.values["compared"] == "weights")


def test_a_config_that_lies_is_a_difference_of_structure(correct: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = damaged(correct, PHI, tmp_path)
    checkpoint.config["rope_parameters"]["rope_theta"] = 500.0
    checkpoint.write()
    result = run(PHI, tmp_path)
    assert result.verdict is Verdict.FAIL
    assert result.errors[0].where == "transformer_encoder.layers.0.self_attn.multihead_attn"


@pytest.mark.parametrize("case", [PHI, LLAMA], ids=lambda case: case.name)
def test_streaming_gives_the_same_numbers(case: Case, correct: dict[str, Path]) -> None:
    whole, streamed = run(case, correct[case.name]), run(case, correct[case.name], resident_nbytes=0)
    assert streamed.measurements == whole.measurements
    assert "one block of each model in memory at a time" in streamed.evidence


@pytest.mark.gpu
def test_on_a_gpu(correct: dict[str, Path]) -> None:
    assert run(PHI, correct[PHI.name], device="cuda").verdict is Verdict.PASS
    assert torch.cuda.is_available()


@pytest.mark.parametrize(
    ("kind", "block", "order", "inherited", "excused"),
    [
        ("call", None, 0, 1e-7, True),
        ("call", None, 0, 0.5, False),
        ("weights", None, 0, 1e-7, False),
        ("call", "layers.0", 0, 1e-7, False),
        ("call", None, 9, 1e-7, False),
    ],
)
def test_a_module_before_the_blocks_may_compute_something_else_if_it_is_made_up_for(
    kind: str,
    block: str | None,
    order: int,
    inherited: float,
    excused: bool,  # noqa: FBT001
) -> None:
    embedding = Outcome(kind, "embed", "embedder", block, order, 1.0, 1.0)
    first = Outcome("block", "layers.0", "blocks.0", "layers.0", 5, 0.0, 0.0, inherited, 0.0)
    assert modules._made_up_for(embedding, [embedding, first], 1e-5) is excused
