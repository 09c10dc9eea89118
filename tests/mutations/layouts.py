"""Every shipped layout under the verifier: correct conversions, and mutants that any layout can have.

Nothing here knows the parts of an architecture, as `cases.py` does for a few; so it runs over all of `PAIRS`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import converters
from converters.convert import Options
from converters.verify.report import LEVELS, Report
from converters.verify.run import verify
from tests.models_pairs import Pair

TOKENS = 48

Files = dict[Path, dict[str, Tensor]]

WITHOUT_TOKENS = {
    "vit_timm_to_hf": "its models take images",
    "stable_diffusion_ldm_to_diffusers": "its models take images and noise, and each has a forward of its own",
    "bert_tf_to_hf": "the heads of pre-training give two kinds of logits",
}
"""Specs whose models can't be run on tokens alone, with the reason; there roundtrip is the strongest level."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """A kind of wrong conversion.

    Attributes:
        level: the cheapest level that should see it.
        change: changes the tensors in place; gives the keys that are wrong then.
        changes_function: whether the models' answers must differ, too.
    """

    name: str
    level: str
    change: Callable[[Files], set[str]]
    changes_function: bool = False


def _matrices(files: Files) -> list[tuple[Path, str]]:
    """The places of all tensors with at least two rows that differ, in order."""
    return [
        (path, key)
        for path, tensors in sorted(files.items())
        for key, tensor in sorted(tensors.items())
        if tensor.dim() > 1 and tensor.is_floating_point() and len(tensor) > 1 and not torch.equal(tensor[0], tensor[1])
    ]


def _rolled(files: Files) -> set[str]:
    """Each row of the matrix in the middle moves down by one."""
    places = _matrices(files)
    path, key = places[len(places) // 2]
    files[path][key] = files[path][key].roll(1, 0)
    return {key}


def _one_sign(files: Files) -> set[str]:
    path, key = _matrices(files)[-1]
    flat = files[path][key].view(-1)
    place = int(flat.abs().argmax())
    flat[place] = -flat[place]
    return {key}


def _layers_swapped(files: Files) -> set[str]:
    """Two tensors of one kind hold each other's values."""
    kinds: dict[tuple[str, torch.Size], tuple[Path, str]] = {}
    for path, key in _matrices(files):
        kind = re.sub(r"\d+", "#", key), files[path][key].shape
        if kind in kinds and "#" in kind[0]:
            other = kinds[kind]
            first, second = files[path][key], files[other[0]][other[1]]
            files[path][key], files[other[0]][other[1]] = second.clone(), first.clone()
            return {key, other[1]}
        kinds[kind] = path, key
    raise AssertionError("no two tensors of one kind")


def _lost(files: Files) -> set[str]:
    path, key = _matrices(files)[0]
    del files[path][key]
    return {key}


def _orphan(files: Files) -> set[str]:
    path, key = _matrices(files)[0]
    files[path][f"{key}_old"] = files[path][key].clone()
    return {f"{key}_old"}


def _transposed(files: Files) -> set[str]:
    for path, key in _matrices(files):
        tensor = files[path][key]
        if tensor.dim() == 2 and tensor.shape[0] != tensor.shape[1]:
            files[path][key] = tensor.T.contiguous()
            return {key}
    raise AssertionError("no matrix that isn't square")


ROLLED = Wrong("rows of a matrix moved by one", "roundtrip", _rolled, changes_function=True)
LOST = Wrong("a tensor lost", "accounting", _lost)
WRONG = (
    ROLLED,
    Wrong("the sign of the largest element of a matrix", "roundtrip", _one_sign),
    Wrong("two tensors of one kind swapped", "roundtrip", _layers_swapped, changes_function=True),
    LOST,
    Wrong("an orphaned tensor", "accounting", _orphan),
    Wrong("a matrix transposed", "accounting", _transposed),
)
SHORT = (ROLLED, LOST)
"""What `make test` takes of them."""


@dataclass(frozen=True, slots=True)
class LayoutResult:
    """What the verifier made of one pair: of its correct conversion by level, and of each kind of wrong one.

    Attributes:
        verdicts: by level; those that can't be run are not there.
        problems: by kind of wrong conversion what the verifier should have seen, empty where it did.
        excepted: why models aren't run here; empty where they are.
    """

    name: str
    verdicts: Mapping[str, str]
    problems: Mapping[str, str]
    excepted: str

    @property
    def right(self) -> bool:
        """Whether all is as it should be."""
        return "fail" not in self.verdicts.values() and not any(self.problems.values())


