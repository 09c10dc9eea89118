from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import converters
from converters.tensor_info import DType, TensorInfo
from converters.verify import accounting
from converters.verify.config_check import are_identical, check_target_config, check_vocabulary
from converters.verify.report import Finding, Report, Severity, Verdict
from tests.verify.damage import LAYER, SPEC, Tensors, edit, edit_json, make_source, make_target

Check = Callable[..., Report]


def found(report: Report, level: str = "accounting") -> dict[str, Finding]:
    """The errors of one level by kind, the last of each."""
    result = report.level(level)
    assert result is not None
    return {finding.kind: finding for finding in result.errors}


def only(report: Report, kind: str) -> Finding:
    """The single error, which must be of this kind, and the verdict that goes with it."""
    result = report.level("accounting")
    assert result is not None
    assert [finding.kind for finding in result.errors] == [kind]
    assert result.verdict is Verdict.FAIL
    assert report.exit_code == 4
    return result.errors[0]


def test_a_correct_target_passes_without_findings(check: Check) -> None:
    report = check(level="accounting")
    assert report.verdict is Verdict.PASS
    assert report.findings == ()
    assert "42 of 42 planned tensors" in report.levels[0].evidence[0]


def test_missing_tensor(check: Check) -> None:
    def change(tensors: Tensors) -> None:
        del tensors[f"{LAYER}.ff.linear1.bias"]

    finding = only(check(change, level="accounting"), "missing-tensor")
    assert (finding.where, finding.layer, finding.expected) == (f"{LAYER}.ff.linear1.bias", 1, "[80] F32")
    assert finding.rule is not None
    assert "phi2_to_tenny.yaml:28" in finding.rule


def test_a_missing_tensor_that_has_a_prefix_too_many_is_recognised(check: Check) -> None:
    def change(tensors: Tensors) -> None:
        tensors["module.decoder.bias"] = tensors.pop("decoder.bias")

    report = check(change, level="accounting")
    assert found(report).keys() == {"missing-tensor", "unexpected-tensor"}
    assert "module.decoder.bias" in (found(report)["missing-tensor"].diagnosis or "")


def test_unexpected_tensor(check: Check) -> None:
    finding = only(
        check(lambda tensors: tensors.update({f"{LAYER}.extra": torch.ones(3)}), level="accounting"),
        "unexpected-tensor",
    )
    assert (finding.where, finding.layer, finding.got) == (f"{LAYER}.extra", 1, "[3] F32")


@pytest.mark.parametrize(
    ("change", "diagnosis"),
    [
        (lambda weight: weight.T, "it is transposed"),
        (lambda weight: torch.cat([weight, weight[:3]]), "3 too many along axis 0"),
        (lambda weight: weight[:, :-1], "1 too few along axis 1"),
    ],
)
def test_wrong_shape(check: Check, change: Callable[[torch.Tensor], torch.Tensor], diagnosis: str) -> None:
    key = f"{LAYER}.ff.linear1.weight"
    finding = only(
        check(lambda tensors: tensors.update({key: change(tensors[key])}), level="accounting"), "wrong-shape"
    )
    assert (finding.where, finding.diagnosis) == (key, diagnosis)


def test_wrong_dtype_that_nobody_asked_for(check: Check) -> None:
    key = f"{LAYER}.norm1.weight"
    finding = only(check(lambda tensors: tensors.update({key: tensors[key].half()}), level="accounting"), "wrong-dtype")
    assert (finding.where, finding.expected, finding.got) == (key, "F32", "F16")


def test_a_cast_that_was_asked_for_is_right_and_one_that_was_not_is_wrong(source: Path, tmp_path: Path) -> None:
    spec = converters.load_spec(SPEC)
    target = make_target(source, tmp_path / "cast", dtype="bfloat16")
    asked = converters.Options(dtype=DType.BF16)
    assert converters.verify(spec, source, target, level="roundtrip", converted_with=asked).verdict is Verdict.PASS
    unasked = converters.verify(spec, source, target, level="accounting")
    assert found(unasked).keys() == {"wrong-dtype", "config-differs"}
    kept = make_target(source, tmp_path / "kept")
    assert "wrong-dtype" in found(converters.verify(spec, source, kept, level="accounting", converted_with=asked))


def index_of(target: Path) -> Path:
    return target / "model.safetensors.index.json"


def test_ghost_index_entry(check: Check, target: Path) -> None:
    def add(index: dict[str, dict[str, str]]) -> None:
        index["weight_map"]["ghost.weight"] = min(set(index["weight_map"].values()))

    edit_json(index_of(target), add)
    assert only(check(level="accounting"), "ghost-index-entry").where == "ghost.weight"


