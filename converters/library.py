"""Finding specs: a file, or one of those that are shipped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from converters.errors import SpecError
from converters.spec import Spec
from converters.spec_file import load_spec_file

MEASURED = "measured.json"
"""Beside the shipped specs: how closely both sides of each agreed when they were last compared."""


def shipped_directory() -> Path:
    """The directory of the shipped specs."""
    import mappings

    return Path(next(iter(mappings.__path__)))


def shipped_specs() -> tuple[Path, ...]:
    """The files of the shipped specs, by name."""
    return tuple(sorted(shipped_directory().glob("*.yaml")))


def measured_differences(spec: Spec) -> Mapping[str, float]:
    """The largest difference between the two sides of a shipped spec that was measured `there` and `back`.

    Empty for a spec of somebody else's, of which nothing is known.
    """
    path = Path(spec.path)
    if path.parent != shipped_directory():
        return {}
    specs: Mapping[str, Mapping[str, float]] = json.loads((path.parent / MEASURED).read_text())["specs"]
    found = specs.get(path.stem, {})
    swapped = {"there": "back", "back": "there"}
    return {swapped[way]: value for way, value in found.items()} if spec.reverse else found


def load_spec(name: Path | str) -> Spec:
    """Load a mapping spec: the file of this name, or else the shipped spec of this name, with `.yaml` or without.

    Raises:
        SpecError: there is none, or it isn't valid; with all its problems, each with file, line and column.
    """
    path = Path(name)
    if path.exists():
        return load_spec_file(path)
    by_stem = {shipped.stem: shipped for shipped in shipped_specs()}
    shipped = by_stem.get(path.name.removesuffix(".yaml")) if path.name == str(name) else None
    if shipped is None:
        raise SpecError(
            f"there is no spec {str(name)!r}, neither as a file nor among the shipped ones",
            hint=f"shipped are: {', '.join(by_stem)}",
        )
    return load_spec_file(shipped)
