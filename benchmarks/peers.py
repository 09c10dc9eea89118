"""The programs that users convert with today, each beside weightmap on the same job in the same run."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.jobs import PLAIN, spec
from benchmarks.memory import settle
from benchmarks.process import CommandFailedError, Measured, measure
from benchmarks.rounds import Rounds
from benchmarks.workplace import Workplace, WrongOutputError, nbytes_of, weightmap

HERE = Path(__file__).resolve().parent
INSTALL_SECONDS = 280
SCRIPT_GOAL, CONVERTER_GOAL = 3.0, 4.5
ERROR_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Peer:
    """A program, and what weightmap does in its place.

    Attributes:
        name: of the row, and of the function in peer_scripts.py.
        title: for the page.
        module: must be importable; the package's version is shown.
        source: the checkpoint that both read.
        arguments: of `convert`.
        expected: what weightmap must write; what the peer must write, where that is something else, and the folder
            below its output where it does.
    """

    name: str
    title: str
    module: str
    source: str
    arguments: tuple[str, ...]
    expected: tuple[str, str]
    peer_expected: tuple[str, str] | None = None
    folder: str = ""

    @property
    def goal(self) -> float:
        """How many times faster weightmap is to be."""
        return SCRIPT_GOAL if self.name.startswith("script") else CONVERTER_GOAL


TENNY = ("--spec", "phi2_to_tenny", *PLAIN)
LITGPT = ("--spec", "phi2_to_litgpt", *PLAIN)
SAME = (*spec("same"), *PLAIN)
TORCHTUNE = ("--spec", "llama_torchtune_to_hf", "--reverse", *PLAIN)
PHI = ("same", "phi")

PEERS = [
    Peer("transformers_save", "transformers, load and save", "transformers", "phi", SAME, PHI),
    Peer("mergekit_passthrough", "mergekit, passthrough", "mergekit", "phi", SAME, PHI),
    Peer("script_there", "a plain script, Phi-2 to Tenny", "safetensors", "phi", TENNY, ("tenny", "phi")),
    Peer("script_back", "a plain script, Tenny to Phi-2", "safetensors", "tenny", (*TENNY, "--reverse"), PHI),
    Peer("litgpt_there", "LitGPT, Hugging Face to LitGPT", "litgpt", "phi", LITGPT, ("litgpt", "phi")),
    Peer("litgpt_back", "LitGPT, LitGPT to Hugging Face", "litgpt", "litgpt", (*LITGPT, "--reverse"), PHI),
    Peer(
        "torchtune_save",
        "torchtune, load and save; weightmap: to torchtune",
        "torchtune",
        "llama",
        TORCHTUNE,
        ("torchtune", "llama"),
        ("same", "llama"),
        "epoch_0",
    ),
]


def environment(root: Path) -> Path:
    """The Python of the peers' own environment, which is made if it isn't there.

    It sees the packages of this environment behind its own, so that both use one torch.
    """
    python, complete = root / "peers" / "bin" / "python", root / "peers" / "complete"
    if not complete.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", root / "peers"], check=True)
        site = python.parent.parent / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
        (site / "this.pth").write_text(sysconfig.get_path("purelib") + "\n")
        requirements = HERE / "requirements-peers.txt"
        options = ["--quiet", "--no-deps", "--disable-pip-version-check", "--requirement", str(requirements)]
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", *options]
        try:
            subprocess.run(pip, check=True, timeout=INSTALL_SECONDS)
            complete.touch()
        except subprocess.SubprocessError as error:  # reported in the row of each peer that isn't there, too
            print(f"not all peers could be installed: {error}", flush=True)
    return python


def version(python: Path, module: str) -> str:
    """The version of a peer's package.

    Raises:
        CommandFailedError: it isn't installed.
    """
    code = f"from importlib.metadata import version; print(version({module!r}))"
    done = subprocess.run([python, "-c", code], check=False, capture_output=True, text=True)
    if done.returncode:
        raise CommandFailedError(f"{module} is not installed")
    return done.stdout.strip()


def run_peer(
    peer: Peer, workplace: Workplace, python: Path, rounds: Rounds, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure weightmap and a peer in turn, with memory touched before each.

    Returns:
        A row with `pairs` of `run` (weightmap) and `reference` (the peer), or with `error`, and why.
    """
    row: dict[str, Any] = {"peer": peer.name, "size": workplace.size, "pairs": []}
    try:
        row["version"] = version(python, peer.module)
        for number in rounds:
            order = [_weightmap, _peer] if number % 2 else [_peer, _weightmap]
            found = {step.__name__: step(peer, workplace, python) for step in order}
            run, other = found["_weightmap"], found["_peer"]
            row["pairs"].append({"run": run.as_json(), "reference": other.as_json()})
            say(f"{other.wall:.2f} s, weightmap {run.wall:.2f} s: {other.wall / run.wall:.1f} times faster")
    except (CommandFailedError, WrongOutputError, subprocess.SubprocessError, OSError) as error:
        row["error"] = " ".join(str(error).split())[-ERROR_CHARACTERS:]
        say(f"failed: {row['error']}")
    finally:
        workplace.free_output()
    return row


def _weightmap(peer: Peer, workplace: Workplace, python: Path) -> Measured:
    del python
    source = _prepare(peer, workplace)
    command = weightmap("convert", "--quiet", source, workplace.output, *peer.arguments)
    measured = measure(command, log=workplace.log)
    workplace.check(workplace.output, peer.expected)
    workplace.free_output()
    return measured


def _peer(peer: Peer, workplace: Workplace, python: Path) -> Measured:
    source = _prepare(peer, workplace)
    workplace.output.mkdir()
    if peer.name == "litgpt_there":
        for path in source.iterdir():
            (workplace.output / path.name).symlink_to(path)
    command: list[str | Path] = [python, HERE / "peer_scripts.py", peer.name, source, workplace.output]
    measured = measure(command, log=workplace.log, environment={"HF_HUB_OFFLINE": "1"})
    workplace.check(workplace.output / peer.folder, peer.peer_expected or peer.expected)
    workplace.free_output()
    return measured


def _prepare(peer: Peer, workplace: Workplace) -> Path:
    source = workplace.source(peer.source)
    workplace.expected(*peer.expected)
    workplace.free_output()
    settle(nbytes_of(source), [path for path in workplace.files(peer.source) if path.suffix != ".json"], prefault=True)
    return source
