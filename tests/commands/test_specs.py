"""`specs`: what is shipped, what a spec says, and whether one is valid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from converters.commands import spec_text
from converters.library import load_spec, shipped_specs
from converters.spec_file import parse_spec
from tests.commands.support import SPEC, weightmap

HEAD = "weightmap: 1\nsource: {layout: a}\ntarget: {layout: b}\n"
NAMES = [path.stem for path in shipped_specs()]


def test_list_is_what_specs_does_by_default() -> None:
    result = weightmap("specs")
    assert result.exit_code == 0
    assert result.stdout == weightmap("specs", "list").stdout
    for name in NAMES:
        assert name in result.stdout
    assert "hf/phi ↔ tenny" in result.stdout


def test_list_as_json() -> None:
    found = {spec["name"]: spec for spec in json.loads(weightmap("specs", "list", "--json").stdout)["specs"]}
    assert set(found) == set(NAMES)
    assert found[SPEC]["from"] == "hf/phi"
    assert found[SPEC]["reversible"] is True
    assert found[SPEC]["exactness"] == "exact"
    assert found[SPEC]["models"] == ["Phi-1", "Phi-1.5", "Phi-2"]
    assert found[SPEC]["proof"] == {"oracles": ["transformers"], "compares": "logits", "tolerance": 1e-4}
    for way in ("there", "back"):
        assert found[SPEC][way]["exactness"] == "exact"
        assert 0 < found[SPEC][way]["measured"] <= 1e-4


def test_list_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec_text, "measured_differences", lambda _: {"there": 2.5e-6, "back": 3e-6})
    lines = [" ".join(line.split()) for line in weightmap("specs", "list").stdout.splitlines()]
    assert lines[0] == "spec layouts restores within measured compared with"
    row = lines.index(f"{SPEC} hf/phi ↔ tenny exact 1e-4 3e-6 transformers")
    assert lines[row + 1] == "Phi-1, Phi-1.5, Phi-2"


def test_what_is_measured_is_turned_around_with_the_spec() -> None:
    spec = load_spec(SPEC)
    there, back = (spec_text.spec_summary(way) for way in (spec, spec.inverse()))
    assert there["there"] == back["back"]
    assert there["back"] == back["there"]


def test_nothing_is_known_of_a_spec_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / f"{SPEC}.yaml"
    path.write_text(HEAD + "rules:\n  - from: a.weight\n    to: b.weight\n    cast: F16\n")
    summary = spec_text.spec_summary(load_spec(path))
    assert summary["proof"] is None
    assert summary["there"] == {"exactness": "one-way", "measured": None}
    assert summary["back"] is None
    (row, *_) = (line for line in spec_text.list_lines([load_spec(path)]) if line.startswith(SPEC))
    assert row.split()[4:] == ["one-way,", "no", "way", "back", "-", "-"]


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.0, "0"), (1e-4, "1e-4"), (2.94e-6, "2.9e-6"), (0.5, "5e-1"), (3.0, "3e0")]
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert spec_text.number(value) == text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", [(), ("--reverse",)])
def test_every_shipped_spec_is_shown_and_loads_again(name: str, way: tuple[str, ...]) -> None:
    result = weightmap("specs", "show", name, *way)
    assert result.exit_code == 0, result.output
    spec = load_spec(name).inverse() if way else load_spec(name)
    for rule in spec.rules:
        for term in (*rule.sources, *rule.targets):
            for key in term.keys:
                assert str(key) in result.stdout
    data = json.loads(weightmap("specs", "show", name, *way, "--json").stdout)
    assert parse_spec(data["yaml"]) == spec
    assert len(data["rules"]) == len(spec.rules)


def test_show_says_it_all() -> None:
    text = " ".join(weightmap("specs", "show", SPEC).stdout.split())
    assert "phi2_to_tenny: hf/phi ↔ tenny" in text
    assert "exact, both ways" in text
    assert "models Phi-1, Phi-1.5, Phi-2 proved logits within 1e-4 of transformers, measured " in text
    assert "G config.num_key_value_heads or H" in text
    assert "p weight&bias" in text
    assert "q: model.layers.{i}.self_attn.q_proj.{p} (H D) ..." in text
    assert "rename, exact, when not config.tie_word_embeddings, line" in text
    assert "sinusoidal [max_len, 1, E] F32 → pos_encoder.pe" in text
    assert "*.rotary_emb.inv_freq recomputed from rope_theta" in text
    assert 'model_type must be "phi", becomes "tenny"' in text
    assert "hidden_size → embed_dim" in text
    assert "target_config.block == 'classic'" in text


def test_a_one_way_rule_is_shown_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(HEAD + "rules:\n  - from: a.weight\n    to: b.weight\n    cast: F16\n")
    text = " ".join(weightmap("specs", "show", path).stdout.split())
    assert "one-way, one way only" in text
    assert "cast, one-way, cast to F16, line 5" in text
    assert "one way: 'cast: F16' doesn't say what the source's dtype was" in text
    assert weightmap("specs", "show", path, "--reverse").exit_code == 5
    assert "one way only, one-way" in weightmap("specs", "lint", path).stdout


def test_lint_says_ok_with_a_summary() -> None:
    result = weightmap("specs", "lint", SPEC)
    assert result.exit_code == 0
    assert result.stdout.strip().endswith("phi2_to_tenny.yaml: OK, 11 rules, 6 dims, both ways, exact")
    assert json.loads(weightmap("specs", "lint", SPEC, "--json").stdout)["ok"] is True


def test_lint_says_all_problems_at_once(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(HEAD + 'rename:\n  "a.{i": b\nrulez: []\n')
    result = weightmap("specs", "lint", path)
    assert result.exit_code == 5
    assert f"{path}:5:3: " in result.stderr
    assert f"{path}:6:1: " in result.stderr
    problems = json.loads(weightmap("specs", "lint", path, "--json").stdout)["error"]["problems"]
    assert [problem["line"] for problem in problems] == [5, 6]


@pytest.mark.parametrize("name", NAMES)
def test_invert_prints_the_inverse(name: str) -> None:
    result = weightmap("specs", "invert", name)
    assert result.exit_code == 0
    assert parse_spec(result.stdout) == load_spec(name).inverse()


def test_invert_refuses_what_has_no_inverse(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(HEAD + "rules:\n  - from: a.weight\n    to: b.weight\n    cast: F16\n")
    result = weightmap("specs", "invert", path)
    assert result.exit_code == 5
    assert "one-way" in result.stderr
    assert result.stdout == ""