def test_orphaned_tensor(check: Check, target: Path) -> None:
    edit_json(index_of(target), lambda index: index["weight_map"].pop("decoder.bias"))
    assert only(check(level="accounting"), "orphaned-tensor").where == "decoder.bias"


def test_dropped_shard(check: Check, target: Path) -> None:
    dropped = sorted(target.glob("*.safetensors"))[1]
    dropped.unlink()
    report = check(level="accounting")
    assert found(report).keys() == {"missing-shard", "missing-tensor"}
    assert found(report)["missing-shard"].where == dropped.name


def test_a_shard_and_its_entries_dropped_consistently(check: Check, target: Path) -> None:
    dropped = sorted(target.glob("*.safetensors"))[1]
    dropped.unlink()

    def forget(index: dict[str, dict[str, str]]) -> None:
        index["weight_map"] = {key: file for key, file in index["weight_map"].items() if file != dropped.name}

    edit_json(index_of(target), forget)
    report = check(level="accounting")
    assert found(report).keys() == {"missing-shard", "missing-tensor"}
    assert found(report)["missing-shard"].where == dropped.name


def test_orphaned_shard(check: Check, target: Path) -> None:
    shutil.copy(min(target.glob("*.safetensors")), target / "old-00001-of-00001.safetensors")
    assert "orphaned-shard" in found(check(level="accounting"))


def test_damaged_file(check: Check, target: Path) -> None:
    last = max(target.glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:-7])
    report = check(level="roundtrip")
    assert found(report).keys() == {"damaged-file", "missing-tensor"}
    assert found(report)["damaged-file"].where == last.name
    assert report.levels[1].verdict is Verdict.FAIL


def test_damaged_index(check: Check, target: Path) -> None:
    index_of(target).write_text("{")
    assert only(check(level="accounting"), "damaged-index").where == index_of(target).name


def test_a_target_without_weights_fails_and_one_that_is_not_there_is_an_error(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    spec = converters.load_spec(SPEC)
    report = converters.verify(spec, source, tmp_path / "empty", level="accounting")
    assert "unreadable-target" in found(report)
    with pytest.raises(converters.CheckpointError):
        converters.verify(spec, source, tmp_path / "nowhere", level="accounting")


def test_index_total_size_is_a_warning(check: Check, target: Path) -> None:
    edit_json(index_of(target), lambda index: index["metadata"].update(total_size=1))
    report = check(level="accounting")
    assert report.verdict is Verdict.PASS
    assert [(one.kind, one.severity) for one in report.findings] == [("index-total-size", Severity.WARNING)]


def test_a_header_without_a_format_is_a_warning(check: Check, target: Path) -> None:
    from safetensors.torch import load_file, save_file

    first = min(target.glob("*.safetensors"))
    save_file(load_file(first), first)
    report = check(level="accounting")
    assert [one.kind for one in report.findings] == ["no-format"]
    assert report.verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("num_layers", 2, "config-differs"),
        ("num_heads", 8, "config-differs"),
        ("partial_rotary_factor", 0.25, "config-differs"),
        ("tie_word_embeddings", True, "tied-config"),
    ],
)
def test_config_that_differs(check: Check, target: Path, key: str, value: object, kind: str) -> None:
    path = target / "config.json"
    config = json.loads(path.read_text())
    if key not in config:
        config["rope_parameters"][key] = value
    config[key] = value
    path.write_text(json.dumps(config))
    errors = found(check(level="accounting"))
    assert kind in errors
    assert (errors[kind].where or "").endswith(key)


def test_layers_of_the_config_are_counted_in_the_keys(check: Check, target: Path) -> None:
    edit_json(target / "config.json", lambda config: config.update(num_layers=4))
    assert "config-contradicts-tensors" in found(check(level="accounting"))


