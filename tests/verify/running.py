"""Both sides of a conversion, opened as `verify` opens them, to run one level with options of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from converters.convert import Options, prepare
from converters.schedule import Budget
from converters.side_files import read_config
from converters.storage.checkpoint import open_checkpoint
from converters.tensor_info import parse_dtype
from converters.verify.context import ModelOptions, VerifyContext
from tests.mutations.cases import Case


@contextmanager
def opened(case: Case, directory: Path, *, cast: str | None = None, **models: Any) -> Iterator[VerifyContext]:
    """Open `directory/source` and `directory/target`; `models` are fields of `ModelOptions`."""
    source, target = directory / "source", directory / "target"
    options = Options(dtype=parse_dtype(cast) if cast else None)
    given = ModelOptions(device="cpu", source_model=case.source_model, target_model=case.target_model, prompt_tokens=64)
    with prepare(case.load_spec(), source, options) as prepared, open_checkpoint(target) as reader:
        yield VerifyContext(
            spec=case.load_spec(),
            source_path=source,
            target_path=target,
            source_reader=prepared.reader,
            target_reader=reader,
            source_config=read_config(source),
            target_config=read_config(target),
            plan=prepared.plan,
            plan_back=None,
            no_way_back="not needed here",
            asked_dtype=cast,
            budget=Budget(1 << 28, 1),
            models=replace(given, **models),
        )
