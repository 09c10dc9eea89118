from __future__ import annotations

from typing import Any

from benchmarks.page import page, terminal_table

MACHINE = {"date": "2026-11-22", "processor": "2 cores"}


def measured(wall: float, resident: int) -> dict[str, Any]:
    return {"wall": wall, "user": 1.0, "system": 2.0, "resident": resident, "anonymous": resident // 2}


def pairs(run: float, reference: float, resident: int = 50_000_000, peer: int = 0) -> dict[str, Any]:
    pair = {"run": measured(run, resident), "reference": measured(reference, peer)}
    return {"pairs": [pair, pair, pair], "machine": MACHINE}


ROWS: dict[str, dict[str, Any]] = {
    "job rename-there full touched": pairs(0.8, 1.0),
    "job rename-back full touched": pairs(1.8, 1.0, resident=80_000_000),
    "job rename-there full returned": pairs(1.0, 1.0),
    "job qkv medium touched": {"error": "wrong | bytes", "machine": MACHINE},
    "peer script_there full touched": pairs(1.0, 4.0, peer=2_600_000_000) | {"version": "0.8"},
    "peer litgpt_there full touched": {"error": "litgpt is not installed", "machine": MACHINE},
    "startup help": {
        "title": "`--help`",
        "seconds": [0.05, 0.07, 0.055],
        "resident": 25_000_000,
        "anonymous": 9_000_000,
        "seconds_goal": 0.06,
        "memory_goal": None,
        "machine": MACHINE | {"date": "2026-11-23"},
    },
}


def line(text: str, start: str) -> list[str]:
    (found,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def section(text: str, title: str) -> str:
    return text.split(f"## {title}")[1].split("\n## ", maxsplit=1)[0]


def test_each_row_says_its_goal_what_was_measured_and_whether_it_was_met() -> None:
    text = section(page(ROWS, "Notes."), "Memory touched just before each run, 5.56 GB")
    there = line(text, "Phi-2 and Tenny: rename, fuse, split; no fsync, no digests, there")
    assert there[1:6] == ["cp", "0.9", "0.80 (0.80 to 0.80)", "3", "met"]
    assert there[6:] == ["0.80", "1.00 + 2.00", "1.00", "50 (64)", "met", "25"]
    back = line(text, "Phi-2 and Tenny: rename, fuse, split; no fsync, no digests, back")
    assert (back[5], back[9], back[10]) == ("missed by 100%", "80 (64)", "missed by 25%")


def test_the_second_table_has_goals_of_its_own() -> None:
    text = section(page(ROWS, ""), "Free memory given back before each run, 5.56 GB")
    assert line(text, "Phi-2 and Tenny")[2:6] == ["1.1", "1.00 (1.00 to 1.00)", "3", "met"]


def test_what_failed_is_a_row_too() -> None:
    text = page(ROWS, "")
    assert "failed: wrong / bytes" in line(text, "grouped QKV split")
    assert "failed: litgpt is not installed" in line(text, "LitGPT, Hugging Face to LitGPT")


def test_a_peer_has_its_version_and_the_memory_is_compared() -> None:
    text = section(page(ROWS, ""), "Beside what users run today, 5.56 GB")
    script = line(text, "a plain script, Phi-2 to Tenny (safetensors 0.8)")
    assert script[1:5] == ["4.0 (4.0 to 4.0)", "3", "3.0", "met"]
    assert "one part in 52 of the smallest peer's (goal: 50, met)" in text


def test_start_up_and_the_machines_and_the_notes_are_there() -> None:
    text = page(ROWS, "## Notes\n\nThe disk was slow.")
    assert line(text, "`--help`")[1:4] == ["0.055 (0.050 to 0.070)", "0.06", "met"]
    assert "- 2026-11-22; 2 cores (6 rows)" in text
    assert "- 2026-11-23; 2 cores (1 rows)" in text
    assert "## Notes\n\nThe disk was slow." in text


def test_every_line_of_a_table_has_as_many_cells() -> None:
    counts: list[int] = []
    for text in [*page(ROWS, "").splitlines(), ""]:
        if text.startswith("|"):
            counts.append(text.count("|"))
        else:
            assert len(set(counts)) <= 1
            counts = []


def test_the_terminal_shows_a_line_for_each_row() -> None:
    lines = terminal_table(ROWS).splitlines()
    assert len(lines) == len(ROWS)
    assert "0.80 (0.80 to 0.80)" in lines[0]
    assert "4.0 (4.0 to 4.0) times faster" in lines[4]
