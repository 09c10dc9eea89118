"""Finding the spec that carries a checkpoint to a layout, and the specs there are to choose from."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace

from converters.adapters.keys import base_key
from converters.convert import Options, prepare
from converters.detect import Candidate, Seen, alike, both_ways, detect
from converters.errors import CheckpointError, CoverageError, Problem, WeightmapError
from converters.library import load_spec, shipped_specs
from converters.side_files import PLAIN, read_adapter_config, read_config
from converters.spec import Side, Spec
from converters.storage.parts import open_side
from converters.tensor_info import TensorInfo
from converters.text import printable

_PROBLEMS_SHOWN = 5


def known_specs(more: Iterable[Path] = ()) -> list[Spec]:
    """The specs of one's own files and directories, and then the shipped ones.

    Raises:
        SpecError: one of them isn't valid, or isn't there.
    """
    own = [file for path in more for file in (sorted(path.glob("*.yaml")) if path.is_dir() else [path])]
    found = [load_spec(path) for path in (*own, *shipped_specs())]
    return list({spec.path: spec for spec in found}.values())


def candidates_for(
    source: Path,
    specs: Sequence[Spec],
    *,
    config: Mapping[str, Any] | None = None,
    dims: Mapping[str, int] | None = None,
) -> tuple[Candidate, ...]:
    """Hold a checkpoint against specs in both directions; only headers are read.

    Args:
        source: a checkpoint.
        specs: what to choose from.
        config: takes the place of the checkpoint's own.
        dims: values that take the place of a spec's dims.

    Raises:
        CheckpointError: it can't be read, whatever its layout.
        ConfigError: its config can't be read.
    """
    looking = _Looking(source, config, dims)
    found = detect(looking.look, looking.prove, specs)
    if not found:
        raise CheckpointError(looking.look(Side("")).trouble)
    return found


class _Looking:
    """Reads a checkpoint's headers once for each way in which its files may be arranged."""

    def __init__(self, source: Path, config: Mapping[str, Any] | None, dims: Mapping[str, int] | None) -> None:
        self.source = source
        self.options = Options(config=config, dims=dims)
        self.is_adapter = read_adapter_config(source) is not None
        self.seen: dict[tuple[object, ...], Seen] = {}

    def look(self, side: Side) -> Seen:
        arrangement = () if self.is_adapter else (side.files, side.file)
        if arrangement not in self.seen:
            self.seen[arrangement] = self._open(side)
        seen = self.seen[arrangement]
        if seen.trouble:
            return seen
        given = self.options.config
        return replace(seen, config=given if given is not None else read_config(self.source, side))

    def _open(self, side: Side) -> Seen:
        try:
            if self.is_adapter:
                return Seen(alike(self._base_weights()))
            with open_side(self.source, side) as reader:
                files = set(reader.file_of.values())
                named = side.file in files or any(part.label_of(file) for part in side.files for file in files)
                return Seen(alike(reader.tensors.values()), named=named)
        except CheckpointError as error:
            return Seen(trouble=error.problems)

    def _base_weights(self) -> list[TensorInfo]:
        """What an adapter changes, by the names of its base model, in whose layout its keys are written."""
        with open_side(self.source, PLAIN) as reader:
            names = {base_key(name): info for name, info in reader.tensors.items()}
        return [replace(info, name=name) for name, info in names.items()]

    def prove(self, spec: Spec) -> tuple[Problem, ...]:
        try:
            with prepare(spec, self.source, self.options):
                return ()
        except WeightmapError as error:
            return error.problems


def find_spec(
    source: Path, to: str, *, config: Mapping[str, Any] | None = None, dims: Mapping[str, int] | None = None
) -> Spec:
    """The one spec that carries a checkpoint to a layout, in the direction that does.

    Args:
        source: a checkpoint.
        to: the layout: `hf/phi`, or a part of its name where that says which one is meant.
        config: takes the place of the checkpoint's own.
        dims: values that take the place of a spec's dims.

    Raises:
        click.UsageError: no spec goes to such a layout, or several do.
        CheckpointError, ConfigError: the checkpoint can't be read.
        CoverageError: no spec that goes there fits the checkpoint.
    """
    specs = known_specs()
    wanted = layouts_called(to, {way.target.layout for spec in specs for way in both_ways(spec)})
    found = candidates_for(source, specs, config=config, dims=dims)
    fitting = [candidate for candidate in found if candidate.proved]
    there = [candidate for candidate in fitting if candidate.spec.target.layout in wanted]
    if len(there) == 1:
        return there[0].spec
    if there:
        choices = "; ".join(_choice(candidate) for candidate in there)
        raise click.UsageError(f"--to {printable(to)} may mean several specs: {choices}")
    if fitting:
        layouts = ", ".join(dict.fromkeys(candidate.spec.source.layout for candidate in fitting))
        reached = "; ".join(_choice(candidate) for candidate in fitting)
        what = f"no spec carries {layouts} to {printable(to)}"
        raise CoverageError(what, printable(str(source)), f"there are: {reached}")
    nearest = next((candidate for candidate in found if candidate.spec.target.layout in wanted), found[0])
    what = f"no spec that goes to {printable(to)} fits this checkpoint; the nearest is {spec_words(nearest.spec)}"
    against = "; ".join(str(condition) for condition in nearest.conditions if condition.met is False)
    hint = f"{against + '; ' if against else ''}`weightmap detect` shows what it is"
    problems = nearest.problems[:_PROBLEMS_SHOWN]
    raise CoverageError([Problem(what, printable(str(source)), printable(hint)), *problems])


def layouts_called(name: str, layouts: Iterable[str]) -> frozenset[str]:
    """The layouts that a name may mean: the one of this very name, and those that have it as a part.

    Raises:
        click.UsageError: there is none.
    """
    known = sorted(set(layouts))
    found = frozenset(layout for layout in known if name == layout or name in layout.split("/"))
    if not found:
        raise click.UsageError(f"--to: no spec goes to {printable(name)}. Layouts are: {', '.join(known)}.")
    return found


def spec_words(spec: Spec) -> str:
    """A spec in one direction as words of a command line: `NAME`, `NAME --reverse`, or the path of one's own."""
    shipped = {str(path) for path in shipped_specs()}
    name = Path(spec.path).stem if spec.path in shipped else spec.path
    return printable(shlex.quote(name), 1000) + (" --reverse" if spec.reverse else "")


def _choice(candidate: Candidate) -> str:
    return f"{candidate.spec.target.layout} (--spec {spec_words(candidate.spec)})"
