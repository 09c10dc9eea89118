"""The tables of what was measured: docs/benchmarks.md, and the terminal; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.jobs import JOBS, Job
from benchmarks.peers import PEERS
from benchmarks.reading import GOAL as READING_GOAL
from benchmarks.shapes import SIZES
from benchmarks.summary import Spread, summarize, verdict

Rows = Mapping[str, Mapping[str, Any]]
MB = 1_000_000
MEMORIES = {
    "touched": "Memory touched just before each run",
    "returned": "Free memory given back before each run",
}
SMALLEST_PART = 50  # of the smallest peer's memory

HEAD = """\
# Benchmarks

<!-- Written by `python -m benchmarks --report`; changes by hand are lost. Text goes into benchmarks/notes.md. -->

Each run is a whole process, Python's start included. The conversion and its reference run in turn, each first in every
other round; outputs are removed before each run. What is compared with `cp` and an fsync of each file (`cp+sync`) makes
its output durable, and nothing else does. `dd` stands for reading as many bytes as the job reads, and writing as many
as it writes. Inputs are in the page cache. After every run, outside of the measured time, a digest of every tensor is
compared with what numpy and torch compute from the source without weightmap: a row with one wrong byte is an error.

*Ratio* is the median of the ratios of the pairs, with the least and the greatest; *seconds* is the median of wall time,
with processor time as user + system. *Resident* is the peak of the process, Python and the pages of its libraries
included; *anonymous* is the peak of the part that no file backs, sampled every 5 ms.

"""
REPEAT = """\
## Repeat it

```console
$ make bench                                        # everything; writes this page
$ python -m benchmarks --minutes 30                 # the same in about so long, with fewer pairs where rows are slow
$ python -m benchmarks --rows durable,cast          # some rows; the others keep what they have
$ python -m benchmarks --size medium --rounds 11    # 1.78 GB instead of 5.56 GB
$ make bench-quick                                  # a subset, small, printed only; under three minutes
```

