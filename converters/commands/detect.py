"""`weightmap detect`: which layout a checkpoint has, and which specs carry it where."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converters.commands.options import (
    CONTEXT_SETTINGS,
    checkpoint_argument,
    debug_option,
    json_option,
    read_config_file,
    revision_option,
)
from converters.commands.values import SpecName

if TYPE_CHECKING:
    from converters.detect import Candidate

_SHOWN = 5
"""Problems, and unclaimed keys, that the text shows."""

NOTHING_FITS = 3
"""The exit code of a spec and a checkpoint that don't fit each other."""


@click.command(context_settings=dict(CONTEXT_SETTINGS))
@checkpoint_argument("source")
@revision_option
@click.option(
    "--spec",
    "own",
    type=SpecName(),
    multiple=True,
    metavar="SPEC",
    help="Try this spec, too: a YAML file, or a directory of some. May be repeated.",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take this in place of the checkpoint's config.json.",
)
@json_option
@debug_option
def detect(*, source: Path, revision: str | None, own: tuple[str, ...], config_file: Path | None, as_json: bool) -> int:
    """Say which layout a checkpoint has, and which specs apply.

    Of a LoRA adapter it says in which layout the weights are that it changes; give the base model's config by --config.

    Only headers and the config are read. A spec applies if the planner proves it: every tensor is used or dropped by
    name, every tensor of the output is made once. Exits with 3 if none does, and says which came nearest.
    """
    from converters.commands.finding import candidates_for, known_specs
    from converters.commands.terminal import print_json
    from converters.side_files import read_adapter_config
    from converters.storage.locations import locate

    source = locate(source, revision)
    config = read_config_file(config_file) if config_file is not None else None
    found = candidates_for(source, known_specs(map(Path, own)), config=config)
    is_adapter = read_adapter_config(source) is not None
    if as_json:
        print_json(_as_json(source, found) | {"adapter": is_adapter})
    else:
        click.echo("\n".join(_lines(source, found, is_adapter=is_adapter)))
    return 0 if found[0].proved else NOTHING_FITS


def _layouts(found: Sequence[Candidate]) -> list[str]:
    return list(dict.fromkeys(candidate.spec.source.layout for candidate in found if candidate.proved))


def _lines(source: Path, found: Sequence[Candidate], *, is_adapter: bool) -> Iterator[str]:
    from converters.commands.terminal import bold
    from converters.text import printable

    layouts, name = _layouts(found), printable(str(source), 1000)
    if layouts:
        yield bold(f"{name}: {'a LoRA adapter of ' if is_adapter else ''}{printable(' or '.join(layouts), 1000)}")
        for candidate in found:
            if candidate.proved:
                yield from _candidate_lines(source, candidate)
        near = [candidate for candidate in found if candidate.problems]
        if near:
            yield ""
            yield "Not these, though their config and keys look like it:"
        for candidate in near:
            yield from _candidate_lines(source, candidate)
        return
    yield bold(f"{name}: {'a LoRA adapter, and ' if is_adapter else ''}no spec fits")
    yield ""
    yield f"The nearest layout is {printable(found[0].spec.source.layout)}:"
    yield from _candidate_lines(source, found[0])


def _candidate_lines(source: Path, candidate: Candidate) -> Iterator[str]:
    from converters.commands.finding import spec_words
    from converters.commands.plan_data import collapsed
    from converters.commands.terminal import counted, labelled, listed
    from converters.text import printable

    spec = candidate.spec
    claimed = candidate.keys - len(candidate.unclaimed)
    pairs = [
        ("command", _command(source, candidate) if candidate.proved else ""),
        ("config", printable("; ".join(map(str, candidate.conditions)), 1000)),
        ("keys", f"{claimed:,} of {counted(candidate.keys, 'key')} claimed"),
        ("unclaimed", listed(collapsed(candidate.unclaimed), _SHOWN)),
        ("plan", "proved" if candidate.proved else "not proved" if candidate.problems else "not tried"),
    ]
    yield ""
    yield f"  {spec_words(spec)} → {printable(spec.target.layout)}"
    yield from labelled(pairs, indent=4)
    for problem in candidate.problems[:_SHOWN]:
        yield from (f"    {printable(line, 1000)}" for line in str(problem).split("\n"))
    if len(candidate.problems) > _SHOWN:
        yield f"    and {len(candidate.problems) - _SHOWN:,} more; --json lists all of them"


def _command(source: Path, candidate: Candidate) -> str:
    from converters.commands.finding import spec_words

    return f"weightmap convert --spec {spec_words(candidate.spec)} {shlex.quote(str(source))} OUT"


def _as_json(source: Path, found: Sequence[Candidate]) -> dict[str, Any]:
    return {
        "path": str(source),
        "layouts": _layouts(found),
        "nearest": found[0].spec.source.layout,
        "specs": [_candidate_json(source, candidate) for candidate in found],
    }


def _candidate_json(source: Path, candidate: Candidate) -> dict[str, Any]:
    from msgspec.structs import asdict

    from converters.commands.guard import problems_json

    spec = candidate.spec
    return {
        "name": spec.name,
        "path": spec.path,
        "reverse": spec.reverse,
        "from": spec.source.layout,
        "to": spec.target.layout,
        "applies": candidate.proved,
        "command": _command(source, candidate) if candidate.proved else None,
        "config": [asdict(condition) for condition in candidate.conditions],
        "keys": candidate.keys,
        "claimed": candidate.keys - len(candidate.unclaimed),
        "unclaimed": [info.name for info in candidate.unclaimed],
        "problems": problems_json(candidate.problems),
    }
