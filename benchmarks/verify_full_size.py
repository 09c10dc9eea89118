"""Verify the conversion of a random Phi-2 in its real size to Tenny, and measure time and peak memory of each level.

    python benchmarks/verify_full_size.py DIRECTORY                  all levels; makes what isn't there yet (12 GB)
    python benchmarks/verify_full_size.py --small DIRECTORY          the same with a small model
    python benchmarks/verify_full_size.py --tokens 128 DIRECTORY     shorter prompts
    python benchmarks/verify_full_size.py --classic DIRECTORY        against Tenny's classic block, which must fail

Each level runs in a process of its own, so that its peak is its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

LEVELS = ("accounting", "roundtrip", "modules", "logits")
ROOT = Path(__file__).resolve().parent.parent


def make(directory: Path, *, small: bool, classic: bool) -> tuple[Path, Path]:
    """Write the checkpoint and its conversion, unless they are there."""
    import converters
    from benchmarks.make_phi2 import make_phi2

    source, target = directory / "phi2", directory / ("classic" if classic else "tenny")
    if not (source / "config.json").exists():
        make_phi2(source, small=small)
    if not target.exists():
        changes = {"block": "classic"} if classic else None
        converters.convert(converters.load_spec("phi2_to_tenny"), source, target, set_config=changes)
    return source, target


def peak_nbytes() -> int:
    """Peak resident memory of this process; `ru_maxrss` would count what its parent held when it forked."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def run_level(level: str, source: Path, target: Path, tokens: int, threads: int, *, classic: bool) -> None:
    """Run one level here, and print what came of it as JSON."""
    import converters
    from converters.convert import Options
    from converters.verify.run import verify

    if level in LEVELS[2:]:
        import torch

        torch.set_num_threads(threads)
    started = time.perf_counter()
    report = verify(
        converters.load_spec("phi2_to_tenny"),
        source,
        target,
        levels=[level],
        converted_with=Options(set_config={"block": "classic"}) if classic else None,
        target_model="mappings.tenny:Tenny",
        device="cpu",
        prompt_tokens=tokens,
        hash_files=False,
    )
    result = report.levels[0]
    found = {
        "level": level,
        "verdict": str(result.verdict),
        "reason": result.reason,
        "evidence": result.evidence,
        "findings": [finding.text for finding in result.findings][:5],
        "gates": {gate.name: gate.measured for gate in result.gates},
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mb": peak_nbytes() // 1_000_000,
    }
    print(json.dumps(found))


def main() -> None:
    """Read the command line, run the levels one after the other, and print a table."""
    parser = argparse.ArgumentParser(description="Verify a full-size Phi-2 to Tenny conversion, and measure it.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--classic", action="store_true")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--level", choices=LEVELS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    directory: Path = arguments.directory
    if arguments.level:
        target = directory / ("classic" if arguments.classic else "tenny")
        run_level(
            arguments.level, directory / "phi2", target, arguments.tokens, arguments.threads, classic=arguments.classic
        )
        return
    make(directory, small=arguments.small, classic=arguments.classic)
    print(f"{'level':12}{'verdict':12}{'seconds':>9}{'peak MB':>10}  reason")
    for level in LEVELS:
        command = [sys.executable, __file__, *sys.argv[1:], "--level", level]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            print(f"{level:12}{done.stderr[-2000:]}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{level:12}{found['verdict']:12}{found['seconds']:>9}{found['peak_mb']:>10}  {found['reason']}", flush=True
        )
        for line in (*found["evidence"], *found["findings"], *(f"{k}: {v:.3g}" for k, v in found["gates"].items())):
            print(f"{'':24}{line}")


if __name__ == "__main__":
    main()
