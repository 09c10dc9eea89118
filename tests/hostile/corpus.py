"""All hostile cases, in the order of their kinds."""

from __future__ import annotations

from typing import Final

from tests.hostile import (
    cases_configs,
    cases_dcp,
    cases_indexes,
    cases_links,
    cases_npz,
    cases_pickles,
    cases_safetensors,
    cases_specs,
    cases_zips,
)
from tests.hostile.case import Case

CASES: Final[tuple[Case, ...]] = (
    *cases_safetensors.CASES,
    *cases_indexes.CASES,
    *cases_pickles.CASES,
    *cases_zips.CASES,
    *cases_npz.CASES,
    *cases_dcp.CASES,
    *cases_specs.CASES,
    *cases_configs.CASES,
    *cases_links.CASES,
)
