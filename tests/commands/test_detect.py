"""`detect` names the layout, and `--to` finds the spec."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from converters.library import shipped_directory
from tests.commands.support import CONFIG, SPEC, phi_shapes, read_tensors, weightmap, write_checkpoint


@pytest.fixture
def phi(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "a phi", shards=2)


def detected(path: Path, *words: str | Path, exit_code: int = 0) -> dict[str, Any]:
    result = weightmap("detect", path, *words, "--json")
    assert result.exit_code == exit_code, result.output
    data: dict[str, Any] = json.loads(result.stdout)
    return data


def applying(data: dict[str, Any]) -> set[tuple[str, bool, str]]:
    return {(spec["name"], spec["reverse"], spec["to"]) for spec in data["specs"] if spec["applies"]}


def test_all_specs_that_apply_are_listed(phi: Path) -> None:
    data = detected(phi)
    assert data["layouts"] == ["hf/phi"]
    assert applying(data) >= {(SPEC, False, "tenny"), ("phi2_mixformer_to_phi2", True, "mixformer/phi")}
    assert {spec["from"] for spec in data["specs"] if spec["applies"]} == {"hf/phi"}


def test_the_command_that_it_gives_works(phi: Path, tmp_path: Path) -> None:
    (spec,) = [spec for spec in detected(phi)["specs"] if spec["to"] == "tenny" and spec["applies"]]
    words = shlex.split(spec["command"])
    assert words[:2] == ["weightmap", "convert"]
    assert words[-1] == "OUT"
    assert weightmap(*words[1:-1], tmp_path / "tenny").exit_code == 0
    data = detected(tmp_path / "tenny")
    assert data["layouts"] == ["tenny"]
    assert applying(data) == {(SPEC, True, "hf/phi")}


def test_the_text_says_what_speaks_for_it(phi: Path) -> None:
    result = weightmap("detect", phi)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == f"{phi}: hf/phi"
    text = " ".join(result.stdout.split())
    assert f"{SPEC} → tenny command weightmap convert --spec {SPEC} '{phi}' OUT" in text
    assert 'config model_type is "phi" keys 33 of 33 keys claimed plan proved' in text


def test_a_plan_that_fails_is_no_fit_though_all_keys_are_claimed(tmp_path: Path) -> None:
    shapes = phi_shapes() | {"model.layers.1.self_attn.q_proj.weight": [7, 8]}
    path = write_checkpoint(tmp_path / "phi", shapes)
    result = weightmap("detect", path)
    assert result.exit_code == 3
    text = " ".join(result.stdout.split())
    assert "no spec fits The nearest layout is hf/phi:" in text
    assert "33 of 33 keys claimed plan not proved" in text
    assert "model.layers.1.self_attn.q_proj.weight [7, 8]" in text


def test_a_key_that_no_rule_claims_is_named(tmp_path: Path) -> None:
    shapes = phi_shapes() | {f"model.layers.{layer}.adapter.weight": [3, 8] for layer in range(2)}
    path = write_checkpoint(tmp_path / "phi", shapes)
    text = " ".join(weightmap("detect", path).stdout.split())
    assert "33 of 35 keys claimed unclaimed model.layers.{0,1}.adapter.weight" in text
    data = detected(path, exit_code=3)
    assert data["layouts"] == []
    assert data["nearest"] == "hf/phi"
    assert data["specs"][0]["unclaimed"] == [f"model.layers.{layer}.adapter.weight" for layer in range(2)]
    assert data["specs"][0]["problems"]


def test_another_model_is_not_taken_for_it(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "x", config={**CONFIG, "model_type": "phi9"})
    text = " ".join(weightmap("detect", path).stdout.split())
    assert 'model_type is "phi9", not "phi" keys 33 of 33 keys claimed plan not tried' in text


def test_a_config_can_be_given(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "phi", config=None)
    assert "there is no config" in weightmap("detect", path).stdout
    (tmp_path / "given.json").write_text(json.dumps(CONFIG))
    assert detected(path, "--config", tmp_path / "given.json")["layouts"] == ["hf/phi"]


def test_specs_of_ones_own_are_tried_too(phi: Path, tmp_path: Path) -> None:
    own = tmp_path / "own specs"
    own.mkdir()
    text = (shipped_directory() / f"{SPEC}.yaml").read_text()
    (own / "mine.yaml").write_text(text.replace("layout: tenny", "layout: mine/tenny"))
    for given in (own, own / "mine.yaml"):
        data = detected(phi, "--spec", given)
        (spec,) = [spec for spec in data["specs"] if spec["to"] == "mine/tenny" and spec["applies"]]
        assert spec["path"] == str(own / "mine.yaml")
        assert shlex.split(spec["command"])[3] == str(own / "mine.yaml")
    (own / "broken.yaml").write_text("weightmap: 1\n")
    assert weightmap("detect", phi, "--spec", own).exit_code == 5


def test_what_is_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    assert weightmap("detect", tmp_path / "nowhere").exit_code == 7
    assert weightmap("detect", tmp_path).exit_code == 7


@pytest.mark.parametrize("to", ["tenny", "hf/phi", "mixformer"])
def test_convert_to_a_layout_finds_the_spec(phi: Path, tmp_path: Path, to: str) -> None:
    assert weightmap("convert", "--spec", SPEC, phi, tmp_path / "tenny").exit_code == 0
    source = tmp_path / "tenny" if to == "hf/phi" else phi
    result = weightmap("convert", source, tmp_path / "out", "--to", to, "--json")
    assert result.exit_code == 0, result.output
    if to == "hf/phi":
        assert read_tensors(tmp_path / "out") == read_tensors(phi)
    planned = json.loads(weightmap("plan", source, "--to", to, "--json").stdout)
    assert planned["spec"] == json.loads(result.stdout)["spec"]
    verified = weightmap("verify", source, tmp_path / "out", "--to", to, "--level", "roundtrip")
    assert verified.exit_code == 0, verified.output


@pytest.mark.parametrize(
    ("words", "exit_code", "says"),
    [
        (("--to", "phi"), 2, ["--to phi may mean several", "mixformer/phi (--spec phi2_mixformer_to_phi2 --reverse)"]),
        (("--to", "hf/llama"), 3, ["no spec carries hf/phi to hf/llama", f"tenny (--spec {SPEC})"]),
        (("--to", "nonsense"), 2, ["no spec goes to nonsense", "hf/llama, "]),
        (("--to", "tenny", "--spec", SPEC), 2, ["--spec SPEC, or", "--to LAYOUT"]),
        (("--to", "tenny", "--reverse"), 2, ["leave out --reverse"]),
        ((), 2, ["--spec SPEC, or", "--to LAYOUT"]),
    ],
)
def test_a_layout_that_names_no_single_spec(phi: Path, words: tuple[str, ...], exit_code: int, says: list[str]) -> None:
    result = weightmap("plan", phi, *words)
    assert result.exit_code == exit_code
    for text in says:
        assert text in result.stderr


def test_what_fits_nothing_is_not_converted(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "x", config={**CONFIG, "model_type": "phi9"})
    result = weightmap("convert", path, tmp_path / "out", "--to", "tenny")
    assert result.exit_code == 3
    assert f"the nearest is {SPEC}" in result.stderr
    assert 'model_type is "phi9", not "phi"' in result.stderr
    assert not (tmp_path / "out").exists()


def test_two_specs_for_one_layout_are_not_chosen_between(
    phi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from converters.commands import finding

    twin = tmp_path / "twin.yaml"
    twin.write_text((shipped_directory() / f"{SPEC}.yaml").read_text())
    specs = finding.known_specs([twin])
    monkeypatch.setattr(finding, "known_specs", lambda: specs)
    result = weightmap("plan", phi, "--to", "tenny")
    assert result.exit_code == 2
    assert f"tenny (--spec {twin}); tenny (--spec {SPEC})" in result.stderr
