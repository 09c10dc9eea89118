"""The jobs of the table of goals: what is converted, by which options, against which reference; pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SPECS = Path(__file__).resolve().parent / "specs"
PLAIN = ("--no-sync", "--digest", "none")  # scratch output: no fsync, no digests
MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Made:
    """A source that weightmap makes of another one; what it must hold is computed without it.

    Attributes:
        origin: the source that it is made of.
        arguments: of `convert`.
        expected: the function of expected.py that says what it holds, given `origin`.
    """

    origin: str
    arguments: tuple[str, ...]
    expected: str


MADE = {
    "tenny": Made("phi", ("--spec", "phi2_to_tenny"), "tenny"),
    "litgpt": Made("phi", ("--spec", "phi2_to_litgpt"), "litgpt"),
    "meta": Made("llama", ("--spec", "llama_meta_to_hf", "--reverse"), "meta"),
    "megatron": Made("llama", ("--spec", "llama_megatron_core_to_hf", "--reverse"), "megatron"),
}


@dataclass(frozen=True, slots=True)
class Job:
    """A row of the table of goals.

    Attributes:
        name: of the row; `group` is the goal that it belongs to, and what `--rows` takes as well.
        title: for the page.
        source: the checkpoint to convert.
        arguments: of `convert`.
        expected: the function of expected.py that says what comes out, and the source that it is given.
        reference: what the time is compared with: `cp` of the source; `cp+sync`, with an fsync of each file; `dd`,
            which reads as many bytes as the job reads and writes as many as it writes.
        goal, goal_returned: the largest ratio, with memory touched before, and with free memory given back.
        memory_goal: of peak resident memory, Python included, in bytes.
    """

    name: str
    group: str
    title: str
    source: str
    arguments: tuple[str, ...]
    expected: tuple[str, str]
    reference: str
    goal: float
    memory_goal: int
    goal_returned: float = 1.1


def _both(group: str, title: str, options: tuple[str, ...], reference: str, goal: float, memory_goal: int) -> list[Job]:
    spec = ("--spec", "phi2_to_tenny", *options)
    there = Job(f"{group}-there", group, f"{title}, there", "phi", spec, ("tenny", "phi"), reference, goal, memory_goal)
    back = ("same", "phi")
    arguments = (*spec, "--reverse")
    return [
        there,
        Job(f"{group}-back", group, f"{title}, back", "tenny", arguments, back, reference, goal, memory_goal),
    ]


def spec(name: str) -> tuple[str, str]:
    """Options that name a mapping of this folder."""
    return "--spec", str(SPECS / f"{name}.yaml")


# In this order at most three checkpoints are on the disk at once.
JOBS = [
    *_both("rename", "Phi-2 and Tenny: rename, fuse, split; no fsync, no digests", PLAIN, "cp", 0.9, 64 * MB),
    *_both("durable", "Phi-2 and Tenny, durable, with digests", (), "cp+sync", 0.7, 64 * MB),
    Job(
        "transpose",
        "transpose",
        "every matrix transposed",
        "phi",
        (*spec("transpose"), *PLAIN),
        ("transposed", "phi"),
        "cp",
        1.8,
        300 * MB,
        1.8,
    ),
    Job(
        "cast-fp16",
        "cast",
        "cast of float16 to bfloat16",
        "phi",
        (*spec("same"), "--dtype", "bfloat16", *PLAIN),
        ("bfloat16", "phi"),
        "dd",
        1.3,
        300 * MB,
        1.3,
    ),
    Job(
        "cast-fp32",
        "cast",
        "cast of float32 to bfloat16",
        "phi-wide",
        (*spec("same"), "--dtype", "bfloat16", *PLAIN),
        ("bfloat16", "phi-wide"),
        "dd",
        1.3,
        300 * MB,
        1.3,
    ),
    Job(
        "rope-there",
        "rope",
        "RoPE permute: Llama of Hugging Face to Meta",
        "llama",
        ("--spec", "llama_meta_to_hf", "--reverse", *PLAIN),
        ("meta", "llama"),
        "cp",
        1.1,
        150 * MB,
    ),
    Job(
        "rope-back",
        "rope",
        "RoPE permute: Llama of Meta to Hugging Face",
        "meta",
        ("--spec", "llama_meta_to_hf", *PLAIN),
        ("same", "llama"),
        "cp",
        1.1,
        150 * MB,
    ),
    Job(
        "qkv",
        "qkv",
        "grouped QKV split: Megatron-Core to Hugging Face",
        "megatron",
        ("--spec", "llama_megatron_core_to_hf", *PLAIN),
        ("same", "llama"),
        "cp",
        1.1,
        150 * MB,
    ),
    Job(
        "matrix",
        "matrix",
        "one tensor larger than the memory budget, transposed",
        "matrix",
        (*spec("matrix"), "--max-memory", "256MB", *PLAIN),
        ("transposed", "matrix"),
        "cp",
        3.0,
        256 * MB + 20 * MB,  # the budget, and bare Python
        3.0,
    ),
]
