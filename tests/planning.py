"""Specs and plans from a few lines, for tests that are about one rule."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import dedent
from typing import Any

import pytest

from converters.bind import bind
from converters.errors import CoverageError, SpecError
from converters.plan import Plan, Source
from converters.planner import make_plan
from converters.spec import Spec
from converters.spec_file import parse_spec
from converters.tensor_info import DType, TensorInfo

HEAD = "weightmap: 1\nname: test\nsource: {layout: a}\ntarget: {layout: b}\n"
"""What every spec begins with; a body's first line is line 5."""

Shape = tuple[int, ...]


def spec_of(body: str) -> Spec:
    return parse_spec(HEAD + dedent(body).lstrip("\n"), "s.yaml")


def infos_of(shapes: Mapping[str, Shape | TensorInfo], dtype: DType = DType.F32) -> list[TensorInfo]:
    return [
        shape if isinstance(shape, TensorInfo) else TensorInfo(name, shape, dtype) for name, shape in shapes.items()
    ]


def plan_of(
    body: str,
    shapes: Mapping[str, Shape | TensorInfo],
    *,
    config: Mapping[str, Any] | None = None,
    dtype: DType = DType.F32,
    reverse: bool = False,
    cast: DType | None = None,
) -> Plan:
    spec = spec_of(body)
    sources = [Source(info, "file") for info in infos_of(shapes, dtype)]
    return make_plan(bind(spec.inverse() if reverse else spec, config), sources, dtype=cast)


def targets_of(plan: Plan) -> dict[str, Shape]:
    return {target.info.name: target.info.shape for target in plan.targets}


def refusal_of(body: str, shapes: Mapping[str, Shape | TensorInfo], **options: Any) -> str:
    """What the planner says to a checkpoint that doesn't fit."""
    with pytest.raises(CoverageError) as caught:
        plan_of(body, shapes, **options)
    return str(caught.value)


def spec_refusal_of(body: str) -> str:
    """What is said of a spec that isn't valid."""
    with pytest.raises(SpecError) as caught:
        spec_of(body)
    return str(caught.value)