It needs Linux, 16 GB of memory for the full size, and 20 GB of disk under `.bench/`.
"""


def page(rows: Rows, notes: str) -> str:
    """The page, in Markdown.

    Args:
        rows: as `Results` keeps them.
        notes: text for the page, from benchmarks/notes.md.
    """
    parts = [HEAD, *_machine(rows)]
    for memory, title in MEMORIES.items():
        for size in SIZES:
            if table := list(_job_rows(rows, size, memory)):
                parts += [f"## {title}, {_size_text(size)}\n", *_table(JOB_COLUMNS, table)]
    parts += _peers(rows)
    parts += _startup(rows)
    return "\n".join([*parts, notes, REPEAT])


def terminal_table(rows: Rows) -> str:
    """One line for each row of pairs or of start-up."""
    lines = []
    for key, row in rows.items():
        if "error" in row:
            text = f"failed: {row['error'][:160]}"
        elif "pairs" in row:
            found = summarize(row["pairs"])
            ratio = found.ratio.text()
            if key.startswith("peer "):
                ratio = _times_faster(row).text(1) + " times faster"
            text = f"{ratio}  {found.wall.median:7.2f} s  {found.resident / MB:5.0f} MB"
        else:
            text = f"{Spread.of(row['seconds']).text(3)} s  {row['resident'] / MB:5.0f} MB"
        lines.append(f"{key:44} {text}")
    return "\n".join(lines)


def _size_text(size: str) -> str:
    return {"full": "5.56 GB", "medium": "1.78 GB", "small": "0.4 GB", "toy": "a few megabytes"}[size]


def _machine(rows: Rows) -> list[str]:
    """Each machine, version and date that rows were measured with, once."""
    machines: dict[str, int] = {}
    for row in rows.values():
        text = "; ".join(row["machine"].values())
        machines[text] = machines.get(text, 0) + 1
    lines = [f"- {text} ({count} rows)" for text, count in machines.items()]
    return ["Measured on:\n", *lines, ""]


JOB_COLUMNS = [
    "job",
    "against",
    "goal",
    "ratio",
    "pairs",
    "time",
    "seconds",
    "user + system",
    "reference's seconds",
    "resident, MB (goal)",
    "memory",
    "anonymous, MB",
]


def _job_rows(rows: Rows, size: str, memory: str) -> Iterator[list[str]]:
    for job in JOBS:
        if (row := rows.get(f"job {job.name} {size} {memory}")) is not None:
            goal = job.goal if memory == "touched" else job.goal_returned
            yield _pair_row(job, row, goal)
    if (row := rows.get(f"verify roundtrip {size} {memory}")) is not None:
        yield _pair_row(None, row, READING_GOAL)


def _pair_row(job: Job | None, row: Mapping[str, Any], goal: float) -> list[str]:
    title = job.title if job else "`verify --level roundtrip`, Phi-2 and Tenny"
    against = job.reference if job else "reading both"
    start = [title, against, f"{goal:.1f}"]
    if "error" in row:
        return [*start, f"failed: {row['error'][:200]}", *[""] * (len(JOB_COLUMNS) - 4)]
    found = summarize(row["pairs"])
    return [
        *start,
        found.ratio.text(),
        str(len(row["pairs"])),
        verdict(found.ratio.median, goal),
        f"{found.wall.median:.2f}",
        f"{found.user.median:.2f} + {found.system.median:.2f}",
        f"{found.reference.median:.2f}",
        f"{found.resident / MB:.0f}" + (f" ({job.memory_goal / MB:.0f})" if job else ""),
        verdict(found.resident, job.memory_goal) if job else "",
        f"{found.anonymous / MB:.0f}",
    ]


PEER_COLUMNS = [
    "peer",
    "times faster",
    "pairs",
    "goal",
    "",
    "seconds, weightmap",
    "seconds, peer",
    "resident, MB, weightmap",
    "resident, MB, peer",
]


def _peers(rows: Rows) -> list[str]:
    parts: list[str] = []
    for size in SIZES:
        table, smallest, largest = [], [], 0
        for peer in PEERS:
            row = rows.get(f"peer {peer.name} {size} touched")
            if row is None:
                continue
            name = f"{peer.title} ({peer.module} {row.get('version', '?')})"
            if "error" in row:
                table.append([name, f"failed: {row['error'][:200]}", *[""] * (len(PEER_COLUMNS) - 2)])
                continue
            ratio = _times_faster(row)
            ours = max(pair["run"]["resident"] for pair in row["pairs"])
            theirs = max(pair["reference"]["resident"] for pair in row["pairs"])
            anonymous = max(pair["reference"]["anonymous"] for pair in row["pairs"])
            smallest.append(theirs)
            largest = max(largest, ours)
            table.append(
                [
                    name,
                    ratio.text(1),
                    str(len(row["pairs"])),
                    f"{peer.goal:.1f}",
                    "met" if ratio.median >= peer.goal else "missed",
                    f"{Spread.of(pair['run']['wall'] for pair in row['pairs']).median:.2f}",
                    f"{Spread.of(pair['reference']['wall'] for pair in row['pairs']).median:.2f}",
                    f"{ours / MB:.0f}",
                    f"{theirs / MB:.0f}, of which {anonymous / MB:.0f} anonymous",
                ]
            )
        if table:
            parts += [f"## Beside what users run today, {_size_text(size)}\n", *_table(PEER_COLUMNS, table)]
            parts += _memory_of_peers(largest, smallest, size)
    return parts


def _times_faster(row: Mapping[str, Any]) -> Spread:
    return Spread.of(pair["reference"]["wall"] / pair["run"]["wall"] for pair in row["pairs"])


def _memory_of_peers(ours: int, theirs: list[int], size: str) -> list[str]:
    text = "Each on the same job in the same run, memory touched just before; neither makes its output durable."
    if theirs and size == "full":
        part = min(theirs) / ours
        met = "met" if part >= SMALLEST_PART else "missed"
        text += f" Weightmap's largest peak is one part in {part:.0f} of the smallest peer's"
        text += f" (goal: {SMALLEST_PART}, {met})."
    return [text + "\n"]


STARTUP_COLUMNS = ["command", "seconds", "goal", "", "resident, MB", "goal", "", "anonymous, MB", "beside it"]


def _startup(rows: Rows) -> list[str]:
    table = []
    for key, row in rows.items():
        if not key.startswith("startup "):
            continue
        if "error" in row:
            table.append([key, f"failed: {row['error'][:200]}", *[""] * (len(STARTUP_COLUMNS) - 2)])
            continue
        seconds, resident = Spread.of(row["seconds"]), row["resident"]
        time_goal, memory_goal = row["seconds_goal"], row["memory_goal"]
        beside = [f"{name} {Spread.of(times).text(3)} s" for name, times in row.get("beside", {}).items()]
        table.append(
            [
                row["title"],
                seconds.text(3),
                f"{time_goal:g}" if time_goal else "",
                verdict(seconds.median, time_goal) if time_goal else "",
                f"{resident / MB:.0f}",
                f"{memory_goal / MB:.0f}" if memory_goal else "",
                verdict(resident, memory_goal) if memory_goal else "",
                f"{row['anonymous'] / MB:.0f}",
                ", ".join(beside),
            ]
        )
    return ["## Start-up and plans\n", *_table(STARTUP_COLUMNS, table)] if table else []


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [*("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines), ""]