def test_a_config_that_is_as_planned_is_not_planned_with_once_more(
    check: Check, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[object] = []
    make_plan = accounting.make_plan
    monkeypatch.setattr(accounting, "make_plan", lambda *sides: [planned.append(sides), make_plan(*sides)][1])
    assert check(level="accounting").verdict is Verdict.PASS
    assert not planned
    edit_json(target / "config.json", lambda config: config.update(unused=1))
    check(level="accounting")
    assert len(planned) == 1


def test_the_report_names_the_platform(check: Check) -> None:
    found = check(level="accounting").versions["platform"]
    for part in (platform.system(), platform.release(), platform.machine(), *platform.libc_ver()):
        assert part in found


def test_configs_are_identical_only_if_all_of_them_is() -> None:
    config = {"layers": 3, "sizes": [1, {"width": 8}], "tied": False, "rate": 1.0, "none": None}
    assert are_identical(config, json.loads(json.dumps(config, sort_keys=True)))
    others = [{"tied": 0}, {"rate": 1}, {"layers": 3.0}, {"more": None}, {"none": False}, {"sizes": [1]}]
    others += [{"sizes": [1, {"width": True}]}, {"sizes": [True, {"width": 8}]}, {"sizes": {"width": 8}}]
    for other in others:
        assert not are_identical(config, {**config, **other}), other
        assert not are_identical({**config, **other}, config), other


def test_missing_config_and_missing_key_and_extra_key(check: Check, target: Path) -> None:
    path = target / "config.json"
    edit_json(path, lambda config: (config.pop("vocab_size"), config.update(more=1)))
    report = check(level="accounting")
    assert "config-missing" in found(report)
    assert [one.kind for one in report.findings if one.severity is Severity.NOTE] == ["config-extra"]
    path.unlink()
    assert "missing-config" in found(check(level="accounting"))


def test_where_a_config_came_from_does_not_matter_and_spellings_are_one() -> None:
    expected = {"transformers_version": "4", "torch_dtype": "float16", "nested": {"theta": 10000}}
    assert check_target_config(expected, {"dtype": "float16", "nested": {"theta": 10000.0}}) == ()
    kinds = [one.kind for one in check_target_config({"a": 1}, {"a": True})]
    assert kinds == ["config-differs"]
    assert [one.kind for one in check_target_config(None, {"a": 1})] == ["config-unchecked"]


def test_vocabulary_rows() -> None:
    planned = [TensorInfo("embed", (251, 48), DType.F32)]
    config = {"vocab_size": 251}
    assert check_vocabulary(config, planned, config, planned) == ()
    padded = check_vocabulary(config, planned, {"vocab_size": 250}, planned)
    assert [(one.kind, one.severity) for one in padded] == [("vocabulary-padded", Severity.NOTE)]
    short = check_vocabulary(config, planned, {"vocab_size": 300}, planned)
    assert [(one.kind, one.severity) for one in short] == [("vocabulary", Severity.ERROR)]
    inherited = check_vocabulary({"vocab_size": 300}, planned, {"text_config": {"vocab_size": 300}}, planned)
    assert [(one.kind, one.severity) for one in inherited] == [("vocabulary", Severity.WARNING)]
    assert check_vocabulary(config, planned, {}, planned) == ()


def test_side_files(target: Path, check: Check) -> None:
    (target / "generation_config.json").write_text("{}")
    assert [one.kind for one in check(level="accounting").findings] == ["side-file-differs"]
    (target / "generation_config.json").unlink()
    report = check(level="accounting")
    assert [one.kind for one in report.findings] == ["side-file-missing"]
    assert report.verdict is Verdict.PASS


def test_tied_weights(tmp_path: Path) -> None:
    """The way back ties: the source's layout stores the matrix once."""
    source = make_source(tmp_path / "tied", tie_word_embeddings=True)
    tenny = make_target(source, tmp_path / "tenny")
    spec = converters.load_spec(SPEC)
    assert converters.verify(spec, source, tenny, level="roundtrip").verdict is Verdict.PASS
    back = make_target_back(tenny, tmp_path / "back")
    assert converters.verify(spec, tenny, back, level="roundtrip", reverse=True).verdict is Verdict.PASS

    def untie(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    edit(back, untie)
    report = converters.verify(spec, tenny, back, level="roundtrip", reverse=True)
    assert found(report).keys() == {"tied-stored-twice"}
    assert found(report, "roundtrip") == {}

    def stale(tensors: Tensors) -> None:
        tensors["lm_head.weight"][3, 4] += 1

    edit(back, stale)
    report = converters.verify(spec, tenny, back, level="roundtrip", reverse=True)
    assert found(report, "roundtrip").keys() == {"stale-tied"}


def make_target_back(tenny: Path, directory: Path) -> Path:
    converters.convert(converters.load_spec(SPEC), tenny, directory, reverse=True, max_shard_size="80KB")
    return directory


def test_it_takes_milliseconds_and_reads_no_tensor(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    from converters.storage.safetensors_reader import SafetensorsReader

    def refuse(*_: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(SafetensorsReader, "read_into", refuse)
    report = check(level="accounting")
    assert report.verdict is Verdict.PASS
    assert all(
        file.digest_of == "header"
        for one in report.inputs
        for file in one.files
        if "safetensors" in file.name and "json" not in file.name
    )
