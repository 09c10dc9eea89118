from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import converters
from converters.schedule import Budget
from converters.storage.checkpoint import open_checkpoint
from converters.tensor_info import DType, TensorInfo
from converters.verify.report import Finding, Report, Severity, Verdict
from tests.verify.damage import (
    HEAD_DIM,
    IN_PROJ,
    LAYER,
    Q_ROWS,
    SPEC,
    Tensors,
    edit,
    edit_json,
    make_source,
    make_target,
)

Check = Callable[..., Report]

OUT_PROJ = f"{LAYER}.self_attn.multihead_attn.out_proj.weight"
Q_PROJ, K_PROJ = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.k_proj.weight"
LINEAR = f"{LAYER}.ff.linear1.weight"


def by_place(report: Report) -> dict[str | None, Finding]:
    result = report.level("roundtrip")
    assert result is not None
    return {finding.where: finding for finding in result.errors}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("heads", [6, 2, 1])
def test_no_false_alarm(dtype: torch.dtype, heads: int, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", dtype, seed=heads, num_key_value_heads=heads)
    target = make_target(source, tmp_path / "target")
    report = converters.verify(converters.load_spec(SPEC), source, target, level="roundtrip")
    assert report.verdict is Verdict.PASS
    assert report.findings == ()
    assert "compared bit for bit" in " ".join(report.levels[1].evidence)
    assert all(one.passed and one.max_abs == 0 for one in report.levels[1].measurements)
    assert len(report.levels[1].measurements) == 42


@pytest.mark.parametrize("seed", range(5))
def test_no_false_alarm_on_the_way_back(seed: int, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", seed=seed, tie_word_embeddings=bool(seed % 2))
    spec = converters.load_spec(SPEC)
    tenny = make_target(source, tmp_path / "tenny")
    converters.convert(spec, tenny, tmp_path / "back", reverse=True)
    report = converters.verify(spec, tenny, tmp_path / "back", level="roundtrip", reverse=True)
    assert (report.verdict, report.reverse) == (Verdict.PASS, True)


def swap_q_and_k(tensors: Tensors) -> None:
    weight = tensors[IN_PROJ]
    weight[:16], weight[Q_ROWS : Q_ROWS + 16] = weight[Q_ROWS : Q_ROWS + 16].clone(), weight[:16].clone()


def permute_pairs(tensors: Tensors) -> None:
    weight = tensors[IN_PROJ]
    pairs = weight[:Q_ROWS].reshape(6, HEAD_DIM // 2, 2, 48).transpose(1, 2)
    weight[:Q_ROWS] = pairs.reshape(Q_ROWS, 48).clone()


def permute_partly(tensors: Tensors) -> None:
    heads = tensors[IN_PROJ][:Q_ROWS].reshape(6, HEAD_DIM, 48).clone()
    heads[:, :4] = heads[:, :4].reshape(6, 2, 2, 48).transpose(1, 2).reshape(6, 4, 48)
    tensors[IN_PROJ][:Q_ROWS] = heads.reshape(Q_ROWS, 48)


def permute_heads(tensors: Tensors) -> None:
    heads = tensors[IN_PROJ][:Q_ROWS].reshape(6, HEAD_DIM, 48)
    tensors[IN_PROJ][:Q_ROWS] = heads[[1, 0, 2, 3, 5, 4]].reshape(Q_ROWS, 48)


def put(key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], None]:
    def run(tensors: Tensors) -> None:
        tensors[key] = change(tensors[key])

    return run


def fill(key: str, where: object, value: float) -> Callable[[Tensors], None]:
    def run(tensors: Tensors) -> None:
        tensors[key][where] = value  # type: ignore[index]

    return run


def take_row(key: str, to: int, at: int) -> Callable[[Tensors], None]:
    def run(tensors: Tensors) -> None:
        tensors[key][to] = tensors[key][at].clone()

    return run


@pytest.mark.parametrize(
    ("change", "place", "diagnosis"),
    [
        (put(OUT_PROJ, lambda weight: weight.T), OUT_PROJ, "it is transposed"),
        (
            put(OUT_PROJ, lambda w: w.reshape(48, 6, 8).flip(1).reshape(48, 48)),
            OUT_PROJ,
            "blocks of 8 columns changed places: 0 holds 5",
        ),
        (put(f"{LAYER}.norm1.weight", lambda weight: weight + 1), f"{LAYER}.norm1.weight", "+1 was added to 48 values"),
        (put(LINEAR, lambda weight: weight * 0.5), LINEAR, "were multiplied by 0.5"),
        (put(LINEAR, lambda weight: -weight), LINEAR, "every value has the other sign"),
        (put(LINEAR, lambda weight: weight.bfloat16().float()), LINEAR, "it was rounded to BF16 and back"),
        (put(LINEAR, lambda weight: weight.half().float()), LINEAR, "it was rounded to F16 and back"),
        (put(f"{LAYER}.norm1.bias", lambda bias: bias * 0), f"{LAYER}.norm1.bias", "it is all zeros"),
        (fill(LINEAR, (3, 5), float("nan")), LINEAR, "one element became NaN"),
        (fill(LINEAR, (3, 5), 0.0), LINEAR, "the value is zero"),
        (fill("encoder.weight", slice(200, None), 0.0), "encoder.weight", "2448 values in a row are zero"),
        (take_row("encoder.weight", 17, 18), "encoder.weight", "row 17 holds what belongs in row 18"),
        (put("encoder.weight", lambda weight: weight.roll(1, 0)), "encoder.weight", "the rows are rolled by 1"),
        (
            put("encoder.weight", lambda weight: torch.cat([weight[:9], weight[8:-1]])),
            "encoder.weight",
            "242 rows hold what belongs 1 rows earlier",
        ),
        (permute_heads, Q_PROJ, "blocks of 8 rows changed places: 0 holds 1, 1 holds 0, 4 holds 5 and 1 more"),
        (
            permute_pairs,
            Q_PROJ,
            "in each block of 8 rows, what is laid out as (a b) with a = 4, b = 2 is read as (b a)",
        ),
        (permute_partly, Q_PROJ, "in rows 0 to 3 of each block of 8 rows, what is laid out as (a b)"),
        (fill("pos_encoder.pe", 7, 0.0), "pos_encoder.pe", "48 values in a row are zero"),
    ],
)
def test_damage_is_found_located_and_explained(
    check: Check, change: Callable[[Tensors], None], place: str, diagnosis: str
) -> None:
    report = check(change)
    assert report.verdict is Verdict.FAIL
    assert report.levels[0].verdict is Verdict.PASS  # names and shapes are right: only the bytes tell
    finding = by_place(report)[place]
    assert diagnosis in (finding.diagnosis or "")
    assert finding.layer == (1 if ".1." in place else None)


def test_a_finding_has_rule_count_index_and_values(check: Check, source: Path) -> None:
    with open_checkpoint(source) as reader:
        raw = bytearray(4)
        reader.read_into("model.layers.1.mlp.fc1.weight", (3 * 48 + 5) * 4, memoryview(raw))
    right = torch.frombuffer(raw, dtype=torch.float32).item()
    finding = by_place(check(fill(LINEAR, (3, 5), right + 0.5)))[LINEAR]
    assert finding.what == "1 of 3,840 elements differ, at [3, 5]"
    assert finding.kind == "different-values"
    assert (finding.expected, finding.got) == (f"{right:.9g}", f"{torch.tensor(right + 0.5).item():.9g}")
    assert "model.layers.{i}.mlp.fc1.{p}" in (finding.rule or "")
    assert "phi2_to_tenny.yaml:28" in (finding.rule or "")
    assert finding.values["first_index"] == "[3, 5]"
    assert finding.values["max_abs"] == pytest.approx(0.5)
    assert (finding.values["differing"], finding.values["nans"], finding.values["ulps_of"]) == (1, 0, "F32")


def test_the_way_back_names_the_projections_of_a_fused_tensor(check: Check) -> None:
    places = by_place(check(swap_q_and_k))
    assert places.keys() == {IN_PROJ, Q_PROJ, K_PROJ}
    assert places[IN_PROJ].diagnosis == "blocks of 16 rows changed places: 0 holds 3, 3 holds 0"
    assert places[K_PROJ].kind == "source-not-restored"


def test_swapped_tensors_are_recognised(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", num_key_value_heads=6)
    target = make_target(source, tmp_path / "target")

    def swap(tensors: Tensors) -> None:
        weight = tensors[IN_PROJ]
        tensors[IN_PROJ] = torch.cat([weight[48:96], weight[:48], weight[96:]])
        one, two = f"{LAYER}.norm1.bias", "transformer_encoder.layers.2.norm1.bias"
        tensors[one], tensors[two] = tensors[two], tensors[one]

    edit(target, swap)
    places = by_place(converters.verify(converters.load_spec(SPEC), source, target, level="roundtrip"))
    assert places[Q_PROJ].diagnosis == f"it holds the values of {K_PROJ}"
    assert places[K_PROJ].diagnosis == f"it holds the values of {Q_PROJ}"
    assert (places[f"{LAYER}.norm1.bias"].diagnosis or "").startswith(
        "it holds the values of transformer_encoder.layers.2.norm1.bias"
    )


def test_layers_shifted_by_one(check: Check) -> None:
    def shift(tensors: Tensors) -> None:
        keys = [key for key in tensors if ".layers.0." in key]
        for key in keys:
            values = [tensors[key.replace(".0.", f".{layer}.")] for layer in range(3)]
            for layer in range(3):
                tensors[key.replace(".0.", f".{layer}.")] = values[(layer + 1) % 3]

    report = check(shift)
    moved = [finding for finding in report.findings if finding.kind == "layers-moved"]
    assert moved[0].what == "24 tensors hold what belongs 1 layer later"
    assert moved[0].severity is Severity.NOTE
    assert "24 tensors hold what belongs 1 layer later" in report.levels[1].evidence


def test_a_changed_dtype_fails_and_its_values_are_told_apart(check: Check) -> None:
    finding = by_place(check(put("encoder.weight", torch.Tensor.half)))["encoder.weight"]
    assert finding.what == "its dtype is F16, not F32"
    assert finding.diagnosis == "rounded to F16, its values are the expected ones"
    finding = by_place(check(put("encoder.weight", lambda weight: weight.half() * 2)))["encoder.weight"]
    assert finding.diagnosis == "rounded to F16, its values are not those expected, too"


def test_a_missing_and_an_unexpected_tensor_fail_this_level_alone(check: Check) -> None:
    def change(tensors: Tensors) -> None:
        tensors["more"] = tensors.pop("decoder.bias")

    report = check(change, level=None, levels=["roundtrip"])
    assert [result.level for result in report.levels] == ["roundtrip"]
    assert {one.kind for one in report.levels[0].errors} == {"not-as-planned", "unexpected-tensor"}
    assert [(one.kind, one.where) for one in report.findings if one.severity is Severity.NOTE] == [
        ("not-restored", "lm_head.bias")
    ]


def test_a_shard_of_another_checkpoint(check: Check, target: Path, tmp_path: Path) -> None:
    other = make_target(make_source(tmp_path / "other", seed=7), tmp_path / "other-target")
    shard = sorted(target.glob("*.safetensors"))[2]
    shutil.copy(other / shard.name, shard)
    wrong = {where for where, finding in by_place(check()).items() if finding.kind == "different-values"}
    with open_checkpoint(target) as reader:
        assert wrong == {name for name, file in reader.file_of.items() if file == shard.name}


def test_dropped_keys_are_listed_with_their_reason(source: Path, good: Path, tmp_path: Path) -> None:
    longer = tmp_path / "longer"
    shutil.copytree(source, longer)
    edit(longer, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    report = converters.verify(converters.load_spec(SPEC), longer, good, level="roundtrip")
    assert report.verdict is Verdict.PASS
    note = next(finding for finding in report.findings if finding.kind == "not-restored")
    assert note.what == "1 source tensors are not restored: dropped by the spec: recomputed from rope_theta"


ONE_WAY = """\
weightmap: 1
name: one_way
source: {layout: a}
target: {layout: b}
rules:
  - {from: "a.{n:path}", to: "b.{n:path}", cast: BF16}
"""
APPROXIMATE = ONE_WAY.replace("cast: BF16", "cast: {from: F32, to: BF16}")
WIDENING = ONE_WAY.replace("cast: BF16", "cast: {from: F16, to: F32}")


def cast_case(tmp_path: Path, text: str, dtype: torch.dtype) -> tuple[converters.Spec, Path, Path]:
    from safetensors.torch import save_file

    (tmp_path / "spec.yaml").write_text(text)
    spec = converters.load_spec(tmp_path / "spec.yaml")
    values = torch.randn(300, 40, generator=torch.Generator().manual_seed(1)).to(dtype)
    (tmp_path / "source").mkdir()
    save_file({"a.w": values}, tmp_path / "source" / "model.safetensors", metadata={"format": "pt"})
    converters.convert(spec, tmp_path / "source", tmp_path / "target")
    return spec, tmp_path / "source", tmp_path / "target"


def nudge(target: Path, ulps: int) -> None:
    from safetensors.torch import load_file, save_file

    file = target / "model.safetensors"
    values = load_file(file)["b.w"]
    values.view(torch.int16)[0, 3] += ulps
    save_file({"b.w": values}, file, metadata={"format": "pt"})


def test_a_one_way_spec_is_proved_there_and_not_back(tmp_path: Path) -> None:
    spec, source, target = cast_case(tmp_path, ONE_WAY, torch.float32)
    report = converters.verify(spec, source, target, level="roundtrip")
    assert [result.verdict for result in report.levels] == [Verdict.PASS, Verdict.NOT_PROVED]
    assert report.exit_code == 9
    assert "doesn't say what the source's dtype was" in report.levels[1].reason
    assert any(line.startswith("there: 1 of 1") for line in report.levels[1].evidence)


def test_a_cast_may_be_one_ulp_away_and_no_further(tmp_path: Path) -> None:
    spec, source, target = cast_case(tmp_path, APPROXIMATE, torch.float32)
    report = converters.verify(spec, source, target, level="roundtrip")
    assert report.verdict is Verdict.PASS
    assert (
        "target: 1 tensors compared within 1 ULP of BF16; the largest distance found is 0 ULP"
        in report.levels[1].evidence
    )
    assert (
        "source: 1 tensors compared within 1 ULP of BF16; the largest distance found is 0 ULP"
        in report.levels[1].evidence
    )
    nudge(target, 1)
    report = converters.verify(spec, source, target, level="roundtrip")
    assert report.verdict is Verdict.PASS
    assert "target: 1 elements differ by no more than is allowed" in report.levels[1].evidence
    nudge(target, 1)
    report = converters.verify(spec, source, target, level="roundtrip")
    assert by_place(report)["b.w"].what == "1 of 12,000 elements differ by more than 1 ULP, at [0, 3]"
    assert (
        by_place(report)["a.w"].what == "1 of 12,000 elements differ by more than 1 ULP once rounded to BF16, at [0, 3]"
    )


def test_a_cast_to_a_wider_dtype_is_exact(tmp_path: Path) -> None:
    spec, source, target = cast_case(tmp_path, WIDENING, torch.float16)
    report = converters.verify(spec, source, target, level="roundtrip")
    assert report.verdict is Verdict.PASS
    assert "target: compared bit for bit" in report.levels[1].evidence
    nudge(target, 1)
    assert converters.verify(spec, source, target, level="roundtrip").verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("dtype", "asked"),
    [(torch.float32, "BF16"), (torch.float32, "F16"), (torch.float16, "F32"), (torch.bfloat16, "F16")],
)
def test_a_blanket_cast_comes_back_up_to_its_rounding(dtype: torch.dtype, asked: str, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", dtype)
    target = make_target(source, tmp_path / "target", dtype=asked)
    options = converters.Options(dtype=DType[asked])
    report = converters.verify(converters.load_spec(SPEC), source, target, level="roundtrip", converted_with=options)
    assert report.verdict is Verdict.PASS
    edit(target, fill(LINEAR, (3, 5), 0.25))
    report = converters.verify(converters.load_spec(SPEC), source, target, level="roundtrip", converted_with=options)
    assert by_place(report).keys() == {LINEAR, "model.layers.1.mlp.fc1.weight"}


def test_a_buffer_that_another_tool_computed_is_as_good(check: Check) -> None:
    """Sines in float32 differ from ours in their last bits: no conversion has one right answer for them."""
    assert check(put("pos_encoder.pe", lambda pe: pe + 1e-7)).verdict is Verdict.PASS
    assert check(put("pos_encoder.pe", lambda pe: pe + 1e-2)).verdict is Verdict.FAIL


def test_a_source_that_breaks_the_demands_of_the_spec(source: Path, good: Path, tmp_path: Path) -> None:
    """A tied checkpoint that stores two different matrices: the spec refuses to convert it, and nothing proves it."""
    odd = tmp_path / "odd"
    shutil.copytree(source, odd)
    edit_json(odd / "config.json", lambda config: config.update(tie_word_embeddings=True))
    report = converters.verify(converters.load_spec(SPEC), odd, good, level="roundtrip")
    assert any(finding.kind == "source-demand" for finding in report.levels[1].errors)


def test_bytes_that_change_while_they_are_read(check: Check, target: Path) -> None:
    """The level says so, in place of a traceback or a pass."""
    first = min(target.glob("*.safetensors"))

    def touch(_: int) -> None:
        with first.open("r+b") as file:
            file.seek(-1, 2)
            byte = file.read(1)
            file.seek(-1, 2)
            file.write(byte)

    report = check(threads=1, progress=touch)
    assert "target-changed" in {finding.kind for finding in report.levels[1].errors}


def test_two_threads_and_a_small_budget_find_the_same(check: Check) -> None:
    reports = [check(swap_q_and_k, max_memory="64MB", threads=threads).level("roundtrip") for threads in (1, 2)]
    first, second = ([finding.what for finding in report.findings] for report in reports if report is not None)
    assert len(first) == 3 or first == second  # swapped twice is right again
    with pytest.raises(converters.MemoryBudgetError):
        check(max_memory="1MB")


def test_names_with_placeholders_stay_out_of_the_way(check: Check) -> None:
    """Rich markup, format strings and escapes in names are just text."""
    report = check(lambda tensors: tensors.update({"[red]{0}%s\x1b[2J": torch.ones(2)}))
    assert report.verdict is Verdict.FAIL
    assert "\x1b" not in str(converters.VerificationError([one.problem() for one in report.findings]))


def test_elements_narrower_than_a_byte(tmp_path: Path) -> None:
    from converters.sharding import Shard
    from converters.storage.safetensors import SafetensorsWriter

    info = TensorInfo("a.w", (4, 16), DType.F4)
    spec_file = tmp_path / "spec.yaml"
    spec_file.write_text(ONE_WAY.replace(", cast: BF16", ""))
    spec = converters.load_spec(spec_file)
    (tmp_path / "source").mkdir()
    writer = SafetensorsWriter(tmp_path / "source", [Shard("model.safetensors", (info,))])
    writer.start_shard(0)
    writer.write_from("a.w", 0, memoryview(bytes(range(32))))
    writer.finish_shard(0)
    writer.finish()
    converters.convert(spec, tmp_path / "source", tmp_path / "target")
    assert converters.verify(spec, tmp_path / "source", tmp_path / "target", level="roundtrip").verdict is Verdict.PASS
    file = tmp_path / "target" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3] + b"\xff\xff\xff")
    report = converters.verify(spec, tmp_path / "source", tmp_path / "target", level="roundtrip")
    assert by_place(report)["b.w"].what == "3 of 32 bytes differ, from [3, 10] to [3, 14]"


def test_budget_is_left_for_comparing() -> None:
    from converters.verify.sweep import working_budget

    assert working_budget(Budget(512_000_000, 2)).max_memory < 512_000_000
