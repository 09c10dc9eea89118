"""The smallest rows from end to end, so that the suite still runs when somebody needs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import jobs, pairs, peers, suite
from benchmarks.jobs import JOBS, MADE
from benchmarks.page import page
from benchmarks.results import Results
from benchmarks.suite import QUICK_ROWS, Suite, chosen_rows


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    for module in (pairs, peers):
        monkeypatch.setattr(module, "settle", lambda *_, **__: None)  # no gigabyte is touched for a test
    results = Results(tmp_path / "results.json")
    return Suite(root=tmp_path, results=results, size="toy", peer_sizes=["toy"], rounds=1, memories=[True])


@pytest.mark.slow
def test_a_job_and_a_peer_are_measured_checked_kept_and_shown(toy: Suite, tmp_path: Path) -> None:
    assert toy.run(["rename-there", "script_there"], keep=False)
    rows = Results(tmp_path / "results.json").rows
    assert set(rows) == {"job rename-there toy touched", "peer script_there toy touched"}
    for row in rows.values():
        assert len(row["pairs"]) == 1
        for pair in row["pairs"]:
            assert pair["run"]["wall"] > 0 < pair["reference"]["wall"]
            assert pair["run"]["resident"] > 10_000_000
    assert not [path for path in (tmp_path / "toy").iterdir() if path.is_dir()], "sources and outputs are removed"
    text = page(rows, "")
    assert "Phi-2 and Tenny: rename, fuse, split; no fsync, no digests, there" in text
    assert "a plain script, Phi-2 to Tenny" in text


@pytest.mark.slow
def test_an_output_that_is_wrong_is_an_error_and_no_time(toy: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(next(job for job in JOBS if job.name == "transpose"), expected=("same", "phi"))
    monkeypatch.setattr(suite, "JOBS", [wrong])
    assert not toy.run(["transpose"], keep=False)
    (row,) = toy.results.rows.values()
    assert "other bytes, shape or dtype" in row["error"]
    assert "pairs" not in row


def test_rows_are_known_by_name_and_by_group() -> None:
    assert chosen_rows("durable,cast-fp16,script_back") == ["durable", "cast-fp16", "script_back"]
    assert set(QUICK_ROWS) == set(chosen_rows(",".join(QUICK_ROWS)))
    with pytest.raises(SystemExit, match="no row is called duration; there are cast"):
        chosen_rows("duration,cast")


def test_every_job_has_a_name_of_its_own_and_a_source_and_a_mapping() -> None:
    assert len({job.name for job in JOBS}) == len(JOBS)
    made = {"phi", "phi-wide", "llama", "matrix", *MADE}
    assert {job.source for job in JOBS} <= made
    mappings = Path(jobs.__file__).parent.parent / "mappings"
    for job in JOBS:
        spec = job.arguments[job.arguments.index("--spec") + 1]
        assert Path(spec).exists() or (mappings / f"{spec}.yaml").exists()