def layout_result(pair: Pair, scratch: Path) -> LayoutResult:
    """Try a pair's correct conversion, and every kind of wrong one; `scratch` is an empty directory."""
    write_correct(pair, scratch / "correct")
    levels = run_levels(pair, scratch / "correct", levels_of(pair)).levels
    problems = {wrong.name: try_wrong(pair, wrong, scratch / "correct", scratch / "wrong") for wrong in WRONG}
    verdicts = {result.level: str(result.verdict) for result in levels}
    return LayoutResult(pair.name, verdicts, problems, WITHOUT_TOKENS.get(pair.spec, ""))


def write_correct(pair: Pair, directory: Path, seed: int = 7) -> None:
    """Save a pair's source as `directory/source`, and convert it to `directory/target`, in one piece."""
    directory.mkdir(exist_ok=True)
    pair.save(pair.build(seed), directory / "source")
    spec = converters.load_spec(pair.spec)
    converters.convert(
        spec, directory / "source", directory / "target", reverse=pair.reverse, set_config=pair.set_config
    )


def levels_of(pair: Pair) -> tuple[str, ...]:
    """The levels that a pair's models can be run at."""
    return LEVELS[:2] if pair.spec in WITHOUT_TOKENS else LEVELS


def run_levels(pair: Pair, directory: Path, levels: tuple[str, ...]) -> Report:
    """Verify `directory/target` against `directory/source`."""
    return verify(
        converters.load_spec(pair.spec),
        directory / "source",
        directory / "target",
        levels=levels,
        reverse=pair.reverse,
        source_model=_model(pair.source_class),
        target_model=_model(pair.target_class),
        device="cpu",
        prompt_tokens=TOKENS,
        converted_with=Options(set_config=pair.set_config or None),
        threads=1,
    )


def _model(path: str) -> str | None:
    """transformers' classes are found by the config, but for one that isn't named in it."""
    return None if path.startswith("transformers:") and not path.endswith("Classification") else path


def try_wrong(pair: Pair, wrong: Wrong, correct: Path, scratch: Path) -> str:
    """Change a copy of a correct conversion, and verify it; says what is wrong with the verifier, or nothing."""
    shutil.copytree(correct, scratch)
    files = _read(scratch / "target")
    changed = wrong.change(files)
    _write(files)
    runs = wrong.changes_function and pair.spec not in WITHOUT_TOKENS
    results = {
        result.level: result
        for result in run_levels(pair, scratch, (wrong.level, "logits") if runs else (wrong.level,)).levels
    }
    shutil.rmtree(scratch)
    problems = [
        f"not caught by {level}: {each.reason}" for level, each in results.items() if str(each.verdict) != "fail"
    ]
    named = {finding.where for finding in results[wrong.level].errors}
    # In a checkpoint of several files the verifier's keys begin with the file's label.
    missing = [key for key in changed if not any(where and where.endswith(key) for where in named)]
    return "; ".join([*problems, *(f"{wrong.level} doesn't name {key}" for key in missing)])


def _read(directory: Path) -> Files:
    """Every tensor of a checkpoint, by its file."""
    return {path: read(path) for suffix, read in _READ.items() for path in directory.rglob(f"*{suffix}")}


def _write(files: Mapping[Path, dict[str, Tensor]]) -> None:
    for path, tensors in files.items():
        _WRITE[path.suffix](path, {key: tensor.contiguous() for key, tensor in tensors.items()})


def _read_npz(path: Path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def _write_npz(path: Path, tensors: Mapping[str, Tensor]) -> None:
    arrays: dict[str, Any] = {key: tensor.numpy() for key, tensor in tensors.items()}
    np.savez(path, **arrays)


_READ: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    ".safetensors": lambda path: {key: tensor.clone() for key, tensor in load_file(path).items()},
    ".pth": lambda path: torch.load(path, weights_only=True),
    ".npz": _read_npz,
}
_WRITE: dict[str, Callable[[Path, dict[str, Tensor]], object]] = {
    ".safetensors": lambda path, tensors: save_file(tensors, path, {"format": "pt"}),
    ".pth": lambda path, tensors: torch.save(tensors, path),
    ".npz": _write_npz,
}
