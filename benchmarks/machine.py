"""What the measurements were taken on, without names that only this machine has."""

from __future__ import annotations

import datetime as dt
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path


def describe() -> dict[str, str]:
    """Processor, memory, filesystem, versions and date, each as a text."""
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
        "processor": f"{os.cpu_count()} cores, {_processor()}",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "system": f"Linux {platform.release().split('-')[0]}, {platform.machine()}, {_filesystem()}",
        "versions": ", ".join([f"Python {platform.python_version()}", *map(_version, ("weightmap", "numpy"))]),
        "cp": _first_line("cp", "--version"),
        "commit": f"commit {_first_line('git', 'rev-parse', '--short', 'HEAD')}",
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _filesystem() -> str:
    """The type of the filesystem that this file lies on."""
    here, mounts = Path(__file__).resolve(), {}
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        mounts[Path(place)] = kind
    return next((mounts[folder] for folder in here.parents if folder in mounts), "unknown")


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} from this checkout"


def _first_line(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.splitlines()[0] if done.stdout else "unknown"
