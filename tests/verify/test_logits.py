"""The logits level: what passes, what decides, prompts, references, tolerances, precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from converters.errors import WeightmapError
from converters.verify import metrics as metrics_module
from converters.verify import precision as precision_module
from converters.verify.logits import check_logits
from converters.verify.metrics import compare_logits, relative_error
from converters.verify.models import why_not
from converters.verify.precision import choose_precision, exact_arithmetic
from converters.verify.prompts import position_limit, random_prompts, read_prompts
from converters.verify.report import LevelResult, Verdict
from converters.verify.tolerances import TABLE
from tests.mutations.cases import LLAMA, MIXTRAL, PHI, Case
from tests.mutations.files import Checkpoint
from tests.verify.running import opened


@pytest.fixture(scope="module")
def phi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("phi")
    PHI.write(directory, seed=11)
    return directory


def run(case: Case, directory: Path, **options: Any) -> LevelResult:
    with opened(case, directory, **options) as context:
        return check_logits(context)


def test_a_correct_conversion_passes_and_names_the_gate(phi: Path) -> None:
    result = run(PHI, phi)
    assert result.verdict is Verdict.PASS
    assert result.gate in result.gates
    assert result.gate is not None
    assert result.gate.name in result.reason
    assert {gate.name for gate in result.gates} == {
        "relative to the logit range", "max abs", "cosine distance", "KL", "top-1 agreement", "top-5 agreement"
    }  # fmt: skip
    assert [each.name for each in result.measurements][-3:] == ["long", "padded left", "padded right"]
    assert result.dtype == "float32"
    assert result.device == "cpu"
    assert result.versions["torch"] == str(torch.__version__)


def test_prompts_have_512_tokens_unless_told(phi: Path) -> None:
    result = run(PHI, phi, prompt_tokens=512)
    assert any("prompts of up to 1024 tokens" in line for line in result.evidence)
    assert any("251 of the 251 tokens" in line for line in result.evidence)


@pytest.mark.parametrize("case", [PHI, LLAMA, MIXTRAL], ids=lambda case: case.name)
def test_streaming_gives_the_same_numbers(case: Case, tmp_path: Path) -> None:
    case.write(tmp_path, seed=12)
    whole, streamed = run(case, tmp_path), run(case, tmp_path, resident_nbytes=0)
    assert streamed.verdict is Verdict.PASS
    assert [each.max_abs for each in streamed.measurements] == [each.max_abs for each in whole.measurements]
    assert any("block by block from disk" in line for line in streamed.evidence)


def test_a_small_error_fails_with_its_gate_and_prompt(phi: Path, tmp_path: Path) -> None:
    target = copy(phi, tmp_path)
    PHI.view(target, "down", 2)[3] *= 1.001
    target.write()
    result = run(PHI, tmp_path)
    assert result.verdict is Verdict.FAIL
    assert result.gate is not None
    assert not result.gate.passed
    assert result.gate.where in {each.name for each in result.measurements}
    assert result.findings[0].kind == "logits-differ"


def test_nan_in_the_target_is_said_to_be_there(phi: Path, tmp_path: Path) -> None:
    target = copy(phi, tmp_path)
    PHI.view(target, "embed")[5, 7] = float("nan")
    target.write()
    result = run(PHI, tmp_path)
    assert result.verdict is Verdict.FAIL
    assert "the target's logits, and not in the source's" in result.findings[0].what


def test_missing_and_unexpected_keys_are_findings(phi: Path, tmp_path: Path) -> None:
    target = copy(phi, tmp_path)
    target.remove("decoder.bias")
    target.write()
    result = run(PHI, tmp_path)
    assert result.verdict is Verdict.FAIL
    assert "decoder.bias" in result.findings[0].text


def test_keys_of_a_transformers_target_are_checked_one_by_one(tmp_path: Path) -> None:
    LLAMA.write(tmp_path, seed=1)
    target = Checkpoint.read(tmp_path / "target")
    target.remove("model.norm.weight")
    target.tensors["model.extra"], target.file_of["model.extra"] = torch.ones(3), target.last_file()
    target.write()
    findings = run(LLAMA, tmp_path).findings
    assert {finding.where for finding in findings} == {"model.norm.weight", "model.extra"}


def test_without_a_model_it_says_what_is_missing(phi: Path) -> None:
    with opened(PHI, phi, target_model=None) as context:
        reason = why_not(context)
        assert reason is not None
        assert "knows no model_type 'tenny'; give one with --target-model PACKAGE:CLASS" in reason
        assert check_logits(context).verdict is Verdict.NOT_PROVED
    for wrong in ("mappings.tenny", "mappings.tenny:Nothing", "no.such.package:Model"):
        with opened(PHI, phi, target_model=wrong) as context:
            reason = why_not(context)
            assert reason is not None
            assert wrong in reason


def test_a_function_of_the_config_is_a_model_too(phi: Path) -> None:
    from mappings.tenny import Tenny, TennyConfig

    assert run(PHI, phi, target_model=lambda config: Tenny(TennyConfig.from_dict(config))).verdict is Verdict.PASS


@pytest.mark.parametrize("cast", ["float16", "bfloat16"])
def test_a_cast_is_applied_to_the_source_too(cast: str, tmp_path: Path) -> None:
    MIXTRAL.write(tmp_path, seed=3, cast=cast)
    result = run(MIXTRAL, tmp_path, cast=cast)
    assert result.verdict is Verdict.PASS
    assert any(f"rounded to {cast}" in line for line in result.evidence)
    # Without it, the rounding alone is far above the bound.
    assert run(MIXTRAL, tmp_path).verdict is Verdict.FAIL


def test_a_reference_stands_in_for_the_source(phi: Path, tmp_path: Path) -> None:
    file = tmp_path / "reference.safetensors"
    assert run(PHI, phi, save_reference=file).verdict is Verdict.PASS
    target = copy(phi, tmp_path)
    assert run(PHI, tmp_path, reference=file, source_model="no.such:Model").verdict is Verdict.PASS
    PHI.view(target, "k", 1).neg_()
    target.write()
    assert run(PHI, tmp_path, reference=file).verdict is Verdict.FAIL


def test_a_reference_with_other_rounding_proves_nothing(tmp_path: Path) -> None:
    PHI.write(tmp_path, seed=3, cast="bfloat16")
    file = tmp_path / "reference.safetensors"
    run(PHI, tmp_path, save_reference=file)
    result = run(PHI, tmp_path, reference=file, cast="bfloat16")
    assert result.verdict is Verdict.NOT_PROVED
    assert "rounded to nothing, but the conversion rounds to bfloat16" in result.reason


def test_what_is_no_reference_is_refused(phi: Path) -> None:
    with pytest.raises(WeightmapError, match="this file is no reference"):
        run(PHI, phi, reference=next((phi / "target").glob("*.safetensors")))


def test_bounds_can_be_set_by_name(phi: Path) -> None:
    assert run(PHI, phi, tolerances={"relative": 1e-12}).verdict is Verdict.FAIL
    with pytest.raises(WeightmapError, match="no tolerance 'speed'; there are: relative"):
        run(PHI, phi, tolerances={"speed": 1.0})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_has_bounds_of_its_own(phi: Path, dtype: str) -> None:
    result = run(PHI, phi, dtype=dtype)
    assert result.verdict is Verdict.PASS
    assert result.dtype == dtype


def test_half_precision_that_does_not_run_is_computed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_module, "_runs", lambda *_: False)
    precision = choose_precision("cpu", "float16")
    assert precision.dtype == torch.float32
    assert precision.label == "float32 (torch.float16 doesn't run on this cpu)"
    with pytest.raises(WeightmapError, match=r"can't be computed in torch.int8"):
        choose_precision("cpu", "int8")


def test_arithmetic_is_ieee_within_and_as_before_afterwards() -> None:
    torch.set_float32_matmul_precision("high")
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with exact_arithmetic():
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.is_grad_enabled()
    assert torch.get_float32_matmul_precision() == "high"
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
    torch.set_float32_matmul_precision("highest")


def test_prompts_are_the_same_each_time_and_cover_the_vocabulary() -> None:
    first, second = random_prompts(300, 128, None, 5), random_prompts(300, 128, None, 5)
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0].input_ids, random_prompts(300, 128, None, 6)[0].input_ids)
    assert len(first[0].input_ids.unique()) == 300
    padded = first[-1]
    assert padded.attention_mask is not None
    assert [int(padded.real(row).sum()) for row in (0, 1)] == [103, 110]
    assert [batch.input_ids.shape[1] for batch in random_prompts(300, 128, 160, 5)] == [128, 160, 128]
    assert [batch.input_ids.shape[1] for batch in random_prompts(300, 128, 100, 5)] == [100, 100]
    assert position_limit({"n_positions": 512}, {"max_len": 400}, None) == 400


def test_prompt_files(tmp_path: Path, phi: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('[5, 6, 7, 8]\n\n{"input_ids": [1, 2]}\n')
    batches = read_prompts(file, 251, phi)
    assert [batch.names for batch in batches] == [
        ("prompt 1",),
        ("prompt 2",),
        ("prompt 1, padded", "prompt 2, padded"),
    ]
    assert batches[2].input_ids.tolist() == [[5, 6, 7, 8], [0, 0, 1, 2]]
    assert run(PHI, phi, prompt_file=file).verdict is Verdict.PASS
    for content, message in (
        ("[1, 251]", "prompts.jsonl:1: a token is outside of the vocabulary of 251"),
        ("[]", "this line is no prompt"),
        ("[true]", "this line is no prompt"),
        ("", "there are no prompts"),
        ("Once upon a time", "there is no tokenizer"),
    ):
        file.write_text(content)
        with pytest.raises(WeightmapError, match=message):
            read_prompts(file, 251, phi / "source")


def test_text_prompts_go_through_the_tokenizer(tmp_path: Path) -> None:
    from benchmarks.make_phi2 import character_tokenizer

    character_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "prompts.txt"
    file.write_text('ab\n{"text": "ba"}\n')
    first, second, _ = read_prompts(file, 1013, tmp_path)
    assert first.input_ids.flip(1).tolist() == second.input_ids.tolist()


def naive(a: Tensor, b: Tensor) -> dict[str, float]:
    """The metrics one position at a time."""
    a, b = a.double(), b.double()
    kl = [(x.softmax(0) * (x.log_softmax(0) - y.log_softmax(0))).sum().item() for x, y in zip(a, b, strict=True)]
    cosine = [(x @ y / (x.norm() * y.norm())).item() for x, y in zip(a, b, strict=True)]
    tops = [set(x.topk(5).indices.tolist()) & set(y.topk(5).indices.tolist()) for x, y in zip(a, b, strict=True)]
    return {
        "max_abs": (a - b).abs().max().item(),
        "relative": ((a - b).abs().max() / (a.max() - a.min())).item(),
        "cosine": min(cosine),
        "kl": max(kl),
        "top1": (a.argmax(1) == b.argmax(1)).double().mean().item(),
        "top5": sum(len(top) for top in tops) / (5 * len(a)),
    }


@pytest.mark.parametrize("noise", [1e-3, 1.0])
def test_metrics_are_what_they_say(noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "_ELEMENTS", 3 * 40)
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(17, 40, generator=generator)
    b = a + noise * torch.randn(17, 40, generator=generator)
    real = torch.ones(17, dtype=torch.bool)
    real[[0, 5]] = False
    b[0] = float("nan")
    found = compare_logits(a, b, real)
    for name, value in naive(a[real], b[real]).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9), name
    assert real[found.worst_position]
    b[3, 2] = float("inf")
    assert not compare_logits(a, b, real).finite
    assert compare_logits(a, b, real).worst_position == 3


def test_which_of_two_equal_tokens_comes_first_does_not_matter() -> None:
    a = torch.zeros(1, 20)
    a[0, :7] = torch.tensor([9.0, 9.0 - 1e-5, 7.0, 6.0, 5.0, 5.0 - 1e-5, 1.0])
    b = a.clone()
    b[0, [0, 1, 4, 5]] = a[0, [1, 0, 5, 4]]
    real = torch.ones(1, dtype=torch.bool)
    exact, near = compare_logits(a, b, real), compare_logits(a, b, real, tie=1e-5)
    assert (exact.top1, exact.top5) == (0.0, 0.8)
    assert (near.top1, near.top5) == (1.0, 1.0)


def test_relative_error_is_infinite_where_values_are_none() -> None:
    x = torch.tensor([1.0, -4.0])
    assert relative_error(x, torch.tensor([1.0, -3.0])) == (1.0, 0.25)
    assert relative_error(x, torch.tensor([1.0, float("nan")])) == (float("inf"), float("inf"))
    assert relative_error(x, torch.ones(3))[1] == float("inf")
    assert relative_error(torch.zeros(2), torch.zeros(2)) == (0.0, 0.0)


def test_the_table_has_a_row_for_each_dtype_and_device() -> None:
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    assert set(TABLE) == {(dtype, device) for dtype in dtypes for device in ("cpu", "cuda")}


def copy(directory: Path, to: Path) -> Checkpoint:
    """A copy of both sides, and the target's tensors."""
    import shutil

    for side in ("source", "target"):
        shutil.copytree(directory / side, to / side)
    return Checkpoint.read(to / "target")


def test_copies_are_whole(phi: Path, tmp_path: Path) -> None:
    target = copy(phi, tmp_path)
    index = json.loads((phi / "target" / "model.safetensors.index.json").read_text())
    assert set(target.tensors) == set(index["weight_map"])


@pytest.mark.gpu
def test_on_a_gpu(phi: Path) -> None:
    result = run(PHI, phi, device="cuda", prompt_tokens=512)
    assert result.verdict is Verdict.PASS
    assert result.device is not None
    assert result.device.startswith("cuda")
    assert run(PHI, phi, device="cuda", resident_nbytes=0).verdict is Verdict.PASS
